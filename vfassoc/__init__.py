"""Voice-face association: the dozen names that most uses begin with, imported when they are used. Written by hand."""
from pkgutil import resolve_name

__version__ = "0.1.0"

_WHERE = {
    'Settings': 'core:Settings', 'load_settings': 'core:load_settings', 'open_corpus': 'training.run:open_corpus',
    'load_recipe': 'training.recipes:load_recipe', 'train': 'training.run:train', 'load': 'inference.matcher:load',
    'evaluate': 'evaluation.run:evaluate_run', 'score': 'evaluation.score:score',
    'load_grid': 'experiments.sweeps:load_grid',
    'run_grid': 'experiments.sweeps:run_grid', 'read_scores': 'experiments.tables:read_scores',
    'Method': 'methods.base:Method', 'register_method': 'methods.base:register_method',
    'register_encoder': 'models.two_tower:register_encoder', 'register_loss': 'methods.faa:register_loss'}
__all__ = ['__version__', *_WHERE]


def __getattr__(name):
    if name not in _WHERE: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    globals()[name] = resolve_name(f'{__name__}.{_WHERE[name]}')
    return globals()[name]


def __dir__(): return sorted({*globals(), *__all__})
