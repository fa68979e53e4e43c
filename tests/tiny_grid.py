"A grid that trains in seconds: 24 drawn people, three videos each, small towers, a handful of steps."
from pathlib import Path

from bs4 import BeautifulSoup

from checkout import ROOT
from hostile import ODD, unsafe
from vfassoc.core import Settings
from vfassoc.experiments.runner import run_report
from vfassoc.experiments.sweeps import Grid, run_grid

SYNTH = dict(identities=24, videos_per_identity=3, seconds=1., frames=1, size=40, train=.5, valid=.17)
CHANGES = {'corpus': 'tiny', 'data.crop_seconds': 1., 'data.face_size': 32, 'model.dim': 8, 'train.total_samples': 96,
           'train.batch_size': 8, 'train.lr_warmup': 8, 'train.trace': True}
KS = {'method.num_prototypes': [4, 8], 'method.cid_samples': 32}
VARIANTS = {'CID': {**KS, 'method.prototypes': False, 'method.recalibration': False},
            '+ prototypes': {**KS, 'method.recalibration': False}, 'CMPC': KS,
            'CMPC as released': {**KS, 'recipe': 'cmpc-released-demo', 'method.cluster_every': 5},
            'CMPC, 2 shots': {'recipe': 'low-shot-demo', 'init_from': '@CMPC', 'data.shots': 2},
            'supervised': {'recipe': 'dimnet-i-demo'}}
PROTOCOL = dict(replicates=100, verification_trials=200, matching_trials=100, candidates=[2])


def tiny(variants=('CID', 'CMPC'), seeds=(0,), **extra):
    return Grid('cmpc-demo', {v: VARIANTS[v] for v in variants}, tuple(seeds), {**CHANGES, **extra}, PROTOCOL, SYNTH)


def here(folder):
    return Settings(data=Path(folder)/'data', runs=Path(folder)/'runs', figures=Path(folder)/'figures', device='cpu',
                    workers=0)


def ini(folder):
    "The same as a settings.ini."
    path = Path(folder)/'settings.ini'
    path.write_text('[vfassoc]\ndata = data\nruns = runs\nfigures = figures\ndevice = cpu\nworkers = 0\n')
    return path


def finished(plan, folder, jobs=2):
    "The folder, in which a grid has run to its end as `runs/g`."
    ini(folder)
    t = run_grid(plan, folder/'runs'/'g', here(folder), jobs=jobs, say=lambda line: None)
    assert set(t.result) == {'done'}, t.result.tolist()
    return folder


def page(name, folder, **parameters):
    "A report's page, its text, and the names of its figures; its title is an odd one unless another is given."
    _, html = run_report(ROOT/'nbs'/'reports'/f'{name}.ipynb', folder/name,
                         {'title': ODD, **parameters, 'figures': folder/'figures'}, quiet=True)
    assert unsafe(html.read_text()) == []
    soup = BeautifulSoup(html.read_text(), 'html.parser')
    return soup, ' '.join(soup.get_text(' ').split()), {p.name for p in (folder/'figures').glob('*.png')}
