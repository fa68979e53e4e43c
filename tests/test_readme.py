"README and the other pages: short, and every command on them can be given."
import re
import shlex

import pytest

from checkout import ROOT
from vfassoc.cli import parser
from vfassoc.experiments.runner import find_report
from vfassoc.experiments.sweeps import load_grid
from vfassoc.training.recipes import load_recipe

PAGES = ('README.md', 'RESULTS.md', 'VOXCELEB1.md', 'LIBRI_LFW.md', 'CONTRIBUTING.md', 'data/README.md')


def commands(page):
    "The words of every `vfassoc` command in the code blocks of a page."
    blocks = (ROOT/page).read_text(encoding='utf-8').split('```')[1::2]
    lines = [line.split(' #')[0].strip() for block in blocks for line in block.split('\n')]
    return [shlex.split(line)[1:] for line in lines if re.match(r'(\.venv/bin/)?vfassoc ', line)]


def test_readme_has_at_most_120_lines():
    assert len((ROOT/'README.md').read_text(encoding='utf-8').splitlines()) <= 120


@pytest.mark.parametrize('page', PAGES)
def test_every_command_on_a_page_can_be_given(page):
    for words in commands(page):
        a = parser().parse_args(words)
        if words[0] in ('train', 'flops'): load_recipe(a.recipe)
        if words[0] == 'sweep': load_grid(a.grid)
        if words[0] == 'report': find_report(a.name)


def test_the_pages_have_commands():
    assert len(commands('README.md')) >= 5 and len(commands('VOXCELEB1.md')) >= 15 and len(
        commands('LIBRI_LFW.md')) >= 10


@pytest.mark.parametrize('page', [p for p in PAGES if (ROOT/p).is_file()] +
                         ['CHANGELOG.md', 'notes/negative-results.md'])
def test_every_link_on_a_page_leads_to_a_file(page):
    here = (ROOT/page).parent
    targets = re.findall(r'\]\(([^)\s#]+)[^)]*\)', (ROOT/page).read_text(encoding='utf-8'))
    assert [t for t in targets if '://' not in t and not (here/t).exists()] == []


def test_the_map_names_every_part():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    parts = sorted(p.name for p in (ROOT/'nbs').iterdir() if p.is_dir() and any(p.glob('*.ipynb')))
    assert [p for p in parts if f'nbs/{p}/' not in text] == []
