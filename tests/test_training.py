"Runs that are killed, interrupted, out of disk or out of numbers."
import errno, json, os, signal, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import toy
from vfassoc.training import checkpoint as training_checkpoint
import vfassoc.training.loop as training
from clean_process import run_all
from vfassoc.core import RunError, RunFolder
from vfassoc.training.checkpoint import load_tensors
from vfassoc.training.config import TrainConfig
from vfassoc.training.loop import StopFlag


def weights(model): return {k: v.clone() for k,v in model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def child(folder, at):
    "A training run in a new interpreter, SIGKILLed before step `at`; exit status and output."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, toy.__file__, str(folder), str(at)]
    r = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    return r.returncode, r.stderr


def forked(folder, at):
    "The same in a process that starts at once."
    (code,), (said,) = run_all([(toy.killed, (str(folder), at), {})], folder.with_suffix('.said'))
    return code, said


def test_sigkill_and_resume_is_bit_identical(tmp_path):
    "SIGKILL before a first checkpoint, in the middle of an epoch, at its border, and twice in one run."
    code, said = forked(tmp_path/'whole', -1)
    assert code == 0, said
    whole = load_file(tmp_path/'whole/end.safetensors')
    for start, kills in ((forked, [2]), (child, [11]), (forked, [12, 17])):
        folder = tmp_path/f'kill{kills[0]}'
        for k in kills: assert start(folder, k)[0] == -signal.SIGKILL
        code, said = forked(folder, -1)
        assert code == 0, said[-2000:]
        assert same(whole, load_file(folder/'end.safetensors')), kills
        a, b = (pd.read_csv(f/'history.csv').drop(columns='seconds') for f in (tmp_path/'whole', folder))
        pd.testing.assert_frame_equal(a, b, check_exact=True)


@pytest.mark.parametrize('name, kills', [
    ('cmpc', [5, 9, 14]), ('cmpc-annealed', [9, 14]),
    ('cmpc-released', [7, 13]), ('faa', [5, 9, 14]), ('faa-hardest', [8])])
def test_memories_and_prototypes_are_resumed_bit_identically(tmp_path, name, kills):
    method, kw = toy.METHODS[name], dict(validate=lambda m: .5) if 'faa' in name else {} # a schedule that moves
    model, _ = toy.run(tmp_path/'a', method=method, **kw)
    whole = weights(model)
    if name == 'faa': assert model.schedule.clusters == 12 and len(model.label.unique()) == 24
    for k in kills:
        def power_cut(step):
            if step == k: raise RuntimeError
        with pytest.raises(RuntimeError): toy.run(tmp_path/'b', power_cut, method=method, **kw)
    again, _ = toy.run(tmp_path/'b', method=method, **kw)
    assert same(whole, weights(again)) and again.extra_state() == model.extra_state()
    other = weights(toy.run(tmp_path/'c')[0])
    assert not same({k: whole[k] for k in other}, other), 'the prototypes never acted'


@pytest.mark.parametrize('method', ['cmpc', 'faa'])
def test_positives_of_a_methods_clusters_are_resumed_bit_identically(tmp_path, method):
    "The clusters change from epoch to epoch; a run that is cut off inside one draws the same faces as a whole one."
    made = {**toy.METHODS[method], **({'recalibration': False} if method == 'cmpc' else {})}
    kw = dict(method=made, positives={'positives': 'cluster'}, validate=lambda m: .5)
    model, _ = toy.run(tmp_path/'a', **kw)
    for k in (8, 15):
        def power_cut(step):
            if step == k: raise RuntimeError
        with pytest.raises(RuntimeError): toy.run(tmp_path/'b', power_cut, **kw)
    again, _ = toy.run(tmp_path/'b', **kw)
    assert same(weights(model), weights(again)) and again.extra_state() == model.extra_state()
    other, _ = toy.run(tmp_path/'c', method=made, validate=lambda m: .5)
    assert not same(weights(other), weights(model)), 'no face of another video'


def test_a_history_is_the_same_after_a_kill_between_an_epochs_last_step_and_its_end(tmp_path):
    "The 12th step ends the second epoch and writes a checkpoint: the resumed run finds no batch left in it."
    toy.run(tmp_path/'a', method=toy.METHODS['cmpc'], validate=lambda m: .5)
    def power_cut(method):
        if len(pd.read_csv(tmp_path/'b/history.csv')) == 1: raise RuntimeError
        return .5
    (tmp_path/'b').mkdir()
    (tmp_path/'b/history.csv').write_text('epoch\n')
    with pytest.raises(RuntimeError): toy.run(tmp_path/'b', method=toy.METHODS['cmpc'], validate=power_cut)
    state = load_tensors(tmp_path/'b/checkpoints/last.safetensors')[1]['state']
    assert (state['step'], state['epoch'], state['step_in_epoch']) == (12, 1, 6)
    toy.run(tmp_path/'b', method=toy.METHODS['cmpc'], validate=lambda m: .5)
    a, b = (pd.read_csv(tmp_path/k/'history.csv').drop(columns='seconds') for k in 'ab')
    assert a.prototypes.tolist() == [0, 1, 1]
    pd.testing.assert_frame_equal(a, b, check_exact=True)


