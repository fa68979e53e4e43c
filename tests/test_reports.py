"Reports at tiny scale: errors before, during and after the run of a notebook, and the content of a good page."
import hashlib, json, math, re

import nbformat, numpy as np, pandas as pd, pytest
from bs4 import BeautifulSoup
from matplotlib import pyplot as plt

from checkout import ROOT
from fake_run import make_grid, make_run
from vfassoc.core import ConfigError, RunError, read_json, write_json
from vfassoc.experiments import diagnostics as traces, plots, runner, tables, tsne
from vfassoc.experiments.comparison import paired_differences
from vfassoc.experiments.runner import declared, find_report, parse_parameters, run_report
from vfassoc.inference.calibration import Calibration
from vfassoc.inference.errors import run_errors

EVALUATE = ROOT/'nbs'/'reports'/'evaluate.ipynb'
pytestmark = pytest.mark.usefixtures('warm_kernels') # but for the fixture `made`, whose kernel is a new interpreter

def report(path, *cells, parameters="text = 'x'\nn = 1\nrate = 0.5\nflag = True\nnames = []", marked=1, markdown=None):
    new = nbformat.v4
    first = [new.new_code_cell(parameters, metadata={'tags': ['parameters']}) for _ in range(marked)]
    nb = new.new_notebook(cells=[new.new_markdown_cell(markdown or '# Small'), *first, *map(new.new_code_cell, cells)],
                          metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}})
    nbformat.write(nb, path)
    return path

def one_line(e): return '\n' not in str(e.value)

# ---- before it runs

@pytest.mark.parametrize('parameters, word', [
    ({'txet': 'y'}, "unknown parameter 'txet'"), ({'n': 1.5}, 'not of type int'), ({'n': True}, 'not of type int'),
    ({'n': '1'}, 'not of type int'),
    ({'rate': 'fast'}, 'not of type float'), ({'flag': 1}, 'not of type bool'), ({'text': None}, 'not of type str'),
    ({'names': 'a'}, 'not of type list'),
])
def test_wrong_parameters_run_nothing(tmp_path, parameters, word):
    source = report(tmp_path/'small.ipynb', f'open({str(tmp_path/"ran")!r}, "w")')
    with pytest.raises(ConfigError, match=word) as e: run_report(source, tmp_path/'out'/'r', parameters, quiet=True)
    assert one_line(e) and sorted(p.name for p in tmp_path.iterdir()) == ['small.ipynb']

@pytest.mark.parametrize('marked', [0, 2])
def test_one_parameters_cell(tmp_path, marked):
    with pytest.raises(ConfigError, match=f'{marked} cells are tagged') as e:
        run_report(report(tmp_path/'small.ipynb', '1', marked=marked), tmp_path/'r', {})
    assert one_line(e)

@pytest.mark.parametrize('source', ['n:int = 1', 'n = 1 + 1', 'n = m = 1', 'n, m = 1, 2', 'import os', 'n = f(1)',
                                    'n = (', 'n.a = 1'])
def test_parameters_are_plain_literals(tmp_path, source):
    with pytest.raises(ConfigError, match='parameters') as e:
        declared(report(tmp_path/'small.ipynb', '1', parameters=source))
    assert one_line(e)

def test_comments_and_equal_signs_do_not_confuse(tmp_path):
    source = report(tmp_path/'small.ipynb', '1', parameters="a = 'x=y' # '' = nothing\nb = {'k': [1, None]}\nc = -1")
    assert declared(source) == {'a': 'x=y', 'b': {'k': [1, None]}, 'c': -1}

@pytest.mark.parametrize('content', [None, '', 'not json', '{}', '[]', '{"cells": 3}'])
def test_not_a_notebook(tmp_path, content):
    path = tmp_path/'broken.ipynb'
    if content is not None: path.write_text(content)
    with pytest.raises(ConfigError) as e: run_report(path, tmp_path/'r', {})
    assert str(path) in str(e.value) and one_line(e)

