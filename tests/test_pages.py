"What a page shows of names that hold markup, of warnings, of wide tables; and that it loads and runs nothing."
import shutil

import nbformat, pandas as pd, pytest
from bs4 import BeautifulSoup

from fake_run import make_run
from hostile import ODD, unsafe
from vfassoc.core import ConfigError, read_json, write_json
from vfassoc.experiments import runner, tables
from vfassoc.experiments.runner import run_report

pytestmark = pytest.mark.usefixtures('warm_kernels')

def text_of(html:str) -> str: return ' '.join(BeautifulSoup(html, 'html.parser').get_text(' ').split())

def shows(html:str, name:str, times:int=1) -> bool:
    "Is `name` on the page, letter by letter, at least so many times?"
    return BeautifulSoup(html, 'html.parser').get_text().count(name) >= times

def notebook(*cells, outputs=()):
    new = nbformat.v4
    return new.new_notebook(cells=[*cells, new.new_code_cell('1', outputs=list(outputs))],
                            metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3',
                                                     'language': 'python'}})

def shown(**data):
    return nbformat.v4.new_output('display_data',
                                  {k.replace('_', '/', 1).replace('__', '+'): v for k,v in data.items()})

@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "A run whose method, people, notes and folder have odd names; and its corpus."
    d = tmp_path_factory.mktemp('odd')
    corpus = d/'c <b> $x$ *y*'
    run = make_run(d/'r <i> $x$ *y*', corpus, name=ODD)
    t = pd.read_parquet(run/'embeddings.parquet')
    t['identity'] += ODD
    t.to_parquet(run/'embeddings.parquet')
    m = read_json(run/'metrics.json')
    write_json(run/'metrics.json', {**m, 'notes': [ODD]})
    return run, corpus

# ---- names

def test_unsafe_notices():
    good = (f'<head><meta http-equiv="Content-Security-Policy" content="{runner.POLICY}"><title>t</title></head>'
            '<img src="data:x"><a href="https://a">t</a>')
    assert not unsafe(good)
    for bad in (good.replace("'none'", '*'), good.replace('img-src', "script-src 'unsafe-inline'; img-src"),
                good.replace('<head>', '<head><style>p{}</style>'), good.replace('img-src data:', 'img-src *'),
                *(good + x for x in ('<script>1</script>', '<iframe srcdoc="x"></iframe>', '<p onclick="x">',
                                     '<img src="http://a/b">', '<a href="javascript:x">', '<link href="x">'))):
        assert unsafe(bad), bad

def test_evaluate_shows_odd_names_as_they_are(odd, tmp_path):
    run, corpus = odd
    _, page = run_report('evaluate', tmp_path/'r',
                         dict(runs=[run], figures=tmp_path/'f', examples=1, top=2, title=ODD), code='hide', quiet=True)
    html = page.read_text()
    assert unsafe(html) == []
    assert shows(html, ODD, 2 + 1 + 3), 'title, note, and a row of three tables'
    assert shows(html, run.name) and 'Example left out' not in html and html.count('<audio') == 1 + 2
    _, page = run_report('evaluate', tmp_path/'r',
                         dict(runs=[run], figures=tmp_path/'f', examples=1, corpus=str(corpus/ODD.replace('/', '-'))),
                         quiet=True)
    assert unsafe(page.read_text()) == [] and shows(page.read_text(), ODD.replace('/', '-'))

def test_an_example_that_cannot_be_shown_is_named(odd, tmp_path):
    "A file name is text from data too, and an error repeats it."
    run, corpus = odd
    shutil.copytree(run, tmp_path/'run')
    t = pd.read_parquet(tmp_path/'run'/'embeddings.parquet')
    t['path'] += '<img src=x onerror=f()>*z*.wav'
    t.to_parquet(tmp_path/'run'/'embeddings.parquet')
    _, page = run_report('evaluate', tmp_path/'r', dict(runs=[tmp_path/'run'], figures=tmp_path/'f', examples=1),
                         code='hide', quiet=True)
    assert unsafe(page.read_text()) == [] and shows(page.read_text(),
                                                    'Example left out') and shows(page.read_text(),
                                                                                  '<img src=x onerror=f()>*z*.wav')

