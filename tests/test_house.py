"The house rules: which module may know which, what a notebook looks like, what the library never does."
import ast, base64, json, re, subprocess, sys
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat, pytest, tomllib
from fastcore.nbio import nb_frontmatter, read_nb
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import book_map
from checkout import ROOT, modules, notebooks

# rooms from the ground up: a package is a room, and so is each module that stands outside the packages
ROOMS = """core integrity corpus video synthetic models clustering losses methods training evaluation exchange
           experiments inference demo cli __main__""".split()

def room(module:str) -> str: return module.split('.')[0]

def place(module:str) -> int|None:
    "The floor that a module stands on; None if it has no place in the house."
    return ROOMS.index(room(module)) if room(module) in ROOMS else None

def module_name(path) -> str:
    "vfassoc/corpus/audio.py -> corpus.audio; a package's __init__.py -> ''"
    return '' if path.name == '__init__.py' else '.'.join(path.with_suffix('').parts[1:])

def imported(source:str, module:str) -> list[str]:
    "Absolute names of everything that `source` of module `vfassoc.<module>` imports, at the top or inside a function."
    out, package = [], ['vfassoc', *module.split('.')[:-1]]
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Import): out += [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = '.'.join([*package[:len(package) - n.level + 1], *filter(None, [n.module])]) if n.level else n.module
            out += [f'{base}.{a.name}' for a in n.names]
        elif isinstance(n, ast.Call) and getattr(n.func, 'attr',
                                                 getattr(n.func, 'id', '')) in ('import_module', '__import__'):
            first = n.args[0]
            # an f-string that begins with the name of a package imports from that package
            if isinstance(first, ast.JoinedStr): first = first.values[0]
            out.append(str(first.value).rstrip('.') if isinstance(first, ast.Constant) else 'vfassoc.<computed>')
    return out

def known(name:str, modules:set) -> str|None:
    "The module of ours that an absolute dotted name belongs to; None if it is somebody else's."
    if name.split('.')[0] != 'vfassoc': return None
    parts = name.split('.')[1:]
    return next(('.'.join(parts[:n]) for n in range(len(parts), 0, -1) if '.'.join(parts[:n]) in modules),
                '.'.join(parts))

def upward(sources:dict) -> list[str]:
    "Return the faults in the imports of {module: source}: unknown modules, imports from a higher room, circles."
    bad, edges = [], {}
    for m, source in sources.items():
        if place(m) is None:
            bad.append(f'{m}: in no room; put it into a package')
            continue
        uses = {k for n in imported(source, m) if (k := known(n, set(sources))) not in (None, '', '__version__')}
        edges[m] = {u for u in uses if room(u) == room(m)}
        bad += [f'{m}: imports {u}, which is in no room' for u in uses if place(u) is None]
        bad += [f'{m} imports {u}: upwards' for u in uses if place(u) is not None and place(u) > place(m)]
    while leaves := [m for m, uses in edges.items() if not uses & edges.keys()]:
        for m in leaves: del edges[m]
    return bad + [f'{m}: imports run in a circle through {", ".join(sorted(edges[m]))}' for m in edges]

def test_imports_point_downwards():
    sources = {module_name(p): (ROOT/p).read_text() for p in modules() if module_name(p) not in ('', '_modidx')}
    assert not upward(sources)

def test_packages_do_nothing_when_imported():
    for p in modules():
        if p.name == '__init__.py':
            # the public names are imported when they are used
            allowed = {'pkgutil.resolve_name'} if len(p.parts) == 2 else set()
            assert set(imported((ROOT/p).read_text(),
                                'x')) <= allowed, f'{p}: a package imports nothing: import the module you need'

@pytest.mark.parametrize('sources, word', [
    ({'core': 'from vfassoc.corpus.audio import read_audio'}, 'upwards'),
    ({'core': 'def f():\n    from .corpus import audio'}, 'upwards'),
    ({'losses.infonce': 'from ..methods.base import Method'}, 'upwards'),
    ({'corpus.source': 'from vfassoc.models.two_tower import ModelConfig'}, 'upwards'),
    ({'training.loop': 'import vfassoc.evaluation.metrics as m'}, 'upwards'),
    ({'training.loop': 'import importlib\nimportlib.import_module("vfassoc.cli")'}, 'upwards'),
    ({'core': 'import importlib\nimportlib.import_module(name)'}, 'in no room'),
    ({'core': 'import importlib\nimportlib.import_module(f"vfassoc.methods.{name}")'}, 'upwards'),
    ({'core': 'import importlib\nimportlib.import_module(f"{name}.x")'}, 'in no room'),
    ({'attic': ''}, 'in no room'),
    ({'attic.memory': ''}, 'in no room'),
    ({'models.cnn': 'from vfassoc.attic import x'}, 'in no room'),
    ({'models.cnn': 'from .ecapa import M', 'models.ecapa': 'from .fusion import K',
      'models.fusion': 'from .cnn import E'}, 'circle'),
])
def test_import_rule_notices(sources, word): assert any(word in b for b in upward(sources)), upward(sources)

def test_import_rule_allows():
    assert not upward({'core': 'import numpy', 'corpus.audio': 'from ..core import require', 'corpus.faces': '',
                       'corpus.dataset': 'from vfassoc.corpus.audio import read_audio\nfrom . import faces',
                       'cli': 'def f(): from vfassoc.training.loop import fit'})

# ---- dependencies

def without_functions(source:str) -> str:
    "The statements of a module that run when it is imported."
    class Drop(ast.NodeTransformer):
        def visit_FunctionDef(self, n): return ast.copy_location(ast.Pass(), n)
        visit_AsyncFunctionDef = visit_FunctionDef
    return ast.unparse(Drop().visit(ast.parse(source)))

def test_an_import_inside_a_function_is_told_from_one_at_the_top():
    source = 'import a\nclass C:\n    import b\n    def f(self):\n        import c\ndef g():\n    import d'
    assert {n for n in imported(without_functions(source), 'x')} == {'a', 'b'}

def test_every_import_is_declared():
    "A wheel whose dependencies are ranges in pyproject.toml must not lean on what happens to be installed beside them."
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    asked = {canonicalize_name(Requirement(r).name) for r in project['dependencies']}
    extra = {canonicalize_name(Requirement(r).name) for k in ('app', 'onnx')
             for r in project['optional-dependencies'][k]} # imported inside functions only
    dists = packages_distributions()
    sources = [(p, (ROOT/p).read_text(), module_name(p)) for p in modules()]
    sources += [(p, '\n'.join(_python(c.source) for c in nbformat.read(ROOT/p, 4).cells if c.cell_type == 'code'), 'x')
                for p in notebooks() if 'reports' in p.parts]
    for path, source, m in sources:
        for top in {n.split('.')[0] for n in imported(source, m)} - set(sys.stdlib_module_names) - {'vfassoc'}:
            owners = {canonicalize_name(d) for d in dists.get(top, [])}
            late = top not in {n.split('.')[0] for n in imported(without_functions(source), m)}
            assert owners & (asked | extra if late else asked), \
                f'{path}: imports {top} (of {owners or "no package"}); declare it in pyproject.toml'

def test_dependencies_are_ranges():
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    for r in map(Requirement, project['dependencies']):
        assert r.specifier, f'{r}: any version at all; name the oldest that works'
        assert not any(s.operator in ('==', '===')
                       for s in r.specifier), f'{r}: a pin; pins belong into requirements.lock'

# ---- notebooks

def _python(source:str) -> str:
    "Source of a cell without IPython's lines."
    return '' if source.startswith('%%') else '\n'.join(l for l in source.splitlines() if not re.match(r'\s*[%!?]', l))

def _inside(n) -> list:
    "The statements that run with a try, if or with; a function's own imports are its own business."
    return [*getattr(n, 'body', []), *getattr(n, 'orelse', []),
            *(s for h in getattr(n, 'handlers', []) for s in h.body)] \
        if isinstance(n, (ast.Try, ast.If, ast.With)) else []

def _has_import(n) -> bool: return isinstance(n, (ast.Import, ast.ImportFrom)) or any(map(_has_import, _inside(n)))

def _only_imports(n) -> bool:
    "An import, or a try/if around imports (with the plain assignments that stand in for what is missing)."
    return isinstance(n, (ast.Import, ast.ImportFrom)) or \
        _has_import(n) and all(_only_imports(s) or isinstance(s, (ast.Assign, ast.Pass)) for s in _inside(n))

def _cell_faults(i:int, c) -> list[str]:
    bad = []
    if c.cell_type == 'markdown':
        text = re.sub(r'```.*?```', '', c.source, flags=re.S).strip()
        heads = re.findall(r'^#{1,6} .*', text, flags=re.M)
        title = i == 1 and re.fullmatch(r'# [^\n]+\n+> [^\n]+(\n+\*(Before|After): [^\n]+\*)?', text)
        if heads and text != heads[0] and not title: bad.append(f'cell {i}: heading {heads[0]!r} does not stand alone')
    elif c.cell_type == 'code':
        stmts = ast.parse(_python(c.source)).body
        if any(map(_has_import, stmts)) and not all(map(_only_imports, stmts)):
            bad.append(f'cell {i}: mixes imports and code')
        if re.search(r'(?<=\n)#\| *(export|exports|exporti|default_exp|hide)\b', re.sub(r'\A(#\|.*\n)+', '', c.source)):
            bad.append(f'cell {i}: a directive below the first lines of the cell does nothing')
    return bad

TOP = 'home tmp root work usr opt var mnt media data srv etc private Users Volumes'.replace(' ', '|') # of a machine
ABSOLUTE = re.compile(rf'''(?:^|[\s'"`(=:>\[,])(?:file://)?(/(?:{TOP})/\S*|[A-Z]:\\\S+)''')

def _output_faults(i:int, c) -> list[str]:
    bad = []
    if c.get('execution_count') is not None:
        bad.append(f'cell {i}: execution count {c.execution_count}; run nbdev-clean')
    for o in c.get('outputs', []):
        if o.output_type == 'error': bad.append(f'cell {i}: stores an error, {o.ename}')
        texts = [o.get('text', ''), *(v for k,v in o.get('data', {}).items() if isinstance(v, str)
                                      and not k.startswith('image/'))]
        bad += [f'cell {i}: absolute path {m[1]!r} in an output' for t in texts
                for m in ABSOLUTE.finditer(re.sub(r'data:[^"\']+', '', t))]
        for k,v in o.get('data', {}).items():
            size = 0 if not k.startswith('image/') else len(v) if 'svg' in k else len(base64.b64decode(v))
            if size > 60_000: bad.append(f'cell {i}: {k} of {size//1000} KB; up to 60')
    return bad

def chapter_faults(nb) -> list[str]:
    "What is wrong with a lesson chapter."
    cells, bad = nb.cells, []
    if not cells or cells[0].cell_type != 'code' or not re.fullmatch(r'#\| default_exp [\w.]+',
                                                                     cells[0].source.strip()):
        bad.append('cell 0: a chapter starts with `#| default_exp module`, alone in its cell')
    return bad + _common_faults(nb)

def index_faults(nb) -> list[str]:
    "What is wrong with the map of the book: it has no code, and a heading stands alone."
    return [f'cell {i}: code' for i, c in enumerate(nb.cells) if c.cell_type ==
            'code'] + [x for i, c in enumerate(nb.cells) for x in _cell_faults(i + 1, c)]

def report_faults(nb) -> list[str]:
    "What is wrong with the source of a report."
    bad = []
    marked = [c for c in nb.cells if 'parameters' in c.metadata.get('tags', [])]
    if len(marked) != 1: bad.append(f'{len(marked)} cells are tagged `parameters`; a report has one')
    for c in marked:
        for n in ast.parse(c.source).body:
            try:
                assert isinstance(n, ast.Assign) and len(n.targets) == 1 and isinstance(n.targets[0], ast.Name)
                ast.literal_eval(n.value)
            except (AssertionError, ValueError):
                bad.append(f'parameters: {ast.unparse(n)!r} is not a plain `name = literal`')
    if any(c.get('outputs') for c in nb.cells): bad.append('a report source keeps no outputs')
    return bad + _common_faults(nb)

def _common_faults(nb) -> list[str]:
    bad, cells = [], nb.cells
    if len(cells) < 2 or cells[1].cell_type != 'markdown' or not re.match(
        r'# [^\n]+\n+> \S[^\n]+(\n+\*(Before|After): [^\n]+\*)?\Z', cells[1].source.strip()):
        bad.append('cell 1: `# Title` and one `> line`, and nothing else')
    if nb.metadata.get('kernelspec', {}).get('name') != 'python3':
        bad.append('no kernelspec python3: papermill cannot start it')
    for i, c in enumerate(cells): bad += _cell_faults(i, c) + _output_faults(i, c)
    return bad

def is_report(path) -> bool: return path.parts[:2] == ('nbs', 'reports')

def is_index(path) -> bool: return path.name == 'index.ipynb'

@pytest.mark.parametrize('path', notebooks(), ids=str)
def test_notebook_keeps_the_form(path):
    nb = nbformat.read(ROOT/path, as_version=4)
    nbformat.validate(nb)
    assert not (report_faults if is_report(path) else index_faults if is_index(path) else chapter_faults)(nb)
    assert (ROOT/path).stat().st_size < 400_000, 'over 400 KB'
    assert bool(nb_frontmatter(read_nb(ROOT/path)).get('skip_exec')) == is_report(
        path), 'skip_exec: reports yes, chapters no'

def part_faults(homes:dict) -> list[str]:
    "What is wrong with {module: path of its chapter}: names, numbers, folders."
    bad, parts = [], {}
    for name, p in homes.items():
        part = p.parts[1]
        number, _, folder = part.partition('_')
        chapter, _, stem = p.stem.partition('_')
        if not re.fullmatch(r'\d\d', number): bad.append(f'{p}: the part begins with two digits')
        if stem != name.split('.')[-1]: bad.append(f'{p}: exports {name}; chapter and module have one name')
        if folder != 'appendix' and name.split('.')[:-1] != [folder]:
            bad.append(f'{p}: exports {name}, not {folder}.{stem}')
        if place(name) is None and folder != 'start': bad.append(f'{p}: {name} is in no room')
        parts.setdefault(part, []).append(chapter)
    for part, numbers in parts.items():
        if sorted(numbers) != [f'{i + 1:02d}' for i in range(len(numbers))]:
            bad.append(f'{part}: chapters {", ".join(sorted(numbers))}; number them from 01, no letters, no gaps')
    return bad

def test_each_module_has_its_chapter():
    "A part's folder is its package, a chapter's name is its module; plumbing files say that they are."
    homes = {}
    for p in notebooks():
        if is_report(p) or is_index(p): continue
        name = nbformat.read(ROOT/p, 4).cells[0].source.removeprefix('#| default_exp').strip()
        assert homes.setdefault(name, p) == p, f'{name} is exported by {homes[name]} and {p}'
    assert not part_faults(homes)
    for p in modules():
        m = module_name(p)
        if m not in ('', '_modidx') and m not in homes:
            assert 'plumbing' in (ROOT/p).read_text()[
                :300].lower(), f'{p}: exported by no chapter, and not marked as plumbing'

@pytest.mark.parametrize('homes, word', [
    ({'corpus.audio': 'nbs/1_corpus/01_audio.ipynb'}, 'two digits'),
    ({'corpus.audio': 'nbs/01_corpus/01_voice.ipynb'}, 'one name'),
    ({'corpus.audio': 'nbs/04_models/01_audio.ipynb'}, 'not models.audio'),
    ({'audio': 'nbs/01_corpus/01_audio.ipynb'}, 'not corpus.audio'),
    ({'attic.audio': 'nbs/12_appendix/01_audio.ipynb'}, 'in no room'),
    ({'corpus.audio': 'nbs/01_corpus/02_audio.ipynb'}, 'no gaps'),
    ({'corpus.audio': 'nbs/01_corpus/01a_audio.ipynb'}, 'no letters'),
])
def test_part_rule_notices(homes, word):
    bad = part_faults({m: Path(p) for m, p in homes.items()})
    assert any(word in b for b in bad), bad

def test_part_rule_allows():
    assert not part_faults({m: Path('nbs', p)
                            for m, p in {'corpus.audio': '01_corpus/01_audio.ipynb',
                                         'corpus.faces': '01_corpus/02_faces.ipynb',
                                         'core': '12_appendix/01_core.ipynb',
                                         'start.tour': '00_start/01_tour.ipynb'}.items()})

def test_the_map_and_the_links_are_right():
    "nbs/index.ipynb lists every chapter, and every chapter links its neighbors; `make index` writes both."
    assert not book_map.stale()

def test_a_chapter_without_links_is_noticed(tmp_path):
    for p in [*book_map.chapters(ROOT), Path('nbs/index.ipynb'), *Path('nbs/reports').glob('*')]:
        (tmp_path/p).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/p).write_bytes((ROOT/p).read_bytes())
    first, second, third = book_map.chapters(tmp_path)[:3]
    second.unlink() if second.is_absolute() else (tmp_path/second).unlink()
    found = {str(p) for p in book_map.stale(tmp_path)}
    assert {str(first), str(third), 'nbs/index.ipynb'} <= found