@pytest.mark.parametrize('name', ['cmpc', 'cmpc-released'])
def test_a_bad_batch_is_said_where_the_loss_is_read_and_spoils_no_memory(tmp_path, name):
    method = toy.build(method=toy.METHODS[name])
    real, n = method.loss, iter(range(10**6))
    def loss(v, f, idx):
        if next(n) == 9: v = v*torch.where(idx == idx[3], torch.nan, 1.)[:, None]
        return real(v, f, idx)
    method.loss = loss
    cfg = TrainConfig(total_samples=18*8, batch_size=8, lr_warmup=0, checkpoint_every=4)
    with pytest.raises(RunError, match=r'Memory: 1 of 8 values are not finite \(first: row \d+\)'):
        training.fit(method, toy.batches, 6, cfg, RunFolder(tmp_path), quiet=True)
    tensors, plain = load_tensors(tmp_path/'checkpoints/last.safetensors')
    assert plain['state']['step'] == 8
    for m in method.memory.values(): assert m.rows.isfinite().all()


def test_resume_needs_the_random_state(tmp_path, monkeypatch):
    "The test above can fail: without the random state the dropout differs."
    whole = weights(toy.run(tmp_path/'a', dropout=True)[0])
    def stop(s):
        if s == 11: raise RuntimeError
    with pytest.raises(RuntimeError): toy.run(tmp_path/'b', stop, dropout=True)
    monkeypatch.setattr(training_checkpoint, '_set_random_state', lambda *a: None)
    assert not same(whole, weights(toy.run(tmp_path/'b', dropout=True)[0]))


def test_ctrl_c_leaves_a_usable_run(tmp_path):
    whole = weights(toy.run(tmp_path/'a')[0])
    _, stopped = toy.run(tmp_path/'b', lambda s: signal.raise_signal(signal.SIGINT) if s == 9 else None)
    assert not stopped.finished and stopped.state.step == 10 and 'goes on from here' in stopped.reason
    model, end = toy.run(tmp_path/'b')
    assert end.finished and same(whole, weights(model))


def test_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopFlag():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_finished_run_does_nothing(tmp_path):
    toy.run(tmp_path)
    before = (tmp_path/'checkpoints/last.safetensors').read_bytes()
    def never(step): raise AssertionError('a finished run trained again')
    assert toy.run(tmp_path, never)[1].finished
    assert (tmp_path/'checkpoints/last.safetensors').read_bytes() == before


def test_early_stop_and_best(tmp_path):
    scores = iter([.6, .7, .65, .66, .9, .9])
    _, r = toy.run(tmp_path, steps=36, patience=2, validate=lambda m: next(scores))
    assert r.state.epoch == 4 and r.state.best_epoch == 2 and 'early' in r.reason
    _, about = load_tensors(tmp_path/'checkpoints/best.safetensors')
    assert about['epoch'] == 2 and about['valid_auc'] == pytest.approx(.7)
    assert pd.read_csv(tmp_path/'history.csv').valid_auc.tolist() == pytest.approx([.6, .7, .65, .66])
    _, again = toy.run(tmp_path, steps=36, patience=2, validate=lambda m: next(scores))
    assert again.state.epoch == 4, 'an early-stopped run must not go on when started again'


def test_validation_sees_eval_mode_and_training_goes_on_in_train_mode(tmp_path):
    modes = []
    model, _ = toy.run(tmp_path, validate=lambda m: modes.append(m.training) or .5)
    assert modes == [False]*3 and model.training


def test_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    def poison(method, at):
        forward, n = method.loss, iter(range(10**6))
        method.loss = lambda v, f, i: (forward(v, f, i)[0]*(float('nan') if next(n) == at else 1.), None)
    model = toy.build()
    poison(model, 9)
    cfg = TrainConfig(total_samples=18*8, batch_size=8, lr_warmup=0, checkpoint_every=4)
    with pytest.raises(RunError, match=r'not finite at step 10 \(epoch 2\).*lower train.peak_lr'):
        training.fit(model, toy.batches, 6, cfg, RunFolder(tmp_path), quiet=True)
    tensors, plain = load_tensors(tmp_path/'checkpoints/last.safetensors')
    assert plain['state']['step'] == 8
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


def test_disk_full_in_the_middle_of_a_checkpoint(tmp_path, monkeypatch):
    whole = weights(toy.run(tmp_path/'a')[0])
    real, n = training_checkpoint.save_file, iter(range(10**6))
    def full(tensors, path, meta):
        if next(n) < 3: return real(tensors, path, meta)
        Path(path).write_bytes(b'half a checkpoint')
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(training_checkpoint, 'save_file', full)
    with pytest.raises(RunError, match='cannot be written .No space left on device.*free space'): toy.run(tmp_path/'b')
    assert sorted(p.name for p in (tmp_path/'b/checkpoints').iterdir()) == ['best.safetensors', 'last.safetensors']
    load_tensors(tmp_path/'b/checkpoints/last.safetensors')
    monkeypatch.setattr(training_checkpoint, 'save_file', real)
    assert same(whole, weights(toy.run(tmp_path/'b')[0]))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_read_only_run_folder_as_a_user(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match=f'^{tmp_path}/run'): toy.run(tmp_path/'run')
    finally: tmp_path.chmod(0o700)


