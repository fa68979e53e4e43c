"The reality check at tiny scale: cells, their table, both reports, the section of RESULTS.md, bad input."
import re

import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup

from hostile import unsafe
from tiny_grid import here, ini
from vfassoc.cli import main
from vfassoc.core import ConfigError, write_json
from vfassoc.corpus.features import load_features
from vfassoc.experiments import cells, checks, reality, regimes
from vfassoc.experiments.cells import CCA, METHODS, MethodRow, method_recipe
from vfassoc.experiments.checks import CheckContext, plan_cells, read_rows, run_check
from vfassoc.experiments.results import render_checks
from vfassoc.experiments.worlds import WORLDS, Sources, World, draw_world, find_sources
from vfassoc.models.cca import canonical_directions, cca_model
from vfassoc.synthetic.twin import read_twin_truth
from vfassoc.training.run import open_corpus

TINY = World('twin', dict(session=.7), people=24, videos=3, items=1, changes={
    'train.total_samples': 96, 'train.lr_warmup': 8, 'train.batch_size': 8, 'model.dim': 16})
ROWS = {'CID': METHODS['CID'], 'CMPC': METHODS['CMPC'], CCA: MethodRow({'name': CCA, 'dim': 8, 'ridge': .1})}


@pytest.fixture(scope='module')
def checked(tmp_path_factory):
    "A folder with both tables: three methods in a world of 24 people, and a map of two points."
    folder = tmp_path_factory.mktemp('check')
    ini(folder)
    cfg, said = CheckContext(folder/'runs'/'check', here(folder), budget=1), []
    published = folder/'figures'/'published'
    plan = plan_cells({'tiny': TINY}, ROWS, (), 1, ['published'])
    assert run_check(plan, published/'reality-check.csv', cfg, 1, say=said.append) == (3, 3)
    axes = {'session': (*regimes.AXES['session'][:2], (.7,), (0., 1.))}
    plan = regimes.plan_maps(('CID', 'CMPC'), 1, axes, TINY)
    assert run_check(plan, published/'regimes.csv', cfg, 1, extra=regimes.EXTRA, say=said.append) == (4, 4)
    assert all(': done (' in line for line in said), said
    return folder


@pytest.fixture(scope='module')
def rendered(checked):
    "The same folder with a page, into which both reports have put their sections."
    with pytest.MonkeyPatch.context() as m:
        m.setenv('VFASSOC_SETTINGS', str(checked/'settings.ini'))
        (checked/'RESULTS.md').write_text('# Results\n\n## Sweep `a`\n\nkept\n\n## Reality check\n\nold\n')
        render_checks(checked/'RESULTS.md', here(checked))
    return checked


def text_of(folder, report):
    html = (folder/'figures'/'results'/report/f'{report}.html').read_text()
    assert unsafe(html) == []
    return ' '.join(BeautifulSoup(html, 'html.parser').get_text(' ').split())


def test_the_reality_report_says_what_the_rows_say(rendered):
    rows = read_rows(rendered/'figures/published/reality-check.csv')
    assert len(rows) == 5 and set(rows.commit.str.len() >= 7) == {True}
    text, last = text_of(rendered, 'reality_check'), rows[rows.weights == 'last'].set_index('method')
    assert f'{last.U["CMPC"]:.1f}' in text and f'{last.gap["CID"]:.1f}' in text
    assert f'undecided: 1 seed U {last.U["CMPC"] - last.U["CID"]:+.1f}' in text
    assert 'Fused is better than cosine not run' in text and 'twin, strong session' in text # among the absent worlds


def test_the_map_report_draws_the_points(rendered):
    rows = read_rows(rendered/'figures/published/regimes.csv', regimes.EXTRA)
    d = regimes.map_differences(rows, 'session', 'CMPC')
    wide = rows[rows.weights == 'last'].pivot_table('U', ['x', 'y'], 'method')
    np.testing.assert_allclose(d.value, (wide.CMPC - wide.CID).to_numpy())
    assert 'Not run: videos, deviates, clusters' in text_of(rendered, 'regimes')


def test_results_gain_the_sections_and_keep_the_others(rendered):
    text = (rendered/'RESULTS.md').read_text()
    assert text.count('## Reality check') == 1 and '\nold\n' not in text and '\nkept\n' in text
    assert '## Regime maps' in text
    names = re.findall(r'\((figures/published/[\w-]+\.png)\)', text)
    assert len(names) == 3 # last step, best epoch; the map
    for name in names: assert (rendered/name).read_bytes()[:4] == b'\x89PNG', name


def test_finished_cells_are_not_run_again_and_a_limit_stops(checked, tmp_path, monkeypatch):
    cfg, table = CheckContext(tmp_path/'check', here(tmp_path), budget=1), tmp_path/'t.csv'
    plan = plan_cells({'tiny': TINY}, ROWS, (), 1, ['published'])
    rows = read_rows(checked/'figures/published/reality-check.csv')
    rows[rows.method != 'CMPC'].to_csv(table, index=False)
    seen = []
    monkeypatch.setattr(checks, 'cell_rows', lambda cell, cfg: seen.append(cell.method) or [])
    assert run_check(plan, table, cfg, 1) == (2, 3) and seen == ['CMPC']
    assert run_check(plan, table, cfg, 1, limit_minutes=1e-9) == (2, 3) and len(seen) <= 2
    tuned = plan_cells({'tiny': TINY}, ROWS, (), 1, ['tuned'])
    assert not any(checks.is_done(c, rows, 1) for c in tuned)


