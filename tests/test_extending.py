"The promises to other packages: a run is opened once; outside methods, encoders and losses work by name everywhere."
import json, os, subprocess, sys

import pytest
import torch

from tiny_grid import PROTOCOL, SYNTH, here, ini
from vfassoc.core import ConfigError, read_json
from vfassoc.evaluation.run import evaluate_run
from vfassoc.methods.registry import build_method
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training import checkpoint
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import load_run, train

SMALL = {'corpus': 'tiny', 'data.crop_seconds': 1., 'data.face_size': 32, 'model.dim': 8, 'train.total_samples': 16,
         'train.batch_size': 8,
         'train.lr_warmup': 8}
WATCHED = []


@pytest.fixture(scope='module', autouse=True)
def watch():
    "Note every file that Python opens while WATCHED holds a list."
    sys.addaudithook(lambda event, args: WATCHED[-1].append(str(args[0])) if event == 'open' and WATCHED else None)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp('extending')
    write_corpus(here(folder).data/'tiny', SynthConfig(**SYNTH), workers=1)
    return folder


@pytest.fixture(scope='module')
def trained(home):
    assert train(load_recipe('cid-demo', SMALL), home/'runs/cid', here(home), quiet=True).finished
    return home/'runs/cid'


def test_an_evaluation_opens_the_run_once(home, trained, monkeypatch):
    checkpoints, real = [], checkpoint.safe_open
    monkeypatch.setattr(checkpoint, 'safe_open', lambda path, *a,
                        **k: checkpoints.append(str(path)) or real(path, *a, **k))
    WATCHED.append([])
    try: result = evaluate_run(trained, here(home), PROTOCOL)
    finally: opened = WATCHED.pop()
    assert opened.count(str(trained/'config.json')) == 1
    assert checkpoints == [str(trained/'checkpoints/best.safetensors')]
    assert len(result.scores) == len(read_json(trained/'metrics.json')['scores']) > 0


def test_a_run_says_what_it_is(trained):
    run = load_run(trained)
    assert run.path == trained and run.recipe.name == 'CID' and run.pair_scorer is None
    assert run.identities == set(run.about['identities']) and len(run.identities) > 0 and not run.model.training


# ---- from another package

METHOD = """
from dataclasses import dataclass
import torch
from vfassoc.methods.base import Method, register_method

@dataclass(frozen=True)
class HingeConfig:
    margin:float = .3

@register_method('hinge')
class Hinge(Method):
    "Each voice is nearer to its face than to the next one in the batch, by a margin."
    config_class = HingeConfig
    def __init__(self, model, cfg, n, corpus=''):
        super().__init__(model)
        self.cfg = cfg

    def loss(self, v, f, idx): return ((v*f.roll(1, 0)).sum(1) - (v*f).sum(1) + self.cfg.margin).relu(), None
"""
ENCODER = """
from torch import nn
from torchvision.models import resnet18
from vfassoc.models.two_tower import register_encoder

def tower(channels, dim):
    net = resnet18(weights=None)
    net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    net.fc = nn.Linear(512, dim)
    return net

@register_encoder('resnet18', min_face_size=32)
def pair(cfg): return tower(1, cfg.dim), tower(3, cfg.dim)

def by_timm(cfg):
    import timm
    make = lambda channels: timm.create_model('resnet10t', in_chans=channels, num_classes=cfg.dim)
    return make(1), make(3)
"""
LOSS = """
def pull(v, f, y, cfg): return cfg.margin*(1 - (v*f).sum(1))
def push(v, f, y, cfg): return cfg.margin*(1 + (v*f).sum(1))
"""


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    "A package that nobody installed, of one file for each thing it adds; the folder it lies in."
    folder = tmp_path_factory.mktemp('site')
    (folder/'outside').mkdir()
    for name, text in {'__init__': '', 'methods': METHOD, 'encoders': ENCODER, 'losses': LOSS}.items():
        (folder/'outside'/f'{name}.py').write_text(text)
    (folder/'outside-1.0.dist-info').mkdir()
    (folder/'outside-1.0.dist-info/METADATA').write_text('Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n')
    (folder/'outside-1.0.dist-info/entry_points.txt').write_text(
        '[vfassoc.methods]\nhinge-by-entry-point = outside.methods:Hinge\n[vfassoc.encoders]\nr18 = '
        'outside.encoders:pair\n')
    return folder


def vfassoc(home, package, *args):
    env = {**os.environ, 'VFASSOC_SETTINGS': str(ini(home)), 'PYTHONPATH': str(package), 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, '-m', 'vfassoc', *args], env=env, cwd=home, capture_output=True, text=True,
                          timeout=600)