def _notebook(*cells, name='python3'):
    nb = nbformat.v4.new_notebook(metadata={'kernelspec': {'name': name, 'display_name': name, 'language': 'python'}})
    def code(s, **kw):
        return nbformat.v4.new_code_cell(s, **kw)
    nb.cells = [c if not isinstance(c, str) else nbformat.v4.new_markdown_cell(c[3:]) if c.startswith('md:')
                else code(c) for c in cells]
    return nb

def _output(text=None, png=None, error=None, count=None):
    o = (nbformat.v4.new_output('error', ename=error, evalue='', traceback=[]) if error else
         nbformat.v4.new_output('stream', text=text) if text is not None else
         nbformat.v4.new_output('display_data', data={'image/png': base64.b64encode(b'x'*png).decode()}))
    return nbformat.v4.new_code_cell('f()', outputs=[o], execution_count=count)

HEAD = ('#| default_exp core', 'md:# Title\n\n> One line.')

@pytest.mark.parametrize('nb, word', [
    (_notebook('x = 1', HEAD[1]), 'default_exp'),
    (_notebook(HEAD[0] + '\nx = 1', HEAD[1]), 'default_exp'),
    (_notebook(HEAD[0], 'md:# Title'), 'cell 1'),
    (_notebook(HEAD[0], 'md:# Title\n\n> One line.\n\nMore.'), 'cell 1'),
    (_notebook(*HEAD, 'import os\nx = 1'), 'mixes'),
    (_notebook(*HEAD, 'try: import keops\nexcept ImportError: f()'), 'mixes'),
    (_notebook(*HEAD, 'md:## Idea\n\ntext'), 'alone'),
    (_notebook(*HEAD, 'md:text\n\n## Idea'), 'alone'),
    (_notebook(*HEAD, 'x = 1\n\n#| export\ny = 2'), 'directive'),
    (_notebook(*HEAD, _output('saved in /tmp/abc/run')), 'absolute path'),
    (_notebook(*HEAD, _output("PosixPath('/home/ann/vfassoc')")), 'absolute path'),
    (_notebook(*HEAD, _output(r'C:\Users\ann')), 'absolute path'),
    (_notebook(*HEAD, _output(png=60_001)), 'KB'),
    (_notebook(*HEAD, _output(error='ValueError')), 'error'),
    (_notebook(*HEAD, _output('1', count=3)), 'execution count'),
    (_notebook(*HEAD, name='conda-env-x'), 'kernelspec'),
])
def test_chapter_form_notices(nb, word): assert any(word in b for b in chapter_faults(nb)), chapter_faults(nb)