def test_find_report(tmp_path, monkeypatch):
    monkeypatch.delenv('VFASSOC_SETTINGS', raising=False)
    monkeypatch.chdir(ROOT/'tests')
    assert find_report('evaluate') == find_report('evaluate.ipynb') == EVALUATE
    monkeypatch.chdir(tmp_path)
    assert find_report('evaluate') == EVALUATE, 'a clone\'s library finds the clone\'s reports from any folder'
    with pytest.raises(ConfigError, match='no-such') as e: find_report('no-such')
    assert one_line(e) and 'evaluate' in str(e.value)
    mine = tmp_path/'nbs'/'reports'
    mine.mkdir(parents=True)
    assert find_report('evaluate') == EVALUATE
    (mine/'evaluate.ipynb').write_text('mine')
    assert find_report('evaluate') == mine/'evaluate.ipynb', 'the clone one works in comes first'
    monkeypatch.setenv('VFASSOC_SETTINGS', str(ROOT/'settings.ini'))
    assert find_report('evaluate') == EVALUATE

def test_command_line_parameters(tmp_path):
    source = report(tmp_path/'small.ipynb', '1')
    assert parse_parameters(source, ['n=3', 'text=3', "names=['a=b']", 'flag=False', 'rate=2']) == \
           {'n': 3, 'text': '3', 'names': ['a=b'], 'flag': False, 'rate': 2}
    for bad, word in (('n=x', 'not of type int'), ('n', 'name=value'), ('m=1', 'unknown')):
        with pytest.raises(ConfigError, match=word): parse_parameters(source, [bad])

# ---- while it runs

def test_values_arrive_unchanged(tmp_path):
    "Quotes, newlines, letters of any alphabet and braces, in values and in paths."
    folder = tmp_path/'out {x} größe'
    folder.mkdir()
    values = dict(text='a "b" \'c\' \\n {d}\n é 声 <i>', names=['x = 1', '{y}'], n=-3, rate=1e-9, flag=False)
    source = report(folder/'small.ipynb', 'import json\nprint(json.dumps([text, names, n, rate, flag]))')
    out, page = run_report(source, folder/'res.v1', values, quiet=True)
    assert (out.name, page.name) == ('res.v1.ipynb', 'res.v1.html')
    nb = nbformat.read(out, as_version=4)
    printed = [c.outputs[0].text for c in nb.cells if c.cell_type == 'code' and c.outputs][0]
    assert json.loads(printed) == [values[k] for k in ('text', 'names', 'n', 'rate', 'flag')]
    assert nb.metadata.vfassoc.parameters == values and nb.metadata.vfassoc.sha256 == hashlib.sha256(
        source.read_bytes()).hexdigest()
    last = nb.cells[-1].source
    assert last.startswith('## Provenance') and nb.metadata.vfassoc.python in last
    assert repr(values['text']) in BeautifulSoup(page.read_text(),
                                                 'html.parser').get_text(), 'a value is text, not markup'

def test_a_failing_cell_keeps_the_old_result(tmp_path):
    source = report(tmp_path/'small.ipynb', '# a comment\nx = 12345',
                    "if not flag:\n    raise ValueError('first\\nsecond')\nx")
    out, page = run_report(source, tmp_path/'out'/'r', {}, quiet=True)
    before = out.read_bytes(), page.read_bytes()
    with pytest.raises(RunError) as e: run_report(source, tmp_path/'out'/'r', {'flag': False}, quiet=True)
    assert one_line(e) and "cell 3 under 'Small' (`if not flag:`): ValueError: first second" in str(
        e.value) and 'r.failed.ipynb' in str(e.value)
    assert (out.read_bytes(), page.read_bytes()) == before
    assert sorted(p.name for p in out.parent.iterdir()) == ['r.failed.ipynb', 'r.html', 'r.ipynb']
    failed = nbformat.read(out.with_name('r.failed.ipynb'), as_version=4)
    assert any(o.output_type == 'error' and o.ename == 'ValueError' for c in failed.cells for o in c.get('outputs', []))
    run_report(source, tmp_path/'out'/'r', {}, quiet=True)
    assert sorted(p.name for p in out.parent.iterdir()) == [
        'r.html', 'r.ipynb'], 'a failure that was repaired leaves nothing behind'

def test_cell_number_without_given_parameters(tmp_path):
    with pytest.raises(RunError, match=r'cell 2 under .Small. \(`1/0`\): ZeroDivisionError'):
        run_report(report(tmp_path/'small.ipynb', '1/0'), tmp_path/'r', {}, quiet=True)

def test_a_kernel_that_dies(tmp_path):
    source = report(tmp_path/'small.ipynb', 'import os\nos._exit(1)')
    with pytest.raises(RunError, match=f'^{source}: ') as e: run_report(source, tmp_path/'out'/'r', {}, quiet=True)
    assert one_line(e) and not (tmp_path/'out'/'r.ipynb').exists() and not list((tmp_path/'out').glob('.*'))