def test_the_three_forms_of_a_table(odd):
    t = tables.paper_table(tables.read_scores([odd[0]]))
    html = tables.as_html(t, caption=ODD).to_html()
    soup = BeautifulSoup(html, 'html.parser')
    assert soup.caption.get_text() == ODD and ODD in {th.get_text()
                                                      for th in soup.select('th.row_heading')} and not soup(
                                                          ['img', 'iframe', 'script'])
    rows = tables.as_markdown(t).splitlines()
    assert len({len(r.replace('\\|', '').split('|')) for r in rows}) == 1, 'a bar in a name is no column'

def test_provenance_shows_odd_values(tmp_path):
    source = tmp_path/'a <b> & $c$ *d*.ipynb'
    nb = notebook()
    nb.cells.insert(0, nbformat.v4.new_markdown_cell('# Small'))
    nb.cells.insert(1, nbformat.v4.new_code_cell("x = ''", metadata={'tags': ['parameters']}))
    nbformat.write(nb, source)
    _, page = run_report(source, tmp_path/'r', {'x': ODD}, quiet=True)
    assert unsafe(page.read_text()) == [] and shows(page.read_text(),
                                                    repr(ODD)) and shows(page.read_text(), source.name)

# ---- pages

@pytest.mark.parametrize('markdown', [ODD, f'**{ODD}**', f'- {ODD}', '<div>\n\n<img src=x onerror=f()>\n\n</div>',
                                      '<script>f()</script>', '<svg/onload=f()>', '[a](vbscript:f())',
                                      '<a href="javascript:f()">x</a>'])
def test_markdown_of_outputs_runs_nothing(markdown):
    "Also a report of one's own that forgets `literal`: a second fence."
    html = runner.to_html(notebook(outputs=[shown(text_markdown=markdown)]), 't')
    # a picture from elsewhere: the policy does not let it load
    assert [b for b in unsafe(html) if 'http://a.b' not in b] == []

def test_stderr_widgets_and_scripts_are_not_on_the_page():
    new = nbformat.v4
    outputs = [new.new_output('stream', name='stderr', text='TqdmWarning: IProgress not found'),
               new.new_output('stream', name='stdout', text='kept'),
               new.new_output('display_data',
                              {'application/vnd.jupyter.widget-view+json': {'model_id': 'x'},
                               'text/plain': 'FloatProgress'}),
               new.new_output('display_data', {'application/javascript': 'f()'})]
    nb = notebook(outputs=outputs)
    html = runner.to_html(nb, 't')
    assert 'IProgress' not in html and 'FloatProgress' not in html and 'f()' not in html and 'kept' in html and unsafe(
        html) == []
    assert 'jp-OutputArea-output"' in html.split('kept')[0][
        -400:] and 'application/vnd.jupyter.stderr' not in html.split('</style>')[-1]
    assert len(nb.cells[-1].outputs) == 4, 'the executed notebook keeps them'

def test_progress_of_any_kind_leaves_no_box(tmp_path):
    source = tmp_path/'bars.ipynb'
    new = nbformat.v4
    nb = new.new_notebook(cells=[new.new_markdown_cell('# Bars'),
                                 new.new_code_cell('n = 1', metadata={'tags': ['parameters']}),
                                 new.new_code_cell('import warnings\nwarnings.simplefilter("always")\nfrom tqdm.auto '
                                                   'import tqdm\nfrom vfassoc.core import progress'),
                                 new.new_code_cell("for _ in tqdm(range(3), desc='first'): pass\nfor _ in "
                                                   "progress(range(3), desc='second'): pass\nprint('end')")],
                         metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}})
    nbformat.write(nb, source)
    out, page = run_report(source, tmp_path/'r', {}, quiet=True)
    assert 'TqdmWarning' not in out.read_text(), 'ipywidgets is a declared dependency'
    body = page.read_text().split('<body')[1]
    text = text_of(body)
    assert 'end' in text and '3/3' not in text and '100%' not in text and 'application/vnd.jupyter.stderr' not in body