def test_chapter_form_allows():
    nb = _notebook(*HEAD, '#| export\nimport os\n\nimport numpy as np',
                   'try: import keops\nexcept ImportError: keops = None',
                   'def f():\n    import os\n    return os', 'md:## Idea',
                   'md:```\n# a comment\n```\ntext and/or text', '%matplotlib inline\nx = 1',
                   _output('0.5 of wav/id1/video/00001.wav'), _output(png=60_000))
    assert not chapter_faults(nb)

def _parameters(source): return nbformat.v4.new_code_cell(source, metadata={'tags': ['parameters']})

@pytest.mark.parametrize('nb, word', [
    (_notebook('', HEAD[1]), '0 cells are tagged'),
    (_notebook('', HEAD[1], _parameters('a = 1'), _parameters('b = 1')), '2 cells are tagged'),
    (_notebook('', HEAD[1], _parameters('a:int = 1')), 'plain'),
    (_notebook('', HEAD[1], _parameters('a = 2*3')), 'plain'),
    (_notebook('', HEAD[1], _parameters('a = b = 1')), 'plain'),
    (_notebook('', HEAD[1], _parameters('a = 1'), _output('1')), 'no outputs'),
])
def test_report_form_notices(nb, word): assert any(word in b for b in report_faults(nb)), report_faults(nb)