def test_no_such_kernel(tmp_path):
    with pytest.raises(ConfigError, match="no Jupyter kernel 'python2'") as e:
        run_report(report(tmp_path/'small.ipynb', '1'), tmp_path/'out'/'r', {}, kernel='python2', quiet=True)
    assert one_line(e) and not list(tmp_path.glob('out/*'))

def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(RunError, match=f'{tmp_path}/file/r') as e:
        run_report(report(tmp_path/'small.ipynb', '1'), tmp_path/'file'/'r', {}, quiet=True)
    assert one_line(e)

def test_a_full_disk_keeps_the_old_result(tmp_path, monkeypatch):
    source = report(tmp_path/'small.ipynb', 'n')
    out, page = run_report(source, tmp_path/'out'/'r', {}, quiet=True)
    assert nbformat.read(out, as_version=4).metadata.vfassoc.parameters == declared(
        source), 'defaults are on record too'
    before = out.read_bytes(), page.read_bytes()
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(runner.nbformat, 'write', full)
    with pytest.raises(RunError, match=f'{tmp_path}/out.*No space left') as e:
        run_report(source, tmp_path/'out'/'r', {'n': 2}, quiet=True)
    assert one_line(e) and (out.read_bytes(), page.read_bytes()) == before
    assert not list(out.parent.glob('.*'))

def test_the_source_is_not_overwritten(tmp_path):
    source = report(tmp_path/'small.ipynb', '1')
    before = source.read_bytes()
    with pytest.raises(ConfigError, match="output = '.*/small"): run_report(source, tmp_path/'small', {}, quiet=True)
    assert source.read_bytes() == before

def test_code_is_folded_shown_or_hidden():
    new = nbformat.v4
    nb = new.new_notebook(cells=[new.new_raw_cell('---\nskip_exec: true\n---'), new.new_code_cell('answer = 42')])
    pages = {k: runner.to_html(nb, 'T & t', code=k) for k in ('fold', 'show', 'hide')}
    assert {k: ('<details' in p, '42' in BeautifulSoup(p, 'html.parser').get_text()) for k,p in pages.items()} == \
           {'fold': (True, True), 'show': (False, True), 'hide': (False, False)}
    assert all('skip_exec' not in p and '<title>T &amp; t</title>' in p for p in pages.values())
    with pytest.raises(ConfigError, match="code = 'no'"): runner.to_html(nb, 't', code='no')

def test_pictures_of_markdown_cells_are_in_the_page(tmp_path):
    fig, ax = plots.subplots()
    fig.savefig(tmp_path/'a.png')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('![picture](a.png)')])
    assert outside(runner.to_html(nb, 't', tmp_path)) == []

# ---- the evaluation report

def outside(html:str) -> list[str]:
    "Every address that a browser would fetch to show the page."
    soup = BeautifulSoup(html, 'html.parser')
    found = [t[a] for t in soup.find_all(True) for a in ('src', 'href', 'srcset', 'data', 'poster') if t.get(a)
             and t.name != 'a']
    style = ' '.join([*(t.get_text() for t in soup.find_all('style')),
                      *(t['style'] for t in soup.find_all(style=True))])
    found += re.findall(r'url\(\s*["\']?([^)"\']+)', style) + re.findall(r'@import\s+["\']([^"\']+)', style)
    found += re.findall(r'https?://[^\s"\'`)]+', ' '.join(t.get_text() for t in soup.find_all('script')))
    return [f for f in found if not f.startswith(('data:', '#'))]

def test_outside_notices():
    for html in ('<script src="https://a/b.js"></script>', '<link rel="stylesheet" href="//a/b.css">',
                 '<img src="x.png">', '<audio><source src="http://a"></audio>',
                 '<style>@import "http://a"; p {background: url(http://b)}</style>',
                 '<script type="module">import m from "https://a"</script>',
                 '<script>const u = await import("https://a")</script>'):
        assert outside(html), html
    assert not outside('<a href="https://a">text</a><img src="data:image/png;base64,xx"><svg><use href="#a"/></svg>')

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    d = tmp_path_factory.mktemp('fake')
    return [make_run(d/'runs'/f'cid-{s}', d/'corpus', s)
            for s in range(2)] + [make_run(d/'runs'/'other', d/'corpus', 0, 'Other <b>', 3.)]

