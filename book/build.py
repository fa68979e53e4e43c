"""Build the site: chapters, pages of the repository, executed reports and the API reference, as offline HTML.

    python book/build.py             the site, in _docs/
    python book/build.py --output F  in another folder
    python book/build.py --chapters 06_losses/02_prototype ...  a small site: these chapters and their modules

Every warning of Sphinx is an error, and so is a link inside the site that leads nowhere.
"""
import argparse
import hashlib
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PAGES = ('README.md', 'RESULTS.md', 'VOXCELEB1.md', 'LIBRI_LFW.md', 'CONTRIBUTING.md', 'CHANGELOG.md',
         'notes/negative-results.md', 'data/README.md')
DEMO_RUNS = ('demo-media/cid/seed0', 'demo-media/cmpc/seed0', 'demo-faa/faa/seed0')
DEMO_SWEEP = 'demo-scale'
DEMO_REPORTS = {'evaluate': ('runs', None), 'demo': ('media', 'scale')} # their parameters for the runs and the sweep
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)')


def title_of(notebook:dict) -> str:
    "The first heading of a notebook."
    for cell in notebook['cells']:
        if cell['cell_type'] == 'markdown' and (m := re.match(r'#\s+(.+)', ''.join(cell['source']))): return m[1]
    return ''


def module_of(notebook:dict) -> str:
    "The module that a chapter exports, or ''."
    for cell in notebook['cells']:
        if m := re.search(r'^#\|\s*default_exp\s+(\S+)', ''.join(cell['source']), re.M): return f'vfassoc.{m[1]}'
    return ''


def public_modules() -> list[str]:
    "The modules of the library that declare public names."
    import vfassoc
    found = [info.name for info in pkgutil.walk_packages(vfassoc.__path__, 'vfassoc.')]
    names = ['vfassoc', *(n for n in found if not n.split('.')[-1].startswith('_'))]
    return [n for n in names if getattr(importlib.import_module(n), '__all__', None)]


def shown(cell:dict) -> dict|None:
    "A cell as the site shows it: without directives; None if it is hidden."
    if cell['cell_type'] != 'code': return cell
    source = ''.join(cell['source'])
    directives = re.findall(r'^#\|\s*(\w+)', source, re.M)
    if 'hide' in directives or 'default_exp' in directives: return None
    source = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')
    return {**cell, 'source': source} if source else None


def linked(text:str, here:Path, there:dict[Path, str]) -> str:
    "Markdown whose links to files of the repository lead to pages of the site; a link to no page becomes code."
    def one(m):
        bang, label, target = m.groups()
        url = urlsplit(target)
        if url.scheme or not url.path: return m[0]
        file = (here.parent/unquote(url.path)).resolve()
        if file in there:
            return f'{bang}[{label}](/{there[file]}{"#" + url.fragment if url.fragment else ""})'
        return m[0] if bang else f'{label} (`{target}`)'
    return LINK.sub(one, text)


