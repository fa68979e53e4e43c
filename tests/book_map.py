"""The map of the book: `python tests/book_map.py` (or `make index`) writes nbs/index.ipynb and the chapters' links."""
import hashlib, json, os, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    'start': 'The whole story once, and the symbols', 'corpus': 'From files to batches',
    'video': 'From talking-face videos to a corpus',
    'synthetic': 'A corpus whose every latent variable is known',
    'models': 'Encoders, the two-tower model, the fusion transformer',
    'clustering': 'Memory, prototypes, pseudo-labels',
    'losses': 'One formula, one function', 'methods': 'A loss with its state',
    'training': 'From a recipe to a run folder', 'evaluation': 'Metrics, trials, intervals',
    'experiments': 'Sweeps, tables, plots, reports', 'inference': 'Using a trained model',
    'appendix': 'What a first reading skips', 'exchange': 'Public feature sets, lists and challenges of the field'}
TITLE = ('# Voice-face association: the map\n\n> Every chapter of the book in reading order, one line each, and three '
         'ways through it.')
BEFORE = ('The chapters use Python 3.11, PyTorch and NumPy. You need linear algebra, the softmax and its '
          'cross-entropy, and what a convolution and an optimizer do. '
          'Nothing is assumed about speech or face recognition. Every chapter runs on two CPU cores in under 20 s and '
          'needs no data.')
PATHS = [
    ('Reader', 'the ideas, in order', ('start', 'corpus.dataset', 'models.two_tower', 'losses.infonce',
                                       'clustering.memory', 'clustering.kmeans', 'losses.prototype',
                                       'losses.recalibration',
                                      'methods.cmpc', 'models.fusion', 'clustering.pseudo_labels', 'losses.matching',
                                       'methods.faa', 'evaluation.metrics', 'evaluation.protocol')),
    ('Experimenter', 'train and compare', ('start', 'corpus.layout', 'corpus.manifest', 'training.recipes',
                                           'training.run', 'evaluation.run', 'experiments.sweeps', 'experiments.tables',
                                         'experiments.comparison', 'experiments.runner')),
    ('Engineer', 'extend and deploy', ('core', 'methods.base', 'methods.registry', 'experiments.extending',
                                       'models.pretrained', 'models.embedding', 'training.loop', 'training.checkpoint',
                                       'training.extract', 'inference')),
]

def chapters(root=ROOT) -> list[Path]:
    "Chapters in reading order, relative to `root`; reports and the index are none."
    return sorted(p.relative_to(root) for p in (root/'nbs').glob('[0-9]*/*.ipynb') if not p.name.startswith('.'))

def _read(path) -> dict: return json.loads(path.read_text(encoding='utf-8'))

def _text(cell) -> str: return ''.join(cell['source'])

def _head(nb) -> tuple[str, str]:
    "Title and summary of a chapter."
    title, _, rest = _text(nb['cells'][1]).partition('\n')
    return title.removeprefix('#').strip(), next((l.removeprefix('>').strip() for l in rest.splitlines()
                                                  if l.startswith('>')), '')

def _module(nb) -> str: return _text(nb['cells'][0]).removeprefix('#| default_exp').strip()

def _link(title, to, start) -> str: return f'[{title}]({Path(os.path.relpath(to, start)).as_posix()})'

def linked(root=ROOT) -> dict:
    "Path -> the notebook as it should be: chapters with their links, and the index."
    paths = chapters(root)
    nbs = {p: _read(root/p) for p in paths}
    heads = {p: _head(nb) for p, nb in nbs.items()}
    for k, p in enumerate(paths):
        title, line = heads[p]
        near = [f'{word}: {_link(heads[q][0], q, p.parent)}'
                for word, q in (('Before', paths[k - 1] if k else None),
                                ('after', paths[k + 1] if k + 1 < len(paths) else None)) if q]
        near = ' · '.join(near)
        cell = f'# {title}\n\n> {line}\n\n*{near[:1].upper()}{near[1:]}*'
        nbs[p]['cells'][1]['source'] = cell.splitlines(keepends=True)
    return {**nbs, Path('nbs/index.ipynb'): _index(paths, nbs, heads)}

def _index(paths, nbs, heads) -> dict:
    texts = [TITLE, '## Before you begin', BEFORE, '## Ways through the book']
    where = {_module(nb): p for p, nb in nbs.items()}
    for name, what, names in PATHS:
        stops = [p for n in names for m, p in where.items() if m == n or '.' not in n and m.startswith(n + '.')
                 and n != 'core']
        texts.append(f'**{name}** ({what}): ' + ' → '.join(_link(heads[p][0], p, 'nbs') for p in stops))
    for part in dict.fromkeys(p.parts[1] for p in paths):
        number, _, name = part.partition('_')
        own = [p for p in paths if p.parts[1] == part]
        texts.append(f'## {int(number)} {name.capitalize()}')
        texts.append(f'{PARTS.get(name, name.capitalize())}.\n\n' +
                     '\n'.join(f'{i + 1}. {_link(heads[p][0], p, "nbs")}: {heads[p][1]}' for i, p in enumerate(own)))
    reports = sorted((ROOT/'nbs'/'reports').glob('*.ipynb'))
    texts += ['## Reports', 'Notebooks with parameters; `vfassoc report NAME` runs one on your runs.\n\n' + '\n'.join(
        f'- {_link(t, p.relative_to(ROOT), "nbs")}: {line}' for p in reports for t, line in [_head(_read(p))])]
    def cell(i, s):
        return dict(cell_type='markdown', id=hashlib.sha256(f'index {i}'.encode()).hexdigest()[:8], metadata={},
                    source=s.splitlines(keepends=True))
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    return dict(cells=[cell(i, s) for i, s in enumerate(texts)], metadata=kernel, nbformat=4, nbformat_minor=5)

def stale(root=ROOT) -> list[Path]:
    "Notebooks that the map would write otherwise."
    return [p for p, nb in linked(root).items() if not (root/p).exists()
            or [_text(c) for c in _read(root/p)['cells']] != [_text(c) for c in nb['cells']]]

if __name__ == '__main__':
    for p, nb in linked().items():
        text = json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n'
        if not (ROOT/p).exists() or (ROOT/p).read_text(encoding='utf-8') != text:
            (ROOT/p).write_text(text, encoding='utf-8')
            print(p)