def fingerprint(folders):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for d in folders for p in d.rglob('*') if p.is_file()}

@pytest.fixture(scope='module')
def made(runs, tmp_path_factory):
    d = tmp_path_factory.mktemp('report')
    before = fingerprint(runs)
    out, page = run_report(EVALUATE, d/'evaluate',
                           dict(runs=runs, figures=d/'figures', examples=1, top=3, title='Tiny'), quiet=True)
    return out, page, d/'figures', before == fingerprint(runs)

def test_reads_run_folders_and_writes_nothing_there(made): assert made[3]

def test_page_needs_no_network(made): assert outside(made[1].read_text()) == []

def test_page_has_the_scores_of_the_runs(made, runs):
    text = BeautifulSoup(made[1].read_text(), 'html.parser').get_text(' ')
    for r, n in ((runs[:2], 2), (runs[2:], 1)):
        auc = np.mean([next(s['value'] for s in read_json(p/'metrics.json')['scores'] if (s['metric'], s['stratum']) ==
                            ('auc', 'G')) for p in r])
        assert f'{100*auc:.1f}' in text
    rows = {th.get_text() for th in BeautifulSoup(made[1].read_text(), 'html.parser').select('th.row_heading')}
    assert {'CID (2 seeds)', 'Other <b>', 'chance', 'ceiling'} <= rows, 'a method\'s name is text, not markup'
    assert 'no age in this corpus' in text and 'same-video positives' in text and 'Tiny' in text

def test_page_has_pictures_and_sound(made):
    soup = BeautifulSoup(made[1].read_text(), 'html.parser')
    assert len(
        soup.select(
            'audio source[src^="data:audio/wav"]')) == 1 + 3, 'a probe voice; the first three voices for a probe face'
    assert len(soup.select('img[src^="data:image/png"]')) == 7
    assert {p.name for p in made[2].iterdir()} == {f'{n}.png' for n in ('verification', 'matching', 'roc', 'scores',
                                                                        'training', 'retrieval-voice-1',
                                                                        'retrieval-face-1')}

def table_under(page, heading):
    "The first table of a section, as texts."
    soup = BeautifulSoup(page.read_text(), 'html.parser')
    rows = next(h for h in soup.find_all('h2') if h.get_text().startswith(heading)).find_next('table').find_all('tr')
    head, *body = [[c.get_text() for c in r.find_all(['th', 'td'])] for r in rows]
    return pd.DataFrame(body, columns=head)

@pytest.fixture(scope='module')
def errors_page(tmp_path_factory):
    "The report of one run with a calibration and one without; 1 person is enough for a group."
    d = tmp_path_factory.mktemp('errors')
    runs = [make_run(d/'runs'/n, d/'corpus', 0, n, 2.) for n in ('calibrated', 'plain')]
    write_json(runs[0]/'calibration.json', Calibration(6., -1.5, threshold=.3, threshold_low=.2, threshold_high=.4,
                                                       rate=.02, identities=5, trials=50).table())
    _, page = run_report(EVALUATE, d/'r', dict(runs=runs, figures=d/'f', examples=0, least=2, rate=.1), quiet=True)
    return runs, page, d/'f'

def test_the_page_shows_calibration(errors_page):
    runs, page, figures = errors_page
    t = table_under(page, 'Calibration').set_index('run')
    assert t['chosen on'].to_dict() == {'calibrated': 'validation identities', 'plain': 'test trials'}
    assert t.threshold['calibrated'] == '0.300 [0.200, 0.400]' and t['C_llr, bit']['plain'] == '–'
    assert t['false-match rate, %'].astype(float).to_dict() == {'calibrated': 2, 'plain': 10}
    pairs = pd.read_parquet(runs[0]/'trials.parquet').query('task == "verification" and stratum == "U"')
    pairs = pairs[(pairs.label == 0) | (pairs.positives == 'other_videos')]
    cost = {k: np.mean([math.log2(1 + math.exp(-sign*(6*s - 1.5))) for s in pairs.score[pairs.label == k]])
            for k, sign in ((1, 1), (0, -1))}
    assert t['C_llr, bit']['calibrated'].startswith(f'{(cost[0] + cost[1])/2:.3f} [')
    assert (figures/'reliability.png').is_file() and 'plain: not calibrated; run' in said(page)

