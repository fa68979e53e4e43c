"The wheel holds the library and its reports and nothing else, declares ranges, and works where the repository is not."
import email, shutil, site, subprocess, sys, zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from checkout import ROOT, call, copy_to, modules

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built from a source distribution of a copy of the repository, like `pip install` does; without
    network: the build backend of this environment builds it."""
    out = tmp_path_factory.mktemp('wheel')
    call(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, cwd=copy_to(out/'house'))
    return next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """Python of an environment into which only the wheel was installed.

    Its dependencies are this environment's, found through a `.pth` line: Python reads no further `.pth` files from such
    a folder, so an editable install of this repository stays invisible. Another test checks that the wheel *declares*
    them."""
    env = tmp_path_factory.mktemp('empty')
    call(sys.executable, '-m', 'venv', '--without-pip', env, cwd=env)
    python = env/'bin'/'python'
    call(sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check', '--python', python, 'install', '--no-deps',
         '--no-index', wheel, cwd=env)
    folder = Path(call(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=env).strip())
    (folder/'dependencies.pth').write_text('\n'.join(site.getsitepackages()) + '\n')
    return python

REPORTS = {f'vfassoc/experiments/notebooks/{p.name}': p for p in sorted((ROOT/'nbs'/'reports').glob('*.ipynb'))}

def test_holds_the_library_and_its_reports_and_nothing_else(wheel):
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n}
    demo = {f'vfassoc/inference/demo/{p.name}' for p in (ROOT/'vfassoc'/'inference'/'demo').iterdir()}
    assert 'vfassoc/inference/demo/model.safetensors' in demo
    tables = {'vfassoc/experiments/printed.csv', *demo}
    assert inside - REPORTS.keys() == {p.as_posix() for p in modules()} | tables
    folders = {Path(n).parent.as_posix() for n in inside - REPORTS.keys() - demo}
    assert folders == {Path(n).parent.as_posix() for n in inside
                       if n.endswith('/__init__.py')}, 'a folder of modules without __init__.py'

def test_reports_are_those_of_the_book(wheel):
    z = zipfile.ZipFile(wheel)
    assert REPORTS and {n: z.read(n) for n in z.namelist()
                        if n.endswith('.ipynb')} == {n: p.read_bytes() for n,p in REPORTS.items()}

def test_declares_ranges(wheel):
    z = zipfile.ZipFile(wheel)
    meta = email.message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith('METADATA'))))
    # an extra may name another extra
    needs = [r for r in map(Requirement, meta.get_all('Requires-Dist')) if r.name != 'vfassoc']
    plain = {r.name for r in needs if not r.marker}
    assert {'torch', 'torchaudio', 'torchvision', 'accelerate', 'papermill'} <= plain
    assert not {'nbdev', 'jupytext', 'pytest'} & plain, 'what only developers need belongs to the extra `dev`'
    assert all(r.specifier for r in needs) and not any(s.operator in ('==', '===') for r in needs if not r.marker
                                                       for s in r.specifier)
    assert meta['Requires-Python'] and '3.11' in meta['Requires-Python']
    assert b'vfassoc = vfassoc.cli:main' in z.read(next(n for n in z.namelist() if n.endswith('entry_points.txt')))

def test_every_module_imports_outside_the_repository(python, tmp_path):
    names = ['.'.join(p.with_suffix('').parts).removesuffix('.__init__') for p in modules() if p.name != '__main__.py']
    code = f'''
import importlib, sys
for name in {names!r}:
    m = importlib.import_module(name)
    assert m.__file__.startswith({str(python.parents[1])!r}), (name, m.__file__)
assert not [p for p in sys.path if p.startswith({str(ROOT)!r}) and not 'site-packages' in p], sys.path
'''
    call(python, '-c', code, cwd=tmp_path)

SCRIPT = """
import sys
from pathlib import Path
from vfassoc.core import Settings
from vfassoc.corpus.manifest import summary
from vfassoc.evaluation.run import evaluate_run
from vfassoc.experiments.runner import run_report
from vfassoc.experiments.tables import as_text, paper_table, read_scores
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import open_corpus, train

def main():
    s = Settings(data=Path('data'), runs=Path('runs'), figures=Path('figures'), device='cpu', workers=1)
    cfg = SynthConfig(identities=40, videos_per_identity=2, clips=1, seconds=1.0, frames=2, size=48)
    write_corpus(s.data/'tiny', cfg, 1)
    print(summary(open_corpus('tiny', s)))
    recipe = load_recipe('cid-demo', {'corpus': 'tiny', 'data.crop_seconds': 1.0, 'data.face_size': 32,
                                      'train.total_samples': 16, 'train.batch_size': 16, 'train.lr_warmup': 0})
    assert train(recipe, s.runs/'tiny', s, quiet=True).state.step == 1
    evaluate_run(s.runs/'tiny', s, {'replicates': 100, 'candidates': [2]})
    print(as_text(paper_table(read_scores([s.runs/'tiny']))))
    given = dict(runs=[s.runs/'tiny'], figures='figures', examples=1, seconds=1.0)
    _, page = run_report(sys.argv[1], s.figures/'tiny', given, code='hide', quiet=True)
    print(page.read_text())

if __name__ == '__main__': main()
"""

@pytest.mark.parametrize('name', ['evaluate', 'mine.ipynb'])
def test_the_demo_runs_outside_the_repository(python, tmp_path, name):
    """A corpus, a training step, an evaluation and a report, at the smallest scale, with the installed wheel only: the
    report of the book by its name, or a user's copy by its path."""
    (tmp_path/'demo.py').write_text(SCRIPT)
    if name == 'mine.ipynb': shutil.copy(ROOT/'nbs'/'reports'/'evaluate.ipynb', tmp_path/name)
    # nbconvert's page templates
    page = call(python, 'demo.py', name, cwd=tmp_path, JUPYTER_PATH=f'{sys.prefix}/share/jupyter')
    assert 'verification (AUC)' in page and 'ceiling, AUC' not in page
    assert page.count('<audio') == 1 + 5 and 'another version of the generator' not in page and 'not at' not in page
    assert {p.name for p in tmp_path.iterdir()} == {'demo.py', 'data', 'runs', 'figures', name} - {'evaluate'}

def test_report_command_finds_the_installed_reports(python, tmp_path):
    "In any folder the command knows the reports of the wheel; here it is only asked which there are."
    r = subprocess.run([python, '-m', 'vfassoc', 'report', 'no-such'], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode == 2 and all(p.stem in r.stderr for p in REPORTS.values()), r.stderr

def test_the_repository_is_not_seen(python, tmp_path):
    "What the fixture promises: without the wheel there would be no vfassoc to import."
    code = ('import importlib.util, sys; sys.path = [p for p in sys.path if sys.prefix not in p]; '
            'sys.exit(importlib.util.find_spec("vfassoc") is not None)')
    call(python, '-c', code, cwd=tmp_path)