def test_a_study_of_another_budget_or_table_is_another_cell(tmp_path):
    few, more = (CheckContext(tmp_path/'check', here(tmp_path), budget=n) for n in (1, 2))
    cell, = plan_cells({'tiny': TINY}, {'CID': METHODS['CID']}, (), 1, ['tuned'])
    first = checks.cell_rows(cell, few)
    assert {r['trials'] for r in first} == {1} and checks.is_done(cell, pd.DataFrame(first), 1)
    assert not checks.is_done(cell, pd.DataFrame(first), 2)
    winner = (best := next((tmp_path/'check'/'studies').rglob('best.json'))).read_text()
    checks.tuned_recipe(cell, few)
    assert best.read_text() == winner and few.run(cell) != more.run(cell)
    old = few.run(cell)/'rows.json'
    write_json(old, [dict(r, version=checks.VERSION - 1, U=-1.) for r in first])
    assert all(r['U'] > 0 for r in checks.cell_rows(cell, few))


def test_two_identities_may_share_a_video(tmp_path):
    root = tmp_path/'twin'
    draw_world(TINY, root, 0, find_sources(), here(tmp_path))
    truth = read_twin_truth(root)[0]
    truth = truth.iloc[[0, -1]].assign(video='both', deviate=['none', 'voice'])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(checks, 'read_twin_truth', lambda root: (truth, None, None))
        found = checks._deviates(truth[['identity', 'video']], open_corpus(str(root), here(tmp_path)))
    assert list(found) == ['none', 'voice']


def test_cca_has_no_cell_where_there_are_no_vectors():
    plan = plan_cells(WORLDS, METHODS, (), 1, ['published'])
    kinds = {c.place.kind for c in plan if c.row.method['name'] == CCA}
    assert 'twin' in kinds and 'media' not in kinds and 'media' in {c.place.kind for c in plan}


def test_a_failed_cell_does_not_stop_the_others(tmp_path):
    bad = {'bad': MethodRow({'name': 'cid', 'tau': -1.}), CCA: ROWS[CCA]}
    plan = plan_cells({'tiny': TINY}, bad, (), 1, ['published'])
    said = []
    assert run_check(plan, tmp_path/'t.csv', CheckContext(tmp_path/'c', here(tmp_path)), 1, say=said.append) == (1, 2)
    assert 'tau = -1.0' in said[0] and set(read_rows(tmp_path/'t.csv').method) == {CCA}


def test_every_method_has_a_recipe_in_every_world():
    for world in WORLDS.values():
        for name, row in METHODS.items():
            if row.method['name'] == CCA or row.start: continue
            recipe = method_recipe(world, row, {'corpus': 'x'})
            assert recipe.uses_labels == ('labels' in name), name


def test_the_claims_name_methods_of_the_check():
    known = {v for m, r in METHODS.items() for v in (r.views or {m: ''})}
    for c in reality.CLAIMS: assert {c.method, c.baseline} - {''} <= known, c.text
    assert len(reality.CLAIMS) == 12 and set(regimes.MAPPED) <= known


@pytest.mark.parametrize('arguments, where', [
    (['reality', '--budget', '0'], 'budget = 0'), (['reality', '--only', 'mars'], "world = 'mars'"),
    (['reality', '--only', 'twin, middle session/magic'], "method = 'magic'"),
    (['regimes', '--only', 'x'], "map = 'x'"), (['reality', '--seeds', '-1'], 'seeds = -1'),
    (['regimes', '--seeds', '0'], 'seeds = 0'), (['reality', '--people', 'nowhere'], 'people = nowhere')])