def test_the_page_shows_errors_by_group(errors_page):
    runs, page, _ = errors_page
    t = table_under(page, 'Error rates by group').query('run == "calibrated"').set_index('group')
    assert list(t.index) == ['all', 'gender f', 'gender m', 'nationality India', 'nationality USA']
    assert t.identities.astype(int).tolist() == [8, 4, 4, 4, 4]
    pairs = pd.read_parquet(runs[0]/'trials.parquet').query('task == "verification" and stratum == "U"')
    voices = pd.read_parquet(runs[0]/'embeddings.parquet').query('modality == "voice"')
    wrong = {0: [], 1: []}
    for p in pairs.itertuples():
        if voices.gender.iloc[p.voice] == 'f' and (p.label == 0 or p.positives == 'other_videos'):
            wrong[p.label].append((p.score > .3) != p.label)
    for k, name in enumerate(('false matches, %', 'false non-matches, %')):
        assert t[name]['gender f'].startswith(f'{100*np.mean(wrong[k]):.1f} [')

def test_a_calibration_of_other_weights_is_not_shown(tmp_path, runs):
    path = make_run(tmp_path/'run', tmp_path/'corpus', 0)
    (path/'checkpoints').mkdir()
    (path/'checkpoints'/'best.safetensors').write_bytes(b'other')
    write_json(path/'calibration.json', Calibration(6., -1.5, weights='abc').table())
    found = run_errors(path, replicates=20)
    assert found.bins is None and 'other weights' in found.note and found.rate == .01

def test_roc_curve_agrees_with_the_table(made, runs):
    "The AUC in the legend comes from the trials, the one in the table from metrics.json."
    t = pd.read_parquet(runs[2]/'trials.parquet').query('stratum == "U" and task == "verification"')
    ax = plots.roc({'m': (t.label, t.score)})
    value = next(s['value'] for s in read_json(runs[2]/'metrics.json')['scores'] if (s['metric'], s['stratum']) ==
                 ('auc', 'U'))
    assert ax.get_legend().get_texts()[-1].get_text() == f'm, AUC {100*value:.1f}'

def test_a_corpus_that_is_gone_is_said_in_its_place(runs, tmp_path, monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'agg') # as on many servers: a notebook then shows no figures by itself
    out, page = run_report(EVALUATE, tmp_path/'r',
                           dict(runs=runs[:1], figures=tmp_path/'f', corpus=str(tmp_path/'gone')), quiet=True)
    assert 'The corpus is not at' in page.read_text() and 'Provenance' in page.read_text()
    assert 'roc.png' in {p.name for p in (tmp_path/'f').iterdir()} and '<audio' not in page.read_text()
    assert len(BeautifulSoup(page.read_text(), 'html.parser').select('img[src^="data:image/png"]')) == 5

def test_a_run_without_scores_is_one_line(tmp_path):
    write_json(tmp_path/'run'/'config.json', {'name': 'x'})
    with pytest.raises(RunError, match='metrics.json: no such file') as e:
        run_report(EVALUATE, tmp_path/'r', dict(runs=[tmp_path/'run']), quiet=True)
    assert one_line(e) and not (tmp_path/'r.html').exists()

# ---- tables and plots

def test_old_runs_name_the_scorer_by(tmp_path, runs):
    "The metrics.json of old runs has `by` where new ones have `scorer`; both are read alike."
    m, path, found = read_json(runs[0]/'metrics.json'), make_run(tmp_path/'old', tmp_path/'corpus', 4), []
    for word in ('by', 'scorer'):
        mine = {**m, 'by_positives': [], 'scores': [{**s, word: 'cosine'} for s in m['scores']]}
        write_json(path/'metrics.json', mine)
        found.append(tables.read_scores([path]))
    assert found[0].equals(found[1]) and set(found[0].scorer) == {'cosine'}
    assert found[0].method.str.endswith(', cosine').all()

