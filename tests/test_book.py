"""The site: built without a warning, every link leads somewhere, and a browser finds nothing to complain about.

The whole site is that of `make book`, if nothing has changed since; else six notebooks make a small one."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROOT

sys.path.insert(0, str(ROOT/'book'))
import build
import docments

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


SOME = ('00_start/02_notation', '05_clustering/02_kmeans', '06_losses/02_prototype', '09_evaluation/01_metrics',
        '12_appendix/01_core', 'reports/evaluate')


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    "The site that `make book` has built from what lies here now; else a small one."
    record = ROOT/'_docs/sources.txt'
    if record.is_file() and record.read_text() == build.sources(): return ROOT/'_docs/html'
    out = tmp_path_factory.mktemp('book')
    r = subprocess.run([sys.executable, str(ROOT/'book/build.py'), '--output', str(out), '--runs', str(out/'no-runs'),
                        '--chapters', *SOME], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    assert not (out/'sources.txt').exists(), 'a small site does not pass for the whole'
    return out/'html'


def test_every_chapter_and_module_has_a_page(site, tmp_path):
    "Sphinx reads all of the stage; of a small site those that it was asked for are there."
    stage = build.Stage(ROOT, tmp_path/'stage')
    all_chapters = {p.relative_to(ROOT/'nbs').with_suffix('').as_posix() for p in (ROOT/'nbs').glob('*/*.ipynb')}
    assert {f.removesuffix('.ipynb') for f in stage.there.values() if f.endswith('.ipynb')} == all_chapters
    assert stage.modules == build.public_modules()
    small = site.parent != ROOT/'_docs'
    modules = stage.modules_of([ROOT/'nbs'/f'{c}.ipynb' for c in SOME]) if small else stage.modules
    assert [c for c in (SOME if small else all_chapters) if not (site/f'{c}.html').is_file()] == []
    assert modules and [m for m in modules if not (site/'api'/f'{m}.html').is_file()] == []


def test_a_change_of_any_source_is_noticed(tmp_path, monkeypatch):
    "Else an old site would pass for the present one."
    files = ['README.md', 'nbs/01_a/01_b.ipynb', 'vfassoc/a/b.py', 'book/static/book.css', 'figures/published/a.png']
    for f in files:
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/f).write_text('')
    monkeypatch.setattr(build, 'ROOT', tmp_path)
    seen = {build.sources()}
    for f in files:
        (tmp_path/f).write_text('x')
        seen.add(build.sources())
    (tmp_path/files[1]).rename(tmp_path/'nbs/01_a/02_b.ipynb')
    assert len(seen | {build.sources()}) == len(files) + 2


def test_chapters_show_no_directives_and_no_hidden_cells(site):
    for page in site.glob('*_*/*.html'):
        assert not re.search(r'#\|\s*(export|hide|default_exp|eval)', page.read_text(encoding='utf-8')), page


def test_the_reference_has_shapes_and_meanings(site):
    module = next(m for m in build.public_modules() if m.endswith('losses.prototype'))
    text = (site/'api'/f'{module}.html').read_text(encoding='utf-8')
    assert 'table' in text and '(b, d) embeddings of one modality, unit norm' in text
    assert 'temperature of eq. (6)' in text


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path/'a.html').write_text('<a href="b.html">x</a><a href="a.html#there">y</a><h1 id="here"></h1><a '
                                   'href="#here">z</a>')
    assert [re.sub('.*: ', '', x) for x in build.broken_links(tmp_path)] == [
        'b.html leads to no file', 'a.html#there leads to no anchor']


def test_a_page_that_fetches_from_elsewhere_is_found(tmp_path):
    (tmp_path/'a.html').write_text('<script src="https://cdn.example/x.js"></script><a '
                                   'href="https://example.org">fine</a>')
    assert build.broken_links(tmp_path) == ['a.html: <script> fetches https://cdn.example/x.js']


def test_links_of_the_repository_become_links_of_the_site(tmp_path):
    here, chapter = tmp_path/'README.md', tmp_path/'nbs/01_a/02_b.ipynb'
    there = {chapter: '01_a/02_b.ipynb'}
    text = 'See [the *b* [1]](nbs/01_a/02_b.ipynb#part), [code](tests/x.py), [web](https://example.org).'
    assert build.linked(text, here, there) == ('See [the *b* [1]](/01_a/02_b.ipynb#part), code (`tests/x.py`), '
                                               '[web](https://example.org).')


def test_bars_and_stars_of_docstrings_are_text():
    assert docments.prose('norm |a| of `x*y` in *b*') == r'norm \|a\| of ``x*y`` in \*b\*'

    def f(
        x:int, # (b, d) rows
        y=None, # what |y| is
    ) -> float: # the sum
        pass
    rows = '\n'.join(docments.table(f))
    assert '``x``' in rows and '``int``' in rows and '(b, d) rows' in rows and r'\|y\|' in rows and 'the sum' in rows


@pytest.mark.skipif(not CHROMIUM, reason='no Chromium on this machine (Debian: apt-get install chromium)')
def test_a_browser_finds_no_error_and_asks_nobody(site):
    from playwright.sync_api import sync_playwright
    chapters = sorted(site.glob('[0-9]*/*.html'))
    visited = [site/'index.html', chapters[0], chapters[len(chapters)//2],
               next(c for c in chapters if 'prototype' in c.name)]
    complaints, foreign = [], []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1400, height=900))
        page.on('console', lambda m: complaints.append(f'{m.type}: {m.text}') if m.type in ('error', 'warning')
                else None)
        page.on('pageerror', lambda e: complaints.append(str(e)))
        page.on('request', lambda r: foreign.append(r.url) if not r.url.startswith(('file:', 'data:', 'blob:'))
                else None)
        for file in visited:
            page.goto(file.as_uri())
            assert page.locator('h1').first.inner_text()
        page.goto((site/'search.html').as_uri() + '?q=prototype')
        page.wait_for_selector('ul.search li')
        found = page.locator('ul.search li').all_inner_texts()
        browser.close()
    assert any('rototyp' in x for x in found)
    assert complaints == [] and foreign == []