# ---- the name of a result

@pytest.mark.parametrize('given, name', [('v1.2', 'v1.2'), ('v1.3', 'v1.3'), ('v1.2.html', 'v1.2'),
                                         ('v1.2.ipynb', 'v1.2'), ('a', 'a'), ('.hidden', '.hidden')])
def test_a_name_keeps_its_dots(tmp_path, given, name):
    source = tmp_path/'small.ipynb'
    nb = notebook()
    nb.cells.insert(0, nbformat.v4.new_code_cell('n = 1', metadata={'tags': ['parameters']}))
    nbformat.write(nb, source)
    out, page = run_report(source, tmp_path/'out'/given, {}, quiet=True)
    assert (out.name, page.name) == (f'{name}.ipynb',
                                     f'{name}.html') and {p.name for p in (tmp_path/'out').iterdir()} == {
                                         out.name, page.name}

@pytest.mark.parametrize('given', ['.', '/', '..', ''])
def test_a_result_needs_a_name(tmp_path, given):
    with pytest.raises(ConfigError) as e: runner.result_name(given)
    assert repr(given) in str(e.value) or repr(given or '.') in str(e.value)

def test_the_command_keeps_the_name(tmp_path, odd, monkeypatch, capsys):
    from vfassoc.cli import main
    monkeypatch.setattr(runner, 'run_report', lambda nb, out,
                        given: (None, runner.result_name(out).with_name(runner.result_name(out).name + '.html')))
    for name in ('v1.2', 'v1.3', 'v1.2.html'):
        main(['report', 'evaluate', '--run', str(odd[0]), '-o', str(tmp_path/name)])
    assert [line.rpartition('/')[2]
            for line in capsys.readouterr().out.split()] == ['v1.2.html', 'v1.3.html', 'v1.2.html']

# ---- in a browser

def test_in_a_browser_a_page_runs_nothing_and_its_tables_scroll(tmp_path):
    "A page full of what could run, with a table of 60 columns; the browser may load nothing but the page."
    sync = pytest.importorskip('playwright.sync_api')
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if not chromium: pytest.skip('no Chromium on this machine')
    wide = tables.as_html(pd.DataFrame([['12.3 [11.1, 13.3]']*60], index=['method'],
                                       columns=pd.MultiIndex.from_product([range(6), range(10)]))).to_html()
    bad = ''.join(f'<img src=x onerror="{w}"><script>{w}</script><iframe '
                  f'srcdoc="<script>parent.{w}</script>"></iframe><img src="http://127.0.0.1:9/a.png">'
                  for w in ['document.title = 1'])
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><script>document.title = 1</script></svg>'
    html = runner.to_html(notebook(outputs=[shown(text_html=wide + bad), shown(image_svg__xml=svg)]), 'title')
    (tmp_path/'page.html').write_text(html)
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        try:
            tab = browser.new_page(viewport={'width': 1100, 'height': 600})
            asked = []
            tab.on('request', lambda r: asked.append(r.url))
            tab.on('requestfailed', lambda r: asked.remove(r.url)) # refused by the policy before it left
            tab.goto((tmp_path/'page.html').as_uri())
            assert tab.title() == 'title' and [a for a in asked if not a.startswith(('file:', 'data:', 'about:'))] == []
            box = tab.evaluate(
                """() => { let t = document.querySelector('table'), b = t.closest('.jp-OutputArea-output');
                return {table: t.scrollWidth, box: b.clientWidth, inside: b.scrollWidth,
                        overflow: getComputedStyle(b).overflowX, page: document.documentElement.scrollWidth} }""")
            assert box['table'] > 2000 and box['box'] < 1100 and box['inside'] >= box['table'] and box[
                'overflow'] == 'auto' and box['page'] <= 1100, box
        finally: browser.close()