def test_tables_of_odd_runs(tmp_path, runs):
    with pytest.raises(RunError, match=f'^{tmp_path}: '): tables.read_scores([tmp_path])
    with pytest.raises(RunError, match='^report: '): tables.read_scores([])
    with pytest.raises(RunError, match=f'^{runs[0]} and {tmp_path}/b: '):
        tables.read_scores([runs[0], make_run(tmp_path/'b', tmp_path/'corpus', 3, corpus_hash='other')])
    with pytest.raises(RunError, match=f'^{runs[0]} and {runs[0]}: '): tables.read_scores([runs[0], runs[0]])
    seen = make_run(tmp_path/'seen', tmp_path/'corpus', 0, protocol='seen')
    assert 'CID, seen-heard' in tables.paper_table(
        tables.read_scores([runs[0], seen])).index, 'people the model has met are another protocol'
    m = read_json(runs[0]/'metrics.json')
    old = make_run(tmp_path/'old', tmp_path/'corpus', 4)
    write_json(old/'metrics.json', {**m, 'schema': 0})
    with pytest.raises(RunError, match='schema 0'): tables.read_scores([old])
    write_json(old/'metrics.json', {**m, 'scores': m['scores'] + m['scores'][:1]})
    with pytest.raises(RunError, match=f'^{old}: '): tables.paper_table(tables.read_scores([old]))
    write_json(old/'metrics.json', {**m, 'scores': []})
    assert 'CID' not in tables.as_text(tables.paper_table(tables.read_scores([runs[0]]),
                                                          tables.VERIFICATION[3:4]).iloc[1:])

def test_the_three_forms_say_the_same(runs):
    t = tables.paper_table(tables.read_scores(runs))
    cells = {c for c in t.to_numpy().ravel() if c != '–'}
    html = BeautifulSoup(tables.as_html(t).to_html(), 'html.parser').get_text()
    for c in cells: assert c in tables.as_text(t) and c in tables.as_markdown(t) and c.replace(' [', '[') in html
    assert len({l.count('|') for l in tables.as_markdown(t).splitlines()}) == 1

def test_merged_seeds_are_a_mean_over_runs(runs):
    s = tables.read_scores(runs)
    one = 'method == "CID" and metric == "auc" and stratum == "U" and positives == "mixture"'
    m, x = tables.merge_seeds(s).query(one), s.query(one).value.to_numpy()
    assert len(x) == 2 and m.value.item() == pytest.approx(x.mean()) and m.seeds.item() == 2
    assert m.high.item() == pytest.approx(min(1, x.mean() + 12.7062*abs(x[0] - x[1])/2), rel=1e-4)

def test_plots_of_little_data():
    "One method, equal scores, nothing known about the ceiling, a run that was never validated: still a figure."
    y, s = np.array([0, 1, 0, 1]), np.zeros(4)
    plots.roc({'m': (y, s)}, ceiling=float('nan')), plots.score_histogram(y, s)
    plots.bars(['U'], {'m': np.array([[.6, np.nan, np.nan]])}, ceiling=np.array([np.nan]))
    fig = plots.training_curves({'m': pd.DataFrame(dict(epoch=[1], loss=[2.], valid_auc=[np.nan], lr=[.1]))})
    assert [a.get_ylabel() for a in fig.axes] == ['training loss', 'learning rate']
    plots.training_curves({'m': pd.DataFrame(dict(epoch=[], loss=[]))})
    assert not plt.get_fignums(), 'figures are not kept open'

# ---- grids that lack something

def rows_of(page) -> dict:
    "Label of each row of a page's first table of scores -> its cells."
    table = next(t for t in BeautifulSoup(page.read_text(), 'html.parser').select('table')
                 if t.select('th.row_heading'))
    return {tr.th.get_text(): [td.get_text() for td in tr.select('td')] for tr in table.select('tbody tr')}

def said(page) -> str: return ' '.join(BeautifulSoup(page.read_text(), 'html.parser').get_text(' ').split())

@pytest.mark.parametrize('seeds, verdict', [(1, 'undecided'), (2, 'undecided'), (3, 'better')])
def test_better_needs_three_seeds(tmp_path, seeds, verdict):
    grid = make_grid(tmp_path/'g', tmp_path/'corpus', {'CID': seeds, 'strong': seeds})
    _, page = run_report('compare', tmp_path/'r', dict(grid=grid, figures=tmp_path/'f'), code='hide', quiet=True)
    found = re.findall(
        r'AUC, U, other videos: strong against CID: .{4,40}?, (\d) seeds?: '
        r'(undecided|better|worse|no difference seen)', said(page))
    assert found == [(str(seeds), verdict)]
    d = paired_differences(tables.read_scores([grid/f'v{i}/seed{s}' for i in (0, 1) for s in range(seeds)]),
                           'CID').query('metric == "auc" and stratum == "U"').iloc[0]
    assert d.value > .1 and np.isfinite([d.low, d.high]).all() == (
        seeds > 1), 'the interval is shown, the word is not said'