def test_report_form_allows():
    assert not report_faults(_notebook('', HEAD[1],
                                       _parameters("runs = ['a=b'] # folders\nexamples = 4\ntitle = None"), 'f(runs)'))

# ---- room to breathe: 120 columns, one statement per line, no lambda with a name, functions of at most 40 lines

def _generated(d:dict) -> bool:
    "Is this place a line of the list `__all__` that nbdev writes?"
    path = Path(d['filename'])
    if path.suffix != '.py': return False
    rows = [range(n.lineno, n.end_lineno + 1) for n in ast.parse(path.read_text()).body
            if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__']
    return any(d['location']['row'] in r for r in rows)

def dense(paths) -> dict[Path, str]:
    "Files with a line over 120 columns, two statements in a line or a lambda with a name -> the first such place."
    rules = ['--isolated', '--no-cache', '--select', 'E501,E702,E731', '--line-length', '120', '--output-format',
             'json']
    r = subprocess.run([sys.executable, '-m', 'ruff', 'check', *rules, *map(str, paths)], capture_output=True,
                       text=True)
    assert r.returncode in (0, 1), r.stderr
    places = {}
    for d in json.loads(r.stdout):
        if d['code'] == 'E501' and _generated(d): continue
        cell = f'cell {d["cell"]}, ' if d.get('cell') else ''
        places.setdefault(Path(d['filename']), f'{cell}line {d["location"]["row"]}: {d["code"]} {d["message"]}')
    for path in paths: # ruff passes over a long line that ends in an address or has no space
        if path.suffix == '.py' and path not in places and (long := _long_lines(path)):
            places[path] = f'line {long[0]}: E501 over 120 columns'
    return places

def _long_lines(path) -> list[int]:
    "Numbers of the lines of over 120 columns, those that nbdev writes aside."
    return [i for i, line in enumerate(path.read_text().splitlines(), 1)
            if len(line) > 120 and not _generated({'filename': path, 'location': {'row': i}})]

def test_lines_have_room():
    more = [p.relative_to(ROOT) for d in ('tests', 'benchmarks', 'book') for p in sorted((ROOT/d).glob('*.py'))]
    paths = [p for p in (*modules(), *notebooks(), *more) if p.name != '_modidx.py' and not is_index(p)]
    found = {str(p.relative_to(ROOT)): why for p, why in dense([ROOT/p for p in paths]).items()}
    assert found == {}

@pytest.mark.parametrize('line, code', [('x = "' + 'a'*120 + '"', 'E501'), ('x = 1; y = 2', 'E702'),
                                        ('f = lambda x: x', 'E731')])
def test_line_rule_notices(tmp_path, line, code):
    (tmp_path/'a.py').write_text(f'{line}\n')
    (tmp_path/'c.py').write_text(f'# {"https://example.org/":a<120}\n' if code == 'E501' else 'x = 1\n')
    nbformat.write(_notebook(*HEAD, line), tmp_path/'b.ipynb')
    (tmp_path/'good.py').write_text('x = 1\n')
    assert {p.name: why.split(': ')[1][:4]
            for p, why in dense(sorted(tmp_path.iterdir())).items()} == {
                'a.py': code, 'b.ipynb': code, **({'c.py': code} if code == 'E501' else {})}

def long_functions(source:str, most:int=40) -> list[str]:
    "Names of the functions of `source` that have more than `most` lines."
    defs = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [n.name for n in defs if n.end_lineno - n.lineno + 1 > most]

def test_functions_fit_on_a_screen():
    found = {f'{module_name(p)}.{name}' for p in modules() for name in long_functions((ROOT/p).read_text())}
    assert found == set(), 'split it'

def test_function_rule_notices():
    body = '\n'.join('    x = 1' for _ in range(40))
    assert long_functions(f'def f():\n{body}') == ['f'] and long_functions(f'class A:\n  async def g():\n{body}') == [
        'g']
    assert long_functions(f'def f():\n{body}'.replace('    x = 1', '',
                                                      1)) == ['f'] and not long_functions('def f():\n' + body[:-10])

# ---- errors are matched by place and value

def wordy_matches(source:str) -> list[str]:
    "Literal `match=` texts that are words alone: such a test breaks when a sentence is put otherwise."
    found = [k.value.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) for k in n.keywords
             if k.arg == 'match' and isinstance(k.value, ast.Constant)]
    return [t for t in found if re.fullmatch('[A-Za-z ,;-]+', t) and ' ' in t]

