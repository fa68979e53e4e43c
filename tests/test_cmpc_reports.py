"The reports of CMPC at tiny scale: what is on the page is what is in the run folders."
import re, shutil

import numpy as np
import pandas as pd
import pytest

from tiny_grid import here, page, tiny
from vfassoc.core import RunError, read_json, write_json
from vfassoc.experiments import tables
from vfassoc.experiments.comparison import paired_differences
from vfassoc.experiments.diagnostics import read_traces, rho_table, training_videos
from vfassoc.experiments.runner import run_report

@pytest.fixture
def grid(cmpc_grid): return cmpc_grid


def points(d): return f'{100*d.value:+.2f} points [{100*d.low:+.2f}, {100*d.high:+.2f}]'


@pytest.fixture(autouse=True)
def settings(grid, monkeypatch): monkeypatch.setenv('VFASSOC_SETTINGS', str(grid/'settings.ini'))


def test_ablation(grid, tmp_path):
    soup, text, figures = page('ablation_cmpc', tmp_path, grid=str(grid/'runs/g'),
                               variants=['CID', '+ prototypes', 'CMPC', 'CMPC as released'], title='Tiny')
    scores = tables.read_scores([grid/'runs/g'/v/f'seed{s}' for v in ('cid', 'prototypes', 'cmpc', 'cmpc-as-released')
                                 for s in (0, 1)])
    one = 'method == "CMPC" and metric == "auc" and stratum == "G" and positives == "mixture"'
    mean = scores.query(one).value.mean()
    assert f'{100*mean:.1f}' in text and 'Tiny' in text
    assert 'CMPC (2 seeds)' in text and 'CMPC as released (2 seeds)' in text
    d = paired_differences(scores, 'CID').query(one).iloc[0]
    assert f'CMPC against CID: {points(d)}, 2 seeds: undecided' in text
    assert figures == {'differences.png', 'training.png'} and len(soup.select('img[src^="data:image/png"]')) == 2


def test_ablation_says_what_is_missing(grid, tmp_path):
    with pytest.raises(RunError, match="g: .*'CMCP'.* CID"):
        run_report('ablation_cmpc', tmp_path/'a', dict(grid=str(grid/'runs/g'), variants=['CMCP']), quiet=True)


def test_rho_histogram(grid, tmp_path):
    runs = [str(grid/'runs/g/cmpc'/f'seed{s}') for s in (0, 1)]
    soup, text, figures = page('rho_histogram', tmp_path, runs=runs, examples=3, seconds=1.)
    assert len(soup.select('audio source[src^="data:audio/wav"]')) == 3 and {'rho.png', 'auroc.png', 'rho-a.png',
                                                                             'rho-b.png', 'rho-c.png'} <= figures
    videos, _ = training_videos(runs[0], here(grid))
    shown = int(re.search(r'Epoch (\d+), mean over 2 run', text)[1])
    mean = np.mean([rho_table(read_traces(r), videos.deviate).set_index('epoch').rho[shown] for r in runs])
    assert re.search(rf'AUROC of ρ {mean:.3f}', text)
    low, high = (float(x) for x in re.findall(r'\([ac]\) id\d+: ρ = ([+-][\d.]+)', text))
    t = read_traces(runs[0])[shown]
    rho = (t['cosine'] - t['agreement'])
    assert abs(low - rho[rho.isfinite()].min()) < .006 and abs(high - rho[rho.isfinite()].max()) < .006


def test_rho_histogram_of_a_run_without_prototypes(grid, tmp_path):
    with pytest.raises(RunError, match='cid/seed0: '):
        run_report('rho_histogram', tmp_path/'a', dict(runs=[str(grid/'runs/g/cid/seed0')]), quiet=True)


def test_a_run_without_traces(grid, tmp_path):
    shutil.copytree(grid/'runs/g/cid/seed0', tmp_path/'run')
    shutil.rmtree(tmp_path/'run'/'traces')
    with pytest.raises(RunError, match=r'run: .*train\.trace=true'): read_traces(tmp_path/'run')


def test_tsne(grid, tmp_path):
    runs = [str(grid/'runs/g'/v/'seed0') for v in ('cid', 'cmpc', 'supervised')]
    soup, text, figures = page('tsne', tmp_path, runs=runs, identities=4, items=3)
    assert figures == {'tsne.png'} and len(
        soup.select('td')) > 24 and 'the 4 on the map' in text and 'all test identities' in text
    with pytest.raises(RunError, match='tsne.*identities = 99'):
        run_report('tsne', tmp_path/'b', dict(runs=runs, identities=99), quiet=True)