def test_compare_with_what_a_grid_has(tmp_path):
    grid = make_grid(tmp_path/'g', tmp_path/'corpus', {'CID': 3, 'B': 1}, {'CID': 3, 'B': 2, 'FAA <b>': 3})
    _, page = run_report('compare', tmp_path/'r', dict(grid=grid, figures=tmp_path/'f'), code='hide', quiet=True)
    rows = rows_of(page)
    assert set(rows['FAA <b>']) == {'–'} and rows['CID (3 seeds)'][0] != '–' and 'B, seed 1; FAA <b>, seed 0' in said(
        page)
    titles = [c.get_text() for c in BeautifulSoup(page.read_text(), 'html.parser').select('caption')]
    assert titles == list(tables.TITLES.values()), 'one table below the other: other videos, mixture, gap'
    places = [(tmp_path/'f'/'compare.md').read_text().index(f'*{t}*') for t in titles]
    assert places == sorted(places)
    _, page = run_report('compare', tmp_path/'r', dict(grid=grid, figures=tmp_path/'f', baseline='FAA <b>'),
                         code='hide', quiet=True)
    assert 'FAA <b>' in said(page) and 'CID (3 seeds)' in rows_of(page)

@pytest.mark.parametrize('name', ['ablation_cmpc', 'ablation_faa'])
def test_ablations_with_what_a_grid_has(tmp_path, name):
    grid = make_grid(tmp_path/'g', tmp_path/'corpus', {'CID': 3, '+ prototypes': 2, 'late': 1})
    plan = read_json(grid/'grid.json')
    write_json(grid/'grid.json', {**plan, 'cells': [{**c, 'seed': 7} if c['variant'] == 'late' else c
                                                    for c in plan['cells']]})
    c = read_json(grid/'v2/seed0/config.json')
    write_json(grid/'v2/seed0/config.json', {**c, 'train': {**c['train'], 'seed': 7}})
    asked = dict(grid=grid, figures=tmp_path/'f', variants=['late', '+ prototypes', 'CID', 'gone'])
    _, page = run_report(name, tmp_path/'r', dict(asked, baseline='CID'), code='hide', quiet=True)
    assert set(rows_of(page)['gone']) == {'–'} and 'gone' in said(page) and {'CID (3 seeds)', '+ prototypes (2 seeds)',
                                                                             'late'} <= rows_of(page).keys()
    assert re.search(r'AUC, U, other videos: late against CID: –, no shared seed: undecided',
                     said(page)) and re.search(r'\+ prototypes against CID: \+\d.{4,40}?, 2 seeds: undecided',
                                               said(page))
    _, page = run_report(name, tmp_path/'r', dict(asked, baseline='gone'), code='hide', quiet=True)
    assert 'finished runs of gone' in said(page)

# ---- runs that are not what they are called

CMPC = {'name': 'cmpc', 'num_prototypes': [4], 'cid_samples': 2000}

def test_a_run_that_never_left_its_warm_up(tmp_path):
    short, long, cid = (make_run(tmp_path/k, tmp_path/'corpus', i, name, method=m) for i, (k, name, m) in enumerate(
        [('short', 'CMPC', CMPC), ('long', 'CMPC 300', {**CMPC, 'cid_samples': 300}),
         ('cid', 'CID', {**CMPC, 'prototypes': False, 'recalibration': False})]))
    assert tables.warmup_only(short) == '640 samples trained, prototypes begin after 2000' and not tables.warmup_only(
        long) and not tables.warmup_only(cid)
    t = tables.paper_table(tables.read_scores([short, long, cid]))
    assert list(t.index[:3]) == ['CMPC (warm-up only)', 'CMPC 300', 'CID']
    assert all('CMPC (warm-up only)' in form
               for form in (tables.as_text(t), tables.as_markdown(t), tables.as_html(t).to_html()))
    assert [n for n in tables.read_notes([short, long, cid])
            if 'CMPC' in n] == ['CMPC (short): warm-up only, so it equals CID: 640 samples trained, prototypes begin '
                                'after 2000']
    h = pd.read_csv(long/'history.csv').assign(prototypes=0)
    h.to_csv(long/'history.csv', index=False)
    assert tables.warmup_only(long), 'the epochs were few: the clustering never came'
    h.assign(prototypes=[0, 0, 0, 1, 1, 0]).to_csv(long/'history.csv', index=False)
    assert not tables.warmup_only(long)
    two = [short, make_run(tmp_path/'second', tmp_path/'corpus', 5, 'CMPC', method=CMPC)]
    assert tables.paper_table(tables.read_scores(two)).index[0] == 'CMPC (2 seeds, warm-up only)'

