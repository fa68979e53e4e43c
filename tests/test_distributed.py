"Two processes over gloo, the same global batch: the same numbers as one process."
import os, subprocess, sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import toy
from vfassoc.core import gather_rows, world
from vfassoc.losses.contrastive import cid_loss
from vfassoc.training import reduce_rows


# CMPC at a low rate: rho of noise is almost the same for all videos, and its weights magnify the last digit of every step
SLOW = {'cid': {}, 'cmpc': dict(method=toy.METHODS['cmpc'], lr=1e-4, lr_start=1e-4, lr_end=1e-4)}


def spawn(job, folder, port, n=2):
    "Run `job` of this file in n processes as torchrun would start them."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': str(n),
           'ACCELERATE_USE_CPU': 'true', 'CUDA_VISIBLE_DEVICES': ''}
    ps = [subprocess.Popen([sys.executable, __file__, job, str(folder)], env={**env, 'RANK': str(r), 'LOCAL_RANK': str(r)},
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in range(n)]
    outs = [p.communicate(timeout=300)[0] for p in ps]
    assert [p.returncode for p in ps] == [0]*n, outs[0][-3000:]


def port():
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def job_gather(folder):
    torch.distributed.init_process_group('gloo')
    rank, n = world()
    g = torch.Generator().manual_seed(0)
    v, f = torch.nn.functional.normalize(torch.randn(2, 8, 4, generator=g), dim=2)
    mine = slice(rank*4, rank*4 + 4)
    a, b = v[mine].clone().requires_grad_(), f[mine].clone().requires_grad_()
    w = torch.arange(8.)[mine]
    loss = reduce_rows(cid_loss(a, b, .1), w)
    loss.backward()
    save_file({'loss': loss.detach()[None], 'v': a.grad, 'f': b.grad, 'all': gather_rows(a.detach())}, f'{folder}/{rank}.safetensors')


def job_train(folder): toy.run(folder)
def job_cmpc(folder): toy.run(folder, **SLOW['cmpc'])


def test_gathered_loss_and_gradient_equal_one_process(tmp_path):
    spawn('gather', tmp_path, port())
    parts = [load_file(tmp_path/f'{r}.safetensors') for r in range(2)]
    g = torch.Generator().manual_seed(0)
    v, f = torch.nn.functional.normalize(torch.randn(2, 8, 4, generator=g), dim=2)
    v.requires_grad_(), f.requires_grad_()
    loss = reduce_rows(cid_loss(v, f, .1), torch.arange(8.))
    loss.backward()
    torch.testing.assert_close(sum(p['loss'] for p in parts)[0]/2, loss.detach())
    for k,x in (('v', v), ('f', f)):
        torch.testing.assert_close(torch.cat([p[k] for p in parts])/2, x.grad)   # DDP divides by the number of processes
    for p in parts: torch.testing.assert_close(p['all'], v.detach())


@pytest.mark.parametrize('job, method', [('train', 'cid'), ('cmpc', 'cmpc')])
def test_two_processes_give_the_loss_curve_of_one(tmp_path, job, method):
    spawn(job, tmp_path/'two', port())
    model, _ = toy.run(tmp_path/'one', **SLOW[method])
    one, two = (pd.read_csv(tmp_path/k/'history.csv') for k in ('one', 'two'))
    assert len(one) == 3 and (one.loss.diff().dropna() != 0).all()
    assert one.loss.tolist() == pytest.approx(two.loss.tolist(), abs=1e-5)
    two_weights = load_file(tmp_path/'two/checkpoints/last.safetensors')
    for k,x in model.state_dict().items(): torch.testing.assert_close(two_weights[f'method/{k}'], x, atol=5e-3, rtol=0)


if __name__ == '__main__':
    torch.set_num_threads(1)
    globals()[f'job_{sys.argv[1]}'](sys.argv[2])