def test_errors_are_matched_by_place_and_value():
    found = {p.name: w for p in sorted((ROOT/'tests').glob('*.py')) if (w := wordy_matches(p.read_text()))}
    assert found == {}, 'match the path, field or number that the error names'

def test_match_rule_notices():
    assert wordy_matches("raises(E, match='no such folder')") == ['no such folder']
    for fine in ("'tau = 0'", "f'{path}: '", "'^report: '", "'identities'", "r'x\\.npz: '"):
        assert not wordy_matches(f'raises(E, match={fine})')

# ---- what the library never does

SHELL = {'os.system', 'os.popen', 'os.execv', 'os.execvp', 'os.spawnv'}
READER = Path('vfassoc/exchange/pickles.py') # restricted; tests/test_import.py attacks it
UNSAFE = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'shelve', 'marshal'}

def dangers(source:str) -> list[str]:
    "Places where a file that somebody sent, or a name in a corpus, could run code."
    bad = []
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Import): bad += [f'imports {a.name}' for a in n.names if a.name.split('.')[0] in UNSAFE]
        if isinstance(n, ast.ImportFrom) and n.module:
            if n.module.split('.')[0] in UNSAFE: bad.append(f'imports {n.module}')
            bad += [f'imports {n.module}.{a.name}: call it by its full name, so that this test sees it' for a in n.names
                    if f'{n.module}.{a.name}' in SHELL | {'torch.load', 'joblib.load', 'yaml.load', 'numpy.load'}]
        if not isinstance(n, ast.Call): continue
        name, kw = ast.unparse(n.func), {k.arg: k.value for k in n.keywords}
        def true(k):
            return k in kw and not (isinstance(kw[k], ast.Constant) and not kw[k].value)
        if name == 'torch.load' and ast.unparse(kw.get('weights_only', ast.Constant(None))) != 'True':
            bad.append('torch.load without weights_only=True')
        if name in ('np.load', 'numpy.load') and true('allow_pickle'): bad.append(f'{name} with allow_pickle')
        if name.endswith('read_pickle') or name in ('joblib.load', 'torch.hub.load', 'eval', 'exec'): bad.append(name)
        if name in ('yaml.load', 'yaml.unsafe_load', 'yaml.full_load'): bad.append(f'{name}: yaml.safe_load')
        if name in SHELL or true('shell'): bad.append(f'{name} through a shell')
    return bad