def test_reports_say_that_a_run_never_left_its_warm_up(tmp_path):
    grid = make_grid(tmp_path/'g', tmp_path/'corpus', {'CID': 1, 'CMPC': 1}, CMPC=CMPC)
    for name, asked in (('compare', dict(grid=grid)), ('evaluate', dict(runs=[grid/'v1'/'seed0'], examples=0))):
        _, page = run_report(name, tmp_path/name, dict(asked, figures=tmp_path/'f'), code='hide', quiet=True)
        text = said(page)
        assert 'CMPC (warm-up only)' in text and '640 samples trained, prototypes begin after 2000' in text

# ---- figures

@pytest.mark.parametrize('voices', [True, False])
def test_captions_under_examples_are_inside_the_picture(voices):
    voice, face = np.zeros((64, 300)), np.zeros((60, 60, 3), np.uint8)
    probe, items = (face, [voice]*5) if voices else (voice, [face]*5)
    fig = plots.retrieval(probe, items, [True]*5, ['0.71 of a video']*5, 'title')
    fig.draw_without_rendering()
    box = fig.bbox
    for ax in fig.axes[1:]:
        text = ax.xaxis.label
        at = text.get_window_extent()
        assert '0.71 of a video' in text.get_text() and at.y0 >= box.y0 and at.y1 <= box.y1, 'cut off'

def test_the_chance_line_lies_on_white_above_the_bars():
    ax = plots.bars(['U'], {'m': np.array([[.8, .7, .9]])}, chance=np.array([.5]))
    white, black = (c for c in ax.collections if c.get_segments() and c.get_segments()[0][0][1] ==
                    c.get_segments()[0][-1][1])
    assert min(white.get_zorder(), black.get_zorder()) > max(p.get_zorder() for p in ax.patches)
    assert white.get_zorder() < black.get_zorder()
    assert white.get_linewidth()[0] > black.get_linewidth()[0] and tuple(white.get_color()[0][:3]) == (1, 1, 1)

def test_the_legend_of_rho_stands_beside_the_marks():
    ax = traces.rho_histogram(np.linspace(-1, 1, 50), ['none']*40 + ['noise']*10, 0., [-1., 0., 1.])
    ax.figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1

@pytest.mark.parametrize('epochs', [[2], [2, 3], [1, 2, 3, 4]])
def test_epochs_are_whole_numbers(epochs):
    ax = traces.epoch_lines(pd.DataFrame(dict(epoch=epochs, x=np.linspace(.4, .6, len(epochs)))), {'x': 'x'}, 'y', .5)
    ax.axvline(epochs[0])
    shown = [t for t in ax.get_xticks() if ax.get_xlim()[0] <= t <= ax.get_xlim()[1]]
    assert shown and all(t == round(t) for t in shown) and set(shown) <= set(range(6)) and set(shown) & set(epochs)
    curves = plots.training_curves({'m': pd.DataFrame(dict(epoch=epochs,
                                                           valid_auc=[.5 + .001*e for e in epochs]))}).axes[0]
    shown = [t for t in curves.get_xticks() if curves.get_xlim()[0] <= t <= curves.get_xlim()[1]]
    assert all(t == round(t)
               for t in shown) and np.diff(curves.get_ylim())[0] >= 15, 'AUC 50.1 to 50.4 does not fill the axis'

def test_twelve_people_have_twelve_marks():
    picked = pd.DataFrame([dict(identity=f'id{i:02d}', gender='mf'[i % 2], modality=m) for i in range(12)
                           for m in ('voice', 'face') for _ in range(3)])
    ax = tsne.draw_map(np.random.default_rng(0).normal(size=(len(picked), 2)), picked)
    look = {(tuple(c.get_paths()[0].vertices.ravel().round(3)), len(c.get_facecolor()) > 0) for c in ax.collections}
    assert len(look) == 24, 'a shape for each person, filled for faces and open for voices'
    two = np.array([[0, 0], [0, 1], [1, 0], [9, 9], [9, 8.]])
    assert tsne.medoid(two).tolist() in two.tolist()