class Stage:
    "The folder that Sphinx reads: copies of what the repository holds, and what is generated from it."
    def __init__(self, root:Path, folder:Path, chapters:list[str]|None=None):
        self.root, self.folder = root, folder
        self.only = chapters and {root/'nbs'/f'{c}.ipynb' for c in chapters}
        self.modules = public_modules() if not chapters else self.modules_of(self.only)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.parts = [p for p in sorted((root/'nbs').iterdir()) if p.is_dir() and self.notebooks(p)]
        self.parts.sort(key=lambda p: (p.name == 'reports', p.name))
        self.there = {root/p: p.lower().replace('.md', '') + '.md' for p in PAGES if (root/p).is_file()}
        for part in self.parts:
            for nb in self.notebooks(part): self.there[nb] = f'{part.name}/{nb.name}'
        if (root/'nbs/index.ipynb').is_file(): self.there[root/'nbs/index.ipynb'] = 'index.md'
        for picture in (root/'figures/published').glob('*.png'): self.there[picture] = f'figures/{picture.name}'

    def notebooks(self, part:Path) -> list[Path]:
        "The notebooks of a part that the site shows."
        return [f for f in sorted(part.glob('*.ipynb')) if not self.only or f in self.only]

    @staticmethod
    def modules_of(files) -> list[str]:
        "The modules with public names that some chapters export."
        found = [module_of(json.loads(f.read_text(encoding='utf-8'))) for f in sorted(files)]
        there = [m for m in found if m and (ROOT/f'{m.replace(".", "/")}.py').is_file()]
        return [m for m in there if getattr(importlib.import_module(m), '__all__', None)]

    def write(self, name:str, text:str):
        "A text file of the stage."
        path = self.folder/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')

    def pages(self):
        "README and the other pages, and the published figures."
        for file, name in self.there.items():
            if file.suffix == '.md': self.write(name, linked(file.read_text(encoding='utf-8'), file, self.there))
            if file.suffix == '.png':
                (self.folder/name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.folder/name)

    def chapter(self, file:Path):
        "One chapter, without hidden cells and directives, with a line that leads to its module's reference."
        nb = json.loads(file.read_text(encoding='utf-8'))
        cells = [c for c in map(shown, nb['cells']) if c]
        for c in cells:
            if c['cell_type'] == 'markdown': c['source'] = linked(''.join(c['source']), file, self.there)
        if (module := module_of(nb)) in self.modules:
            at = 1 + next((i for i, c in enumerate(cells) if c['cell_type'] == 'markdown'), 0)
            text = f'Module [`{module}`](/api/{module}.md) · source `{file.relative_to(self.root)}`'
            cells.insert(at, dict(cell_type='markdown', metadata={}, source=text, id='module-line'))
        self.write(self.there[file], json.dumps({**nb, 'cells': cells}, ensure_ascii=False))

    def reports(self, runs:Path|None):
        "The report notebooks: executed on the demo's runs where these exist, else their source."
        from vfassoc.core import VfassocError
        part = self.root/'nbs/reports'
        for file in self.notebooks(part):
            done = None
            if runs and file.stem in DEMO_REPORTS:
                try: done = self.executed(file, runs)
                except VfassocError as e: sys.exit(f'book: report {file.stem}: {e}')
            if done is None: self.chapter(file)
            else: self.write(self.there[file], done)

    def executed(self, file:Path, runs:Path) -> str:
        "A report, run on the demo's runs, as a notebook of the site."
        from vfassoc.experiments.runner import declared, run_report
        out = self.folder/'_executed'/file.stem
        several, sweep = DEMO_REPORTS[file.stem]
        given = {several: [str(runs/r) for r in DEMO_RUNS], **({sweep: str(runs/DEMO_SWEEP)} if sweep else {})}
        if 'figures' in declared(file): given['figures'] = str(out)
        notebook, _ = run_report(file, out, given)
        nb = json.loads(Path(notebook).read_text(encoding='utf-8'))
        for c in nb['cells']:
            if c['cell_type'] == 'code': c['outputs'] = [o for o in c['outputs'] if o.get('name') != 'stderr']
        nb['cells'] = [c for c in nb['cells'] if c['cell_type'] == 'markdown' or c['outputs']]
        return json.dumps({**nb, 'metadata': {k: v for k, v in nb['metadata'].items() if k != 'widgets'}},
                          ensure_ascii=False)

    def api(self):
        "One page for each module that has public names, and their index."
        names = self.modules
        chapters = {module_of(json.loads(f.read_text(encoding='utf-8'))): f for f in self.there if f.suffix == '.ipynb'}
        for name in names:
            text = f'# `{name}`\n\n'
            if name in chapters:
                title = title_of(json.loads(chapters[name].read_text(encoding='utf-8')))
                text += f'Chapter [{title}](/{self.there[chapters[name]]})\n\n'
            members = ', '.join(n for n in importlib.import_module(name).__all__)
            text += f'```{{eval-rst}}\n.. automodule:: {name}\n   :members: {members}\n```\n'
            self.write(f'api/{name}.md', text)
        rooms = {}
        for n in names: rooms.setdefault(n.split('.')[1] if n.count('.') > 1 else 'vfassoc', []).append(n)
        text = ('# API reference\n\n'
                'Every public name, with shapes, defaults and meanings, from the comments of its definition.\n')
        for room, modules in rooms.items():
            text += f'\n## {room}\n\n' + '\n'.join(f'- [`{m}`]({m}.md): {self.summary(m)}' for m in modules) + '\n'
        text += '\n```{toctree}\n:hidden:\n\n' + '\n'.join(names) + '\n```\n'
        self.write('api/index.md', text)

    @staticmethod
    def summary(module:str) -> str:
        "The first line of a module's docstring."
        return (importlib.import_module(module).__doc__ or '').strip().split('\n')[0]

    def index(self):
        "The first page: the map of the book (nbs/index.ipynb), and the sidebar's tree."
        file = self.root/'nbs/index.ipynb'
        if file.is_file():
            cells = json.loads(file.read_text(encoding='utf-8'))['cells']
            text = '\n\n'.join(linked(''.join(c['source']), file, self.there) for c in cells if c['cell_type'] ==
                               'markdown')
        else:
            text = '# vfassoc\n\nVoice-face association: a research book that runs, and its library.'
        own = [f'{p.removesuffix(".md")} </{self.there[self.root/p]}>' for p in PAGES if (self.root/p).is_file()]
        text += self.tree('The project', own) + self.tree('Reference', ['api/index.md'])
        for part in self.parts:
            caption = re.sub(r'^(\d+)_', r'\1 · ', part.name).replace('_', ' ')
            text += self.tree(caption, [self.there[f] for f in self.notebooks(part)])
        self.write('index.md', text)

    @staticmethod
    def tree(caption:str, docs:list[str]) -> str:
        "A hidden toctree: one section of the sidebar. An entry is a document or `title </document>`."
        return f'\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(d if d.endswith('>') else f'/{d}'
                                                                                    for d in docs) + '\n```\n'