def test_bad_input_is_one_line(arguments, where, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('VFASSOC_SETTINGS', str(ini(tmp_path)))
    monkeypatch.chdir(tmp_path)
    assert main(['check', *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert where in err and err.count('\n') == 0
    assert not (tmp_path/'figures').exists()


def test_a_table_of_another_version_is_refused(checked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('VFASSOC_SETTINGS', str(ini(tmp_path)))
    t = pd.read_csv(checked/'figures/published/reality-check.csv')
    for name, table in (('old', t.assign(version=0)), ('less', t.drop(columns='gap'))):
        table.to_csv(tmp_path/f'{name}.csv', index=False)
        before = (tmp_path/f'{name}.csv').read_bytes()
        assert main(['check', 'reality', '--table', str(tmp_path/f'{name}.csv')]) == 2
        assert 'another version' in capsys.readouterr().err and (tmp_path/f'{name}.csv').read_bytes() == before


def test_worlds_without_a_source_are_skipped_visibly(tmp_path, monkeypatch):
    monkeypatch.delenv('VFASSOC_SHARED', raising=False)
    assert find_sources() == Sources()
    said, plan = [], plan_cells({k: w for k, w in WORLDS.items() if w.kind == 'people'}, ROWS, (), 1, ['published'])
    assert run_check(plan, tmp_path/'t.csv', CheckContext(tmp_path/'c', here(tmp_path)), 1, say=said.append) == (0, 0)
    assert len(said) == 3 and all('skipped, the vectors of MAV-Celeb' in line for line in said)
    with pytest.raises(ConfigError, match='no features.npz'): find_sources(str(tmp_path))


def test_real_people_are_split_by_person_and_copies_are_out(tmp_path):
    "Needs the vectors of MAV-Celeb v1."
    sources = find_sources()
    if not sources.people: pytest.skip('VFASSOC_SHARED does not lead to corpora/mavceleb-v1')
    tested = []
    for fold in (0, 1):
        root = tmp_path/f'fold{fold}'
        draw_world(WORLDS['people, Urdu to English'], root, fold, sources, here(tmp_path))
        m = open_corpus(str(root), here(tmp_path))
        assert set(m.table.language[m.table.split == 'test']) == {'English'}
        assert set(m.table.language[m.table.split != 'test']) == {'Urdu'}
        tested.append(set(m.table.identity[m.table.split == 'test']))
        x = load_features(root/'features.npz')
        for part in (x.voice, x.face):
            assert len(np.unique(np.asarray(part), axis=0)) == len(part)
    assert not tested[0] & tested[1]


# ---- rules, without training

def media(identity, video): return pd.DataFrame(dict(identity=identity, video=video, gender=['f']*len(identity)))


def test_a_pair_of_two_people_from_one_recording_is_no_trial():
    voices, faces = media(list('aab'), ['1', '2', '1']), media(list('aab'), ['1', '2', '1'])
    scores = np.array([[.9, .5, 9.], [.2, .8, .4], [9., .3, .7]]) # 9: voice of a, face of b, both of video 1
    found = cells.pair_scores(scores, voices, faces)
    wrong, other, own = [.4, .3], [.5, .2], [.9, .8, .7]
    def area(mine): return 100*np.mean([(x > y) for x in mine for y in wrong])
    assert found['U'] == found['G'] == pytest.approx(area(other))
    assert found['U mixture'] == pytest.approx(area(other + own)) and found['gap'] == pytest.approx(100 - area(other))


def test_a_verdict_needs_three_seeds_and_every_score():
    def rows(seeds, gain):
        return pd.DataFrame([dict(method=m, seed=s, world='w', **{
            k: 50 + 1e-3*s*(m == 'CMPC') + gain.get(k, 1.)*(m == 'CMPC') for k in reality.SCORES})
            for s in range(seeds) for m in ('CID', 'CMPC')], columns=['method', 'seed', 'world', *reality.SCORES])
    def said(seeds, **gain): return reality.judge(reality.claim_differences(reality.CLAIMS[0], rows(seeds, gain)))
    assert [said(n) for n in (0, 1, 2, 3)] == ['not run', 'undecided: 1 seed', 'undecided: 2 seeds', 'holds']
    assert said(3, G=-1.) == 'undecided' and said(3, U=-1., G=0., **{'mAP V-F': 0., 'mAP F-V': 0.}) != 'holds'
    assert said(3, **dict.fromkeys(reality.SCORES, -1.)) == 'fails'


def test_purity_of_best_weights_is_not_called_not_run():
    rows = pd.DataFrame([dict(world='w', method='CMPC', setting='published', seed=s, weights=w, trials=0,
                              **{'rho AUROC': 40. + s/10 if w == 'last' else np.nan}, U=60.)
                         for s in range(3) for w in ('last', 'best')])
    rho = [c for c in reality.CLAIMS if c.scores == ('rho AUROC',)]
    said = [reality.claims_table(rows, ('published', w), ['w'], rho)['w'][0] for w in ('last', 'best')]
    assert said[0].startswith('fails') and said[1] == 'of the last step only'
    assert reality.claims_table(rows[:0], ('published', 'best'), ['w'], rho)['w'][0] == 'not run'


def test_a_line_turns_where_it_crosses_zero():
    line = pd.DataFrame(dict(x=[0., 1., 3.], value=[-1., 3., -3.]))
    assert regimes.turning_points(line) == pytest.approx([.25, 2.])


def test_cca_weighs_directions_by_their_correlation():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 2))
    v = np.concatenate([z, rng.normal(size=(2000, 4))], 1)
    f = np.concatenate([z + .5*rng.normal(size=(2000, 2)), rng.normal(size=(2000, 4))], 1)
    a, b, r = canonical_directions(v, f, 6, ridge=1e-6)
    np.testing.assert_allclose(r[:2], np.sqrt(1/1.25), atol=.02)
    assert r[2:].max() < .1
    model = cca_model(torch.from_numpy(v), torch.from_numpy(f), 6)
    weight = model.voice.linear.weight.norm(dim=1).detach().numpy()
    assert weight[:2].min() > 8*weight[2:].max()
