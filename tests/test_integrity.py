"A changed byte, a header of another form, a full disk: one line, or nothing has changed."
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vfassoc.core import RunError, RunFolder, VfassocError
from vfassoc.encoders import ModelConfig, VoiceFaceModel
from vfassoc.methods.catalog import build_method
from vfassoc.training import FitState, TrainConfig, load_checkpoint, load_tensors, save_checkpoint, save_tensors

CONFIG = TrainConfig(samples=16, batch_size=8, warmup=0)


def one_line(error, *words):
    text = str(error.value if hasattr(error, 'value') else error)
    assert '\n' not in text and len(text) < 500 and all(str(w) in text for w in words), text


def flipped(path:Path, at:int, mask:int=255):
    raw = bytearray(path.read_bytes())
    raw[at] ^= mask
    path.write_bytes(raw)


def fuzz(path:Path, read, places:int=80, seed:int=0):
    "Change one byte at a time: `read()` gives what it gave, or one line."
    whole, rng, refused = path.read_bytes(), np.random.default_rng(seed), 0
    before = read()
    for at in rng.choice(len(whole), min(places, len(whole)), replace=False):
        flipped(path, int(at), int(rng.choice([1, 32, 128, 255])))
        try: now = read()
        except VfassocError as e:
            one_line(e)
            refused += 1
        else: assert now == before, f'{path.name}: byte {at} of {len(whole)} changed and nobody noticed'
        path.write_bytes(whole)
    assert read() == before
    return refused


# ---- checkpoints

def plain(tensors, header):
    return {k: (str(t.dtype), tuple(t.shape), t.reshape(-1).view(torch.uint8).tolist()) for k,t in tensors.items()}, header


def model(): return build_method({'name': 'cid'}, VoiceFaceModel(ModelConfig('features', dim=2, projection='none', voice_dim=3, face_dim=2)), 8)


@pytest.fixture
def run(tmp_path):
    method, run = model(), RunFolder(tmp_path/'run')
    opt = torch.optim.Adam(method.parameters())
    sum(p.sum() for p in method.parameters()).backward()
    opt.step()
    run.checkpoints.mkdir(parents=True)
    save_checkpoint(run, method, opt, FitState(step=1, history=[dict(epoch=1, loss=float('nan'))]), CONFIG)
    return run


def resume(run):
    method = model()
    return load_checkpoint(run, method, torch.optim.Adam(method.parameters()), CONFIG)


def test_a_checkpoint_is_resumed_from(run):
    state = resume(run)
    assert state.step == 1 and state.history[0]['epoch'] == 1 and np.isnan(state.history[0]['loss'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_of_every_type_keep_their_bits(tmp_path, dtype):
    t = {'x': torch.arange(6).reshape(2, 3).to(dtype), 'empty': torch.zeros(0, 4, dtype=dtype), 'one': torch.tensor(1).to(dtype)}
    save_tensors(tmp_path/'t', t, {'a': [1, (2, 3)], 'nan': float('nan')})
    back, header = load_tensors(tmp_path/'t')
    assert all(torch.equal(t[k], back[k]) and t[k].dtype == back[k].dtype for k in t) and header['a'] == [1, [2, 3]] and set(header) == {'a', 'nan'}


def test_a_changed_byte_in_a_checkpoint_is_said(run):
    path = run.checkpoints/'last.safetensors'
    whole = path.read_bytes()
    for at in (len(whole) - 1, len(whole)//2, whole.index(b'\\"step\\": 1') + len(b'\\"step\\": ')):
        flipped(path, at, 1)
        with pytest.raises(RunError) as e: resume(run)
        one_line(e, path, 'delete')
        path.write_bytes(whole)
    resume(run)


def test_no_changed_byte_of_a_checkpoint_passes(tmp_path):
    save_tensors(tmp_path/'x', {'a': torch.arange(20.), 'b': torch.arange(7)}, dict(state=dict(step=3), method={}, name='ä'))
    assert fuzz(tmp_path/'x', lambda: plain(*load_tensors(tmp_path/'x')), 200) > 150


def test_a_checkpoint_without_a_digest_opens(run):
    path = run.checkpoints/'last.safetensors'
    tensors, header = load_tensors(path)
    save_file(tensors, path, {'plain': json.dumps(header)}) # as earlier versions wrote it
    assert resume(run).step == 1
    flipped(path, path.stat().st_size - 1, 1)
    resume(run)


@pytest.mark.parametrize('change, words', [
    (dict(state=dict(step=-5)), 'state.step = \'-5\''), (dict(state=dict(step='3')), 'state.step'), (dict(state=dict(step=True)), 'state.step'), (dict(state=dict(loss_sum=float('inf'))), 'state.loss_sum'),
    (dict(state=dict(steps=3)), 'state.steps'), (dict(state=[]), 'state'), (dict(state=None), 'state'), (dict(state=dict(history=[3])), 'state.history.0'), (dict(state=dict(history={})), 'state.history'),
    (dict(train=[]), 'train'), (dict(method=3), 'method'), (dict(processes=0), 'processes'), (dict(processes='1'), 'processes'), (dict(random=None), 'random'), (dict(random=dict(python=[3, [1], None])), 'random.numpy'),
    (dict(random=dict(python=[3, [1], None], numpy=['MT19937', 0, 0, 0.])), 'cannot be resumed from')])
def test_a_header_of_another_form_is_one_line(run, change, words):
    path = run.checkpoints/'last.safetensors'
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, {**header, **change})
    with pytest.raises(RunError) as e: resume(run)
    one_line(e, path, words)


@pytest.mark.parametrize('key', ['state', 'train', 'method', 'random', 'processes'])
def test_a_header_without_a_key_is_one_line(run, key):
    path = run.checkpoints/'last.safetensors'
    tensors, header = load_tensors(path)
    del header[key]
    save_tensors(path, tensors, header)
    with pytest.raises(RunError) as e: resume(run)
    one_line(e, path, f'{key}:')


@pytest.mark.parametrize('gone', ['random0/cpu', 'random0/numpy', 'optim/0.step', 'method/model.voice.0.weight'])
def test_a_checkpoint_without_a_tensor_is_one_line(run, gone):
    path = run.checkpoints/'last.safetensors'
    tensors, header = load_tensors(path)
    gone = gone if gone in tensors else next(k for k in tensors if k.startswith(gone.split('/')[0] + '/'))
    del tensors[gone]
    save_tensors(path, tensors, header)
    with pytest.raises(RunError) as e: resume(run)
    one_line(e, path)


@pytest.mark.parametrize('header', ['[]', 'null', '3', '"x"', '{', '['*100_000])
def test_a_header_that_is_no_table_is_one_line(tmp_path, header):
    save_file({'a': torch.zeros(2)}, tmp_path/'x', {'plain': header})
    with pytest.raises(RunError) as e: load_tensors(tmp_path/'x')
    one_line(e, tmp_path/'x')