class _Links(HTMLParser):
    "The targets and the anchors of one page."
    def __init__(self):
        super().__init__()
        self.targets, self.anchors = [], {''}

    def handle_starttag(self, tag, attrs):
        for k, v in attrs:
            if k in ('id', 'name') and v: self.anchors.add(v)
            if k in ('href', 'src') and v and tag != 'base': self.targets.append((tag, v))


def broken_links(site:Path) -> list[str]:
    "Links of the site's pages that lead to no file or anchor of it, and resources that would come from elsewhere."
    pages = {}
    for file in site.rglob('*.html'):
        p = _Links()
        p.feed(file.read_text(encoding='utf-8'))
        pages[file.resolve()] = p
    bad = []
    for file, p in pages.items():
        for tag, target in p.targets:
            url = urlsplit(target)
            if url.scheme == 'data' or url.scheme == 'mailto': continue
            if url.scheme or url.netloc:
                if tag in ('script', 'img', 'link', 'iframe', 'audio', 'source') and 'canonical' not in target:
                    bad.append(f'{file.relative_to(site)}: <{tag}> fetches {target}')
                continue
            to = (file.parent/unquote(url.path)).resolve() if url.path else file
            if to.is_dir(): to = to/'index.html'
            if not to.is_file(): bad.append(f'{file.relative_to(site)}: {target} leads to no file')
            elif to in pages and unquote(url.fragment) not in pages[to].anchors:
                bad.append(f'{file.relative_to(site)}: {target} leads to no anchor')
    return bad


def sources() -> str:
    "A digest of all that the site is made from; a finished site of the whole book has it in sources.txt."
    folders = (('nbs', '*.ipynb'), ('vfassoc', '*.py'), ('book', '*'), ('figures/published', '*'))
    files = [*(ROOT/p for p in PAGES), *(f for d, end in folders for f in (ROOT/d).rglob(end))]
    found = hashlib.sha256()
    for f in sorted(f for f in files if f.is_file() and f.parent.name not in ('__pycache__', '.ipynb_checkpoints')):
        found.update(f'{f.relative_to(ROOT)} '.encode() + hashlib.sha256(f.read_bytes()).digest())
    return found.hexdigest()


def build(output:Path, runs:Path|None, chapters:list[str]|None=None) -> int:
    "Stage, run Sphinx with warnings as errors, check links; returns an exit status."
    stage = Stage(ROOT, output/'stage', chapters)
    stage.pages()
    for part in stage.parts:
        if part.name == 'reports': stage.reports(runs)
        else:
            for file in stage.notebooks(part): stage.chapter(file)
    stage.api()
    stage.index()
    site, record = output/'html', output/'sources.txt'
    record.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', '-c', str(ROOT/'book'),
               '-d', str(output/'doctrees'), str(stage.folder), str(site)]
    if status := subprocess.run(command, check=False).returncode: return status
    if bad := broken_links(site.resolve()):
        print('\n'.join(bad), file=sys.stderr)
        print(f'book: {len(bad)} broken links', file=sys.stderr)
        return 1
    if not chapters: record.write_text(sources())
    print(f'{site/"index.html"}: {len(list(site.rglob("*.html")))} pages, every link inside the site leads somewhere')
    return 0


def main() -> int:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--output', type=Path, default=ROOT/'_docs', help='folder of the site (default: _docs)')
    p.add_argument('--runs', type=Path, default=ROOT/'runs', help="folder with the demo's runs (default: runs)")
    p.add_argument('--chapters', nargs='+', metavar='PART/NAME', help='only these notebooks (default: all)')
    a = p.parse_args()
    there = all((a.runs/r).is_file() for r in (*(f'{x}/metrics.json' for x in DEMO_RUNS), f'{DEMO_SWEEP}/grid.json'))
    if not there:
        print(f'book: no runs of the demo in {a.runs}: reports are shown unexecuted; `make demo` makes them',
              file=sys.stderr)
    return build(a.output.resolve(), a.runs.resolve() if there else None, a.chapters)


if __name__ == '__main__': sys.exit(main())
