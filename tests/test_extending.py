"What other packages rely on: a run is opened once; a method, an encoder and a loss from outside work wherever a name is written."
import dataclasses, json, os, subprocess, sys

import numpy as np
import pytest
import torch

from tiny_grid import PROTOCOL, SYNTH, here, ini
from vfassoc.core import read_json
from vfassoc.evaluation.run import evaluate_run
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training import checkpoint
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import load_run, train

SMALL = {'corpus': 'tiny', 'data.crop_seconds': 1., 'data.face_size': 32, 'model.dim': 8, 'train.total_samples': 16, 'train.batch_size': 8,
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
    monkeypatch.setattr(checkpoint, 'safe_open', lambda path, *a, **k: checkpoints.append(str(path)) or real(path, *a, **k))
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