@pytest.mark.parametrize('path', [p for p in modules() if p.name != '_modidx.py'], ids=str)
def test_module_is_safe(path):
    found = dangers((ROOT/path).read_text())
    assert found == (['imports pickle'] if path == READER else [])

def test_the_reader_of_pickles_only_restricts():
    "The one module that may import pickle takes the class Unpickler from it, overrides find_class, and nothing else."
    tree = ast.parse((ROOT/READER).read_text())
    used = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == 'pickle']
    assert used == ['pickle.Unpickler']
    reader = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.bases
                  and ast.unparse(n.bases[0]) == used[0])
    assert [n.name for n in reader.body if isinstance(n, ast.FunctionDef)] == ['find_class']

@pytest.mark.parametrize('path', [p for p in notebooks() if is_report(p)], ids=str)
def test_report_is_safe(path):
    for c in nbformat.read(ROOT/path, 4).cells: assert c.cell_type != 'code' or not dangers(_python(c.source))

@pytest.mark.parametrize('source', [
    'import torch\ntorch.load(p)', 'torch.load(p, weights_only=False)', 'torch.load(p, weights_only=flag)',
    'from torch import load',
    'import pickle', 'def f():\n    from pickle import loads', 'import os\nos.system("ls")', 'from os import system',
    'subprocess.run(cmd, shell=True)', 'subprocess.run(cmd, shell=flag)', 'yaml.load(f)',
    'np.load(p, allow_pickle=True)',
    'pd.read_pickle(p)', 'joblib.load(p)', 'eval(text)',
])
def test_safety_notices(source): assert dangers(source)

def test_safety_allows():
    assert not dangers('torch.load(p, weights_only=True)\nmodel.eval()\nnp.load(p)\nnp.load(p, allow_pickle=False)\n'
                       'subprocess.run(["git", "log"], shell=False)\nyaml.safe_load(f)')