def test_a_grid_of_a_method_and_an_encoder_from_outside(home, package):
    "Workers are fresh processes; the scores are read by a process of its own, too."
    changes = {**SMALL, 'method.margin': .4}
    grid = dict(recipe='cmpc-demo', variants={'small': {}, 'resnet18': {'model.encoder': 'outside.encoders:pair'}},
                seeds=[0],
                changes=changes, evaluate=PROTOCOL)
    grid['variants'] = {k: {**v, 'recipe': str(home/'outside.json')} for k, v in grid['variants'].items()}
    recipe = dict(name='Hinge', corpus='tiny', data={}, model=dict(projection='none'),
                  method=dict(name='outside.methods:Hinge'), train={})
    (home/'outside.json').write_text(json.dumps(recipe))
    (home/'g.json').write_text(json.dumps(grid))
    out = vfassoc(home, package, 'grid', 'g.json', '--jobs', '2')
    assert out.returncode == 0 and '2 of 2 cells finished' in out.stdout, out.stderr[-2000:]
    assert 'method: name = outside.methods:Hinge: imports outside.methods' in out.stderr
    config = read_json(home/'runs/g/resnet18/seed0/config.json')
    assert 'outside.methods:Hinge' in json.dumps(config['method']) and 'outside.encoders:pair' in json.dumps(
        config['model'])
    out = vfassoc(home, package, 'evaluate', str(home/'runs/g/resnet18/seed0'),
                  *(x for k, v in PROTOCOL.items() for x in ('--set', f'{k}={json.dumps(v)}')))
    assert out.returncode == 0 and 'resnet18' in out.stdout, out.stderr[-2000:]


def test_entry_points_are_names(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    r = load_recipe('demo', {'method': {'name': 'hinge-by-entry-point', 'margin': .2}, 'model.encoder': 'r18'})
    assert r.model.spec.min_face_size == 32
    with pytest.raises(ConfigError, match='margins'):
        load_recipe('demo', {'method': {'name': 'hinge-by-entry-point', 'margins': .2}})


def test_an_alignment_loss_from_outside_is_the_one_that_is_taken(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    model = VoiceFaceModel(ModelConfig('linear', dim=4, voice_dim=3, face_dim=3, projection='none'))
    v = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    for name, sign in (('pull', -1), ('push', 1)):
        method = build_method({'name': 'faa', 'alignment_loss': f'outside.losses:{name}', 'use_fusion': False,
                               'margin': .5}, model, 6)
        assert torch.allclose(method.loss(v, v.roll(1, 0), torch.arange(6))[0], .5*(1 + sign*(v*v.roll(1, 0)).sum(1)))


@pytest.mark.parametrize('change, where, value', [
    ({'method': {'name': 'sid'}}, 'method: name', "'sid'"),
    ({'method': {'name': 'no.such:Method'}}, 'method: name', "'no.such:Method'"),
    ({'method': {'name': 'math:hypot'}}, 'method: name', "'math:hypot'"),
    ({'method': {'name': ['cid']}}, 'method: name', 'cid'),
    ({'model.encoder': 'resnet19'}, 'model: ', "'resnet19'"), ({'model.encoder': 'math:pi'}, 'model: ', "'math:pi'"),
    ({'method': {'name': 'faa', 'alignment_loss': 'triplets'}}, 'method faa: ', "'triplets'")])
def test_a_name_that_stands_for_nothing_is_one_line(change, where, value):
    with pytest.raises(ConfigError) as e: load_recipe('demo', change)
    assert where in str(e.value) and value in str(e.value) and '\n' not in str(e.value)


def test_a_timm_model_by_name(package, monkeypatch):
    pytest.importorskip('timm')
    monkeypatch.syspath_prepend(str(package))
    model = VoiceFaceModel(ModelConfig('outside.encoders:by_timm', dim=8)).eval()
    with torch.no_grad(): v, f = model(torch.randn(2, 16000), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert v.shape == f.shape == (2, 8)


# ---- the public names

def test_the_public_names_are_light_and_lazy():
    code = ("import sys, vfassoc; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules); "
            "assert set(vfassoc.__all__) <= set(dir(vfassoc)); [getattr(vfassoc, n) for n in vfassoc.__all__]; "
            "from vfassoc import load, train, evaluate, Settings; assert evaluate.__name__ == 'evaluate_run'; "
            "assert not hasattr(vfassoc, 'nothing')")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
