"The notebook tools: clean and export change nothing, a chapter survives a plain editor, and a diff of one can be read."
import json, os

import nbformat, pytest

from checkout import BIN, ROOT, call, copy_to, notebooks

@pytest.fixture
def copy(tmp_path): return copy_to(tmp_path/'house')

def contents(folder) -> dict:
    "Every file's bytes, but not what Python and jupytext leave beside them."
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*')
            if p.is_file() and not {'__pycache__', '.git', 'percent',
                                    '.ipynb_checkpoints'} & set(p.relative_to(folder).parts)}

def changed(before:dict, after:dict) -> list[str]:
    return sorted(str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p))

def test_clean_and_export_change_nothing(copy):
    before = contents(copy)
    call('nbdev-clean', cwd=copy)
    assert not changed(before, contents(copy)), 'run nbdev-clean'
    call('nbdev-export', cwd=copy)
    assert not changed(before, contents(copy)), 'run nbdev-export: the package is not what the notebooks say'

def test_drift_is_noticed(copy):
    "An edited module, a notebook that was run and not cleaned: both are seen; papermill's tag survives the cleaning."
    module, chapter = copy/'vfassoc/core.py', copy/'nbs/12_appendix/01_core.ipynb'
    module.write_text(module.read_text().replace('def rng_for(', 'def rng_of('))
    nb = json.loads(chapter.read_text())
    nb['cells'][0].update(execution_count=7, metadata={'tags': ['kept'], 'collapsed': True})
    chapter.write_text(json.dumps(nb))
    drifted = contents(copy)
    call('nbdev-clean', '--fname', chapter, cwd=copy)
    assert 'nbs/12_appendix/01_core.ipynb' in changed(drifted, contents(copy))
    cell = json.loads(chapter.read_text())['cells'][0]
    assert (cell['execution_count'], cell['metadata']) == (None, {'tags': ['kept']})
    call('nbdev-export', cwd=copy)
    assert 'vfassoc/core.py' in changed(drifted, contents(copy))

def test_a_plain_editor_loses_nothing(copy):
    "Notebook -> percent script -> (edited) -> notebook: cells, ids, tags, outputs and metadata stay."
    paths = richest()
    before = {p: (copy/p).read_bytes() for p in paths}
    call('jupytext', '--quiet', '--sync', *paths, cwd=copy)
    scripts = {p: copy/'percent'/p.relative_to('nbs').with_suffix('.py') for p in paths}
    for s in scripts.values():
        assert '# %%' in s.read_text()
        s.write_text(s.read_text().rstrip('\n') + '\n\n# %% [markdown]\n# A sentence from a plain editor.\n')
    newer(scripts.values(), [copy/p for p in paths])
    call('jupytext', '--quiet', '--sync', *paths, cwd=copy)
    for p in paths: # the new cell is there; without it, the cleaned notebook has the bytes it had
        nb = nbformat.read(copy/p, as_version=4)
        assert nb.cells.pop().source == 'A sentence from a plain editor.', p
        nbformat.write(nb, copy/p)
    for p in paths: call('nbdev-clean', '--fname', p, cwd=copy)
    assert [str(p) for p in paths if (copy/p).read_bytes() != before[p]] == []

def richest() -> list:
    "Five notebooks: the report with most cells, and the chapters with most cells, bytes, output types and directives."
    loaded = {p: nbformat.read(ROOT/p, as_version=4).cells for p in notebooks()}
    report, chapter = (lambda p: 'reports' in p.parts), (lambda p: 'reports' not in p.parts)
    def outputs(p):
        return len({m for c in loaded[p] for o in c.get('outputs', []) for m in o.get('data', [o.output_type])})
    def directives(p):
        return len({line for c in loaded[p] for line in c.source.splitlines() if line.startswith('#| ')})
    chosen = []
    for which, key in ((report, lambda p: len(loaded[p])), (chapter, lambda p: len(loaded[p])),
                       (chapter, lambda p: (ROOT/p).stat().st_size),
                       (chapter, outputs), (chapter, directives)):
        chosen.append(max((p for p in loaded if which(p) and p not in chosen), key=key))
    return chosen

def newer(these, those):
    "Give `these` files a later time than `those`: jupytext takes the newer side of a pair."
    t = max(p.stat().st_mtime for p in those) + 10
    for p in these: os.utime(p, (t, t))

def test_round_trip_keeps_tags_and_outputs(copy):
    "What the test above relies on, shown on a notebook that has everything to lose."
    path = copy/'nbs/reports/everything.ipynb'
    path.parent.mkdir(parents=True, exist_ok=True)
    new = nbformat.v4
    nb = new.new_notebook(metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3',
                                                   'language': 'python'}}, cells=[
        new.new_raw_cell('---\nskip_exec: true\n---'), new.new_markdown_cell('# Title\n\n> Line.'),
        new.new_code_cell("runs = ['a'] # folders", metadata={'tags': ['parameters']}),
        new.new_code_cell('#| hide\n%matplotlib inline\nx',
                          outputs=[new.new_output('execute_result', data={'text/plain': '1', 'image/png': 'aGk='})])])
    nbformat.write(nb, path)
    call('jupytext', '--quiet', '--sync', path, cwd=copy)
    script = copy/'percent/reports/everything.py'
    assert 'tags=["parameters"]' in script.read_text()
    newer([script], [path])
    call('jupytext', '--quiet', '--sync', path, cwd=copy)
    back = nbformat.read(path, as_version=4)
    assert [(c.cell_type, c.source, c.id, c.metadata.get('tags'), c.get('outputs')) for c in back.cells] == \
           [(c.cell_type, c.source, c.id, c.metadata.get('tags'), c.get('outputs')) for c in nb.cells]

def test_git_diff_of_a_notebook_is_text(copy):
    "After `make setup`, `git diff` shows the cells of a changed chapter, not its JSON."
    for cmd in (['init', '-q'], ['add', '-A'],
                ['-c', 'user.name=t', '-c', 'user.email=t@t', 'commit', '-q', '-m', 'all']):
        call('git', *cmd, cwd=copy)
    path = copy/'nbs/12_appendix/01_core.ipynb'
    nb = nbformat.read(path, as_version=4)
    nb.cells.append(new_cell := nbformat.v4.new_code_cell('marker = 12345'))
    nbformat.write(nb, path)
    assert '"marker = 12345"' in call('git', '--no-pager', 'diff', cwd=copy)
    make_setup(copy)
    text = call('git', '--no-pager', 'diff', '--', path, cwd=copy)
    assert '\n+# %%\n+marker = 12345' in text, text[:2000]
    assert new_cell.id not in text and '"cell_type"' not in text

def make_setup(folder):
    "`make setup` in `folder`, told that its environment, the one that runs the tests, is complete."
    call('make', 'setup', f'VENV={BIN.parent}', '-o', BIN.parent/'.installed', cwd=folder)
