"Two processes over gloo, the same global batch: the same numbers as one process."
import os, subprocess, sys
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import toy
from clean_process import free_port, run_ranks
from vfassoc.core import gather_rows, barrier_before_exit, rank_and_world
from vfassoc.losses.infonce import cid_loss
from vfassoc.losses.matching import gumbel_noise, hard_negatives, match_rows
from vfassoc.models.fusion import FusionConfig, FusionEncoder
from vfassoc.training.loop import reduce_rows


# CMPC at a low rate: rho of noise is almost equal for all videos, and its weights magnify the last digit of every step
SLOW = {'cid': {}, 'cmpc': dict(method=toy.METHODS['cmpc'], peak_lr=1e-4, lr_start=1e-4, lr_end=1e-4),
        **{k: dict(method=toy.METHODS[k], validate=lambda method: .5, peak_lr=1e-3) for k in ('faa', 'faa-hardest')}}


def spawn(job, folder, n=2):
    "Run `job` of this file in n new interpreters as torchrun would start them."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port()),
           'WORLD_SIZE': str(n), 'ACCELERATE_USE_CPU': 'true', 'CUDA_VISIBLE_DEVICES': ''}
    def start(r):
        ranks = {'RANK': str(r), 'LOCAL_RANK': str(r)}
        return subprocess.Popen([sys.executable, __file__, job, str(folder)], env={**env, **ranks},
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ps = [start(r) for r in range(n)]
    try: outs = [p.communicate(timeout=300)[0] for p in ps]
    finally:
        for p in ps: p.kill() # no process is left
    assert [p.returncode for p in ps] == [0]*n, outs[0][-3000:]


@contextmanager
def group():
    "A process group, destroyed before its processes end: gloo's threads, still running then, sometimes abort them."
    torch.distributed.init_process_group('gloo')
    yield
    barrier_before_exit()
    torch.distributed.destroy_process_group()


def job_gather(folder):
    with group(): gather(folder, *rank_and_world())


def gather(folder, rank, n):
    g = torch.Generator().manual_seed(0)
    v, f = torch.nn.functional.normalize(torch.randn(2, 8, 4, generator=g), dim=2)
    mine = slice(rank*4, rank*4 + 4)
    a, b = v[mine].clone().requires_grad_(), f[mine].clone().requires_grad_()
    w = torch.arange(8.)[mine]
    loss = reduce_rows(cid_loss(a, b, .1), w)
    loss.backward()
    out = {'loss': loss.detach()[None], 'v': a.grad, 'f': b.grad, 'all': gather_rows(a.detach())}
    save_file(out, f'{folder}/{rank}.safetensors')


def job_train(folder, method='cid'): toy.run(folder, **SLOW[method])


def mined(how, rank=0, n=1):
    "Loss and gradients of the matching part of FAA for this process's half of a fixed batch of 12, and what was mined."
    g = torch.Generator().manual_seed(3)
    v, f = torch.nn.functional.normalize(torch.randn(2, 12, 8, generator=g), dim=2)
    y = torch.randint(0, 4, (12,), generator=g)
    torch.manual_seed(1)
    fusion = FusionEncoder(FusionConfig(dim=8, layers=2, heads=2, inner=16, dropout=0.))
    mine = slice(rank*12//n, (rank + 1)*12//n)
    a, b, label = v[mine].clone().requires_grad_(), f[mine].clone().requires_grad_(), y[mine]
    u = gumbel_noise(0, 7, 12, rank, n)
    pairs = (a.detach(), b.detach()), (b.detach(), a.detach())
    chosen = torch.stack([hard_negatives(x, label, gather_rows(z), gather_rows(label), how, u[k])[0]
                          for k, (x, z) in enumerate(pairs)])
    loss = reduce_rows(match_rows(fusion, a, b, label, how, u)[0])
    loss.backward()
    weight = fusion.head.weight.grad
    return {'loss': loss.detach()[None], 'v': a.grad, 'f': b.grad, 'chosen': chosen, 'weight': weight}


def job_mine(folder):
    with group():
        for how in ('hardest', 'sampled', 'random'):
            found = mined(how, *rank_and_world())
            save_file({k: t.contiguous() for k, t in found.items()}, f'{folder}/{how}{rank_and_world()[0]}.safetensors')


def test_gathered_loss_and_gradient_equal_one_process(tmp_path):
    run_ranks(job_gather, (tmp_path,), tmp_path)
    parts = [load_file(tmp_path/f'{r}.safetensors') for r in range(2)]
    g = torch.Generator().manual_seed(0)
    v, f = torch.nn.functional.normalize(torch.randn(2, 8, 4, generator=g), dim=2)
    v.requires_grad_(), f.requires_grad_()
    loss = reduce_rows(cid_loss(v, f, .1), torch.arange(8.))
    loss.backward()
    torch.testing.assert_close(sum(p['loss'] for p in parts)[0]/2, loss.detach())
    for k,x in (('v', v), ('f', f)):
        torch.testing.assert_close(torch.cat([p[k] for p in parts])/2, x.grad) # DDP divides by the number of processes
    for p in parts: torch.testing.assert_close(p['all'], v.detach())


def test_two_processes_mine_the_negatives_of_one_and_give_them_the_same_gradient(tmp_path):
    run_ranks(job_mine, (tmp_path,), tmp_path)
    for how in ('hardest', 'sampled', 'random'):
        one, parts = mined(how), [load_file(tmp_path/f'{how}{r}.safetensors') for r in range(2)]
        assert torch.equal(torch.cat([p['chosen'] for p in parts], 1), one['chosen']), how
        assert (one['chosen'][:, :6] >= 6).any() # some negatives come from the other process
        torch.testing.assert_close(sum(p['loss'] for p in parts)/2, one['loss'])
        torch.testing.assert_close(sum(p['weight'] for p in parts)/2, one['weight'])
        for k in 'vf': torch.testing.assert_close(torch.cat([p[k] for p in parts])/2, one[k])


@pytest.mark.parametrize('method', list(SLOW))
def test_two_processes_give_the_loss_curve_of_one(tmp_path, method):
    "CID in new interpreters, which must also end without an error; the others in processes that start at once."
    if method == 'cid': spawn('train', tmp_path/'two')
    else: run_ranks(job_train, (tmp_path/'two', method), tmp_path, ACCELERATE_USE_CPU='true')
    model, _ = toy.run(tmp_path/'one', **SLOW[method])
    one, two = (pd.read_csv(tmp_path/k/'history.csv') for k in ('one', 'two'))
    assert len(one) == 3 and (one.loss.diff().dropna() != 0).all()
    assert one.loss.tolist() == pytest.approx(two.loss.tolist(), abs=1e-5)
    two_weights = load_file(tmp_path/'two/checkpoints/last.safetensors')
    for k,x in model.state_dict().items(): torch.testing.assert_close(two_weights[f'method/{k}'], x, atol=5e-3, rtol=0)


if __name__ == '__main__':
    torch.set_num_threads(1)
    globals()[f'job_{sys.argv[1]}'](sys.argv[2])