def test_claims(grid, tmp_path):
    soup, text, figures = page('claims_cmpc', tmp_path, grid=str(grid/'runs/g'), cmpc='CMPC', coarse='+ prototypes')
    assert {f'claim-{k}.png' for k in (1, 2, 3, 4)} == figures
    scores = tables.read_scores([grid/'runs/g'/v/f'seed{s}' for v in ('cid', 'cmpc') for s in (0, 1)])
    one = 'metric == "auc" and stratum == "U" and positives == "mixture"'
    d = paired_differences(scores, 'CID').query(one).iloc[0]
    assert f'AUC, U, mixture: CMPC against CID: {points(d)}, 2 seeds: undecided' in text
    videos, _ = training_videos(grid/'runs/g/cmpc/seed0', here(grid))
    end = np.mean([rho_table(read_traces(grid/'runs/g/cmpc'/f'seed{s}'), videos.deviate).rho.iloc[-1] for s in (0, 1)])
    assert f'AUROC of ρ, CMPC, last epoch (seeds: 2): {end:.3f}' in text
    assert 'CMPC, 2 shots against its start' in text


def only(grid, folder, variants):
    "A grid of which only these variants exist, on the runs of the whole one."
    plan = read_json(grid/'runs/g/grid.json')
    cells = [{**c, 'path': str(grid/'runs/g'/c['path'])} for c in plan['cells'] if c['variant'] in variants]
    write_json(folder/'grid.json', {**plan, 'variants': {v: plan['variants'][v] for v in variants}, 'cells': cells})
    return str(folder)


@pytest.mark.parametrize('variants, missing, figures', [
    (['CID', 'supervised'], ['CMPC', 'few prototypes'], {'claim-1.png'}),
    (['CMPC', 'CMPC, 2 shots'], ['CID', 'few prototypes'], {'claim-2.png', 'claim-3.png', 'claim-4.png'}),
    (['CMPC, 2 shots'], ['CID', 'CMPC', 'few prototypes'], set()),
])
def test_claims_with_what_a_grid_has(grid, tmp_path, variants, missing, figures):
    soup, text, drawn = page('claims_cmpc', tmp_path, grid=only(grid, tmp_path/'part', variants), cmpc='CMPC',
                             coarse='few prototypes')
    assert drawn == figures
    rows = {tr.th.get_text(): [td.get_text() for td in tr.select('td')]
            for tr in soup.select('table')[0].select('tbody tr')}
    assert all(set(rows[m]) == {'–'} for m in missing) and '; '.join(missing) in text
    assert all(any(c != '–' for c in rows[f'{v} (2 seeds)']) for v in variants)


@pytest.mark.parametrize('name', ['claims_faa', 'ablation_faa'])
def test_reports_of_faa_on_a_grid_without_it(grid, tmp_path, name):
    "Every claim says that its variants are not there."
    asked = dict(grid=str(grid/'runs/g'), **(dict(variants=['FAA', 'CID'], baseline='multi-similarity') if name ==
                                             'ablation_faa' else {}))
    soup, text, drawn = page(name, tmp_path, **asked)
    rows = {tr.th.get_text(): [td.get_text() for td in tr.select('td')] for tr in soup.select('tbody tr') if tr.th}
    assert set(rows['FAA']) == {'–'} and 'CID (2 seeds)' in rows and 'differences.png' not in drawn and not any(
        f.startswith('claim') for f in drawn)


def test_train(grid, tmp_path):
    changes = {**tiny().changes, 'method.num_prototypes': [4, 8], 'method.cid_samples': 32}
    small = dict(recipe='cmpc-demo', run=str(tmp_path/'run'), changes=changes,
                 protocol=dict(replicates=100, verification_trials=200, matching_trials=100, candidates=[2]))
    soup, text, figures = page('train', tmp_path, **small)
    assert '12 steps done' in text and figures == {'training.png',
                                                   'method.png'} and len(pd.read_csv(tmp_path/'run/history.csv')) == 3
    auc = next(s['value'] for s in read_json(tmp_path/'run/metrics.json')['scores'] if (s['metric'], s['stratum']) ==
               ('auc', 'U'))
    assert f'{100*auc:.1f}' in text and 'checkpoint_every' in text