def test_read_only_run_folder(tmp_path, monkeypatch):
    def refuse(*a, **k): raise OSError(errno.EROFS, 'Read-only file system')
    monkeypatch.setattr(Path, 'mkdir', refuse)
    with pytest.raises(RunError, match='cannot be written .Read-only file system'): toy.run(tmp_path/'run')


def test_run_folder_is_a_file(tmp_path):
    (tmp_path/'run').write_text('')
    with pytest.raises(RunError, match=f'^{tmp_path}/run'): toy.run(tmp_path/'run')


def test_other_configuration_or_model_is_refused(tmp_path):
    toy.run(tmp_path)
    with pytest.raises(RunError, match='started with peak_lr = 0.005, asked for 0.001'): toy.run(tmp_path, peak_lr=1e-3)
    opt = torch.optim.Adam(toy.build(dim=16).parameters())
    cfg = TrainConfig(total_samples=18*8, batch_size=8, lr_warmup=0, checkpoint_every=4)
    with pytest.raises(RunError, match=rf'^{tmp_path}/checkpoints/last\.safetensors: .*\(\S+ '):
        training.load_checkpoint(RunFolder(tmp_path), toy.build(dim=16), opt, cfg)


def test_compiled_towers_learn_the_same_and_are_resumed(tmp_path, monkeypatch):
    "Traced and differentiated as ever, but the graphs are run as they are: writing C++ for them takes minutes."
    whole, graphs = torch.nn.Module.compile, []
    def traced(self):
        whole(self, backend='aot_eager')
        graphs.append(self)
    monkeypatch.setattr(torch.nn.Module, 'compile', traced)
    eager, _ = toy.run(tmp_path/'eager', validate=lambda m: float(toy.pooled(m.model).std()))
    def stop(s):
        if s == 9: raise RuntimeError
    with pytest.raises(RuntimeError): toy.run(tmp_path/'run', stop, compile=True)
    model, end = toy.run(tmp_path/'run', compile=True, validate=lambda m: float(toy.pooled(m.model).std()))
    assert end.finished and graphs[-2:] == [model.model.voice, model.model.face]
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    a, b = (pd.read_csv(tmp_path/r/'history.csv') for r in ('eager', 'run'))
    assert abs(a.loss - b.loss).max() < 1e-3*a.loss.max() and a.loss.iloc[-1] != a.loss.iloc[0]
    assert weights(model).keys() == weights(eager).keys() # as ever: readable without a compiler
    with pytest.raises(RunError, match='started with compile = True'): toy.run(tmp_path/'run')


def test_no_compiler_says_so_in_one_line(tmp_path, monkeypatch):
    "The compiler is a file that is not there."
    monkeypatch.setattr(torch._inductor.config.cpp, 'cxx', (str(tmp_path/'none'),))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path/'cache'))
    torch._dynamo.reset()
    with pytest.raises(RunError, match='train.compile = false') as e: toy.run(tmp_path/'run', compile=True)
    assert len(str(e.value)) < 400 and '\n' not in str(e.value)


def test_a_run_from_before_a_setting_was_there_is_resumed(tmp_path, monkeypatch):
    toy.run(tmp_path, steps=18)
    tensors, plain = load_tensors(tmp_path/'checkpoints/last.safetensors')
    del plain['train']['compile']
    training.save_tensors(tmp_path/'checkpoints/last.safetensors', tensors, plain)
    assert toy.run(tmp_path, steps=18)[1].finished


def test_fewer_videos_than_a_batch(tmp_path):
    with pytest.raises(RunError, match='fewer training videos than batch_size'):
        training.fit(toy.build(), toy.batches, 0, TrainConfig(), RunFolder(tmp_path), quiet=True)


@pytest.mark.parametrize('bad, words', [
    (dict(total_samples=0), 'samples = 0'), (dict(peak_lr=0.), 'lr = 0.0'), (dict(batch_size=1), 'batch_size = 1'),
    (dict(lr_warmup=4_000_000), 'below total_samples'),
    (dict(weight_decay=-1.), 'weight_decay = -1'), (dict(optimizer='sgd'), 'sgd'),
    (dict(mixed_precision='fp8'), 'fp8')])
def test_impossible_values(bad, words):
    with pytest.raises(training.RunError.__base__, match=words): TrainConfig(**bad)


def test_no_pickle_in_a_checkpoint(tmp_path):
    toy.run(tmp_path)
    raw = (tmp_path/'checkpoints/last.safetensors').read_bytes()
    header = json.loads(raw[8:8 + int.from_bytes(raw[:8], 'little')])
    assert {k.split('/')[0] for k in header if k != '__metadata__'} == {'method', 'optim', 'random0'}
