"The memory of one modality and the column of rho: the public code's numbers, two processes, saving, bad input."
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from clean_process import run_ranks
from vfassoc.clustering.memory import Memory, ScalarMemory
from vfassoc.core import ConfigError, RunError, rank_and_world
from vfassoc.methods.registry import build_method
from vfassoc.training.loop import reduce_rows

N, D, STEPS, BATCH = 60, 6, 12, 8


def batches():
    "The same global batches in every process; two of them repeat a row, within a part and across parts."
    g = torch.Generator().manual_seed(3)
    out = [(torch.randn(BATCH, D, generator=g), torch.randperm(N, generator=g)[:BATCH]) for _ in range(STEPS)]
    out[4][1][1] = out[4][1][0]
    out[7][1][BATCH - 1] = out[7][1][0]
    return out


def fill(variant='paper', part=slice(None)):
    memory, rho = Memory(N, D, variant=variant, corpus='ab'*32), ScalarMemory(N)
    for z, idx in batches():
        memory.update(z[part], idx[part])
        rho.update(z[part, 0], idx[part])
    stores = dict(memory=memory, rho=rho)
    return {f'{name}.{k}': v for name, store in stores.items() for k, v in store.state_dict().items()}


def worker(folder):
    torch.distributed.init_process_group('gloo')
    rank, n = rank_and_world()
    for variant in ('paper', 'released'):
        save_file(fill(variant, slice(rank*BATCH//n, (rank + 1)*BATCH//n)), f'{folder}/{variant}{rank}.safetensors')
    torch.distributed.destroy_process_group()


def test_two_processes_hold_the_memory_of_one(tmp_path):
    run_ranks(worker, (tmp_path,), tmp_path)
    for variant in ('paper', 'released'):
        one = fill(variant)
        assert one['memory.seen'].sum() > BATCH and one['rho.seen'].sum() < N
        for r in range(2):
            got = load_file(tmp_path/f'{variant}{r}.safetensors')
            assert got.keys() == one.keys()
            for k in one: assert torch.equal(got[k], one[k]), (variant, r, k)


@pytest.mark.parametrize('side', 'vf')
def test_released_memory_is_that_of_the_public_code(side):
    shared = os.environ.get('VFASSOC_SHARED')
    if not shared or not Path(shared, 'golden').is_dir(): pytest.skip('VFASSOC_SHARED has no published outputs')
    d = {k: torch.from_numpy(v) for k,v in np.load(Path(shared, 'golden', 'released_memory.npz')).items()}
    memory = Memory(*d[f'start_{side}'].shape, momentum=.5, variant='released')
    memory.rows.copy_(d[f'start_{side}'])
    for t in range(4): memory.update(d[f'{side}_{t}'], d[f'idx_{t}'])
    end = d[f'end_{side}']
    assert ((memory.rows - end).norm()/end.norm()).item() < 1e-5
    torch.testing.assert_close(memory.rows, end, rtol=1e-5, atol=1e-6)


def test_released_starts_from_unit_rows_that_take_part():
    a, b = Memory(50, 8, variant='released', seed=1), Memory(50, 8, variant='released', seed=2)
    torch.testing.assert_close(a.rows.norm(dim=1), torch.ones(50))
    assert not torch.equal(a.rows, b.rows) and torch.equal(a.rows, Memory(50, 8, variant='released', seed=1).rows)
    assert len(a.seen_rows()[1]) == 50
    a.update(9*torch.randn(5, 8), torch.arange(5))
    torch.testing.assert_close(a.rows.norm(dim=1), torch.ones(50))


def test_paper_rows_are_not_normalised_and_unseen_ones_stay_out():
    memory = Memory(5, 2)
    memory.update(torch.tensor([[3., 4.]]), torch.tensor([1]))
    assert memory.rows[1].tolist() == [3., 4.]                       # the first visit writes the embedding itself
    memory.update(torch.tensor([[0., 0.]]), torch.tensor([1]))
    assert memory.rows[1].tolist() == [1.5, 2.]
    rows, idx = memory.seen_rows()
    assert idx.tolist() == [1]
    torch.testing.assert_close(rows, torch.tensor([[.6, .8]]))


@pytest.mark.parametrize('m, want', [(0., [0., 2.]), (1., [1., 1.]), (.25, [.25, 1.75])])
def test_momentum(m, want):
    memory = Memory(1, 2, momentum=m)
    memory.update(torch.ones(1, 2), torch.tensor([0]))
    memory.update(torch.tensor([[0., 2.]]), torch.tensor([0]))
    assert memory.rows[0].tolist() == want


def test_no_gradient_and_float32_under_mixed_precision():
    memory, z = Memory(3, 4), torch.randn(2, 4, requires_grad=True)
    memory.update(z, torch.tensor([0, 2]))
    assert not memory.rows.requires_grad and z.grad is None and memory.rows.grad_fn is None
    memory.update(z.to(torch.bfloat16), torch.tensor([0, 2]))
    assert memory.rows.dtype == torch.float32
    z.data.zero_()
    assert memory.rows[0].norm() > 0                                 # rows are copies, not views of the batch


def test_an_empty_part_changes_nothing():
    memory = Memory(3, 4)
    memory.update(torch.empty(0, 4), torch.empty(0, dtype=torch.long))
    assert not memory.seen.any()


def test_state_goes_through_a_file(tmp_path):
    state = fill()
    save_file(state, tmp_path/'x.safetensors')
    back = load_file(tmp_path/'x.safetensors')
    memory = Memory(N, D, corpus='ab'*32)
    memory.load_state_dict({k[7:]: v for k,v in back.items() if k.startswith('memory.')})
    for k,v in memory.state_dict().items(): assert torch.equal(v, state['memory.' + k])


def one_line(e): return '\n' not in str(e.value) and len(str(e.value)) > 20


@pytest.mark.parametrize('z, idx, word', [
    (torch.tensor([[1., 2.], [torch.nan, 0.], [torch.inf, 0.]]), [0, 2, 1],
     '2 of 3 values are not finite (first: row 2)'),
    (torch.ones(1, 2), [4], 'row 4 is outside 0 to 3'),
    (torch.ones(1, 2), [-1], 'row -1 is outside 0 to 3'),
    (torch.ones(2, 2), [0], '2 values for (1,) rows'),
    (torch.ones(1, 3), [0], 'shape (1, 3) do not fit rows of width 2'),
    (torch.ones(2), [0, 1], 'shape (2,) do not fit rows of width 2'),
])
def test_bad_batches_leave_the_memory_as_it_was(z, idx, word):
    memory = Memory(4, 2)
    memory.update(torch.ones(1, 2), torch.tensor([3]))
    before = {k: v.clone() for k,v in memory.state_dict().items()}
    with pytest.raises(RunError) as e:
        memory.update(z, torch.tensor(idx))
        for k in before: assert torch.equal(getattr(memory, k), before[k]) # only the error waits for `check`
        memory.check()
    assert word in str(e.value) and one_line(e)
    for k,v in memory.state_dict().items(): assert torch.equal(v, before[k])


@pytest.mark.parametrize('ask', [Memory.check, Memory.seen_rows, Memory.state_dict])
def test_the_first_bad_batch_is_said_once_and_the_next_good_one_is_written(ask):
    memory = Memory(4, 2)
    memory.update(torch.tensor([[1., 2.], [torch.nan, 0.]]), torch.tensor([1, 3]))
    memory.update(torch.ones(1, 2), torch.tensor([9]))
    memory.update(torch.ones(1, 2), torch.tensor([2]))
    with pytest.raises(RunError, match=r'1 of 2 values are not finite \(first: row 3\)'): ask(memory)
    ask(memory)
    assert memory.seen.tolist() == [False, False, True, False]


def waiting(n, d, **kw):
    "Memory and buffer written one arrival at a time, by what Python sees of each: the definition."
    rows, seen, values = [None]*n, [False]*n, [None]*n
    def update(z, idx, rho, m=.5):
        last = {i: k for k, i in enumerate(idx.tolist())}
        for i, k in last.items(): rows[i] = m*rows[i] + (1 - m)*z[k] if seen[i] else z[k]
        for k, i in enumerate(idx.tolist()):
            seen[i] = True
            if not rho[k].isnan(): values[i] = rho[k]
    return rows, seen, values, update


def test_nothing_but_the_last_arrival_shows_whatever_repeats_or_is_unknown():
    g, n, d = torch.Generator().manual_seed(0), 9, 3
    memory, buffer = Memory(n, d), ScalarMemory(n)
    rows, seen, values, update = waiting(n, d)
    for step in range(60):
        b = step % 8 + 1 # from one entry to many repeats of nine rows
        z, idx = torch.randn(b, d, generator=g), torch.randint(0, n, (b,), generator=g)
        rho = torch.randn(b, generator=g)
        rho[torch.rand(b, generator=g) < (1. if step == 30 else .4)] = torch.nan
        memory.update(z, idx)
        buffer.update(rho, idx)
        update(z, idx, rho)
        torch.testing.assert_close(memory.rows[memory.seen], torch.stack([r for r in rows if r is not None]))
        assert memory.seen.tolist() == seen and buffer.seen.tolist() == [v is not None for v in values]
        known = torch.tensor([v for v in values if v is not None])
        assert buffer.values[buffer.seen].tolist() == known.tolist()
        if not len(known): continue
        mean, std = buffer.mean_std()
        torch.testing.assert_close(mean, known.double().mean().float())
        torch.testing.assert_close(std, known.double().std(correction=0).float())
    memory.check()
    buffer.check()


WAITS = {
    '_local_scalar_dense', 'item', 'is_nonzero', 'nonzero', 'nonzero_numpy', 'argwhere', 'unique_dim', '_unique',
    '_unique2', 'unique_consecutive', 'masked_select', 'equal', 'allclose', 'bincount', 'histc', 'repeat_interleave',
}


class Waits(TorchDispatchMode):
    "Record the operations that make Python wait for a GPU: their result is read, or their size depends on the data."
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ('index', 'index_put', 'index_put_') else ()
        masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if name in WAITS or masked: self.found.append(name)
        return func(*args, **(kwargs or {}))


def step_of(method, idx, d, device='cpu'):
    "One step as the trainer does it, from embeddings to their gradient."
    v, f = (F.normalize(torch.randn(len(idx), d, device=device), dim=1).requires_grad_() for _ in 'vf')
    reduce_rows(*method.loss(v, f, idx)).backward()
    return v.grad


@pytest.mark.parametrize('warm', [True, False])
@pytest.mark.parametrize('name', ['cmpc', 'cmpc-released'])
def test_a_step_of_cmpc_asks_the_device_for_nothing(name, warm, monkeypatch):
    torch.manual_seed(0)
    towers = torch.nn.Module()
    towers.cfg = SimpleNamespace(dim=8)
    method = build_method({'name': name, 'num_prototypes': (4, 9), 'cid_samples': 10**9 if warm else 0}, towers, 48)
    for part in torch.arange(48).split(16): step_of(method, part, 8) # the first batch of `cmpc-released` has prototypes
    method.on_epoch_start(0)
    method.check()
    if name == 'cmpc': assert (method.prototypes() is None) == warm
    with Waits() as waits: step_of(method, torch.arange(16), 8)
    assert waits.found == []
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kw: nullcontext()) # autocast has no device 'meta'
    method.to('meta') # no tensor has values there, so an operation that reads one fails
    if name == 'cmpc' and not warm:
        voice, face, agreement = method._stacked
        voice, face = (replace(p, centroids=p.centroids.to('meta'), assign=p.assign.to('meta')) for p in (voice, face))
        method._stacked = voice, face, agreement.to('meta')
    step_of(method, torch.arange(16, device='meta'), 8, 'meta')
    with pytest.raises((NotImplementedError, RuntimeError)): method.check() # the one place that reads values


def test_the_counter_sees_what_waits():
    x, idx, mask = torch.arange(6.), torch.tensor([1, 1, 2]), torch.tensor([True, False]*3)
    for ask in (
        lambda: bool(x.any()), lambda: float(x.sum()), lambda: idx.unique(), lambda: x[mask], lambda: x.nonzero(),
        lambda: x.masked_select(mask), lambda: torch.equal(x, x), lambda: x.__setitem__(mask, 0.),
        lambda: x[x.argmax()],
    ):
        with Waits() as waits: ask()
        assert waits.found, ask
    with Waits() as waits: x[idx], x.masked_fill(mask, 0.), x.where(mask, 0.), (x > 2).any(), x.sort()
    assert waits.found == []


@pytest.mark.parametrize('kw, word', [
    (dict(variant='relased'), "variant = 'relased'"), (dict(n=0), 'n = 0'), (dict(corpus='v1'), "corpus = 'v1'"),
])
def test_bad_settings(kw, word):
    with pytest.raises(ConfigError) as e: Memory(**{'n': 4, 'd': 2, **kw})
    assert word in str(e.value) and one_line(e)


@pytest.mark.parametrize('other, word', [
    (Memory(5, 2, corpus='ab'*32), 'has 5 rows, this corpus 4'),
    (Memory(4, 3, corpus='ab'*32), '3 wide, this model gives 2'),
    (Memory(4, 2, corpus='cd'*32), 'of corpus cdcdcdcdcdcd, this corpus is abababababab'),
])
def test_a_memory_of_another_corpus_is_refused_untouched(other, word):
    memory = Memory(4, 2, corpus='ab'*32)
    memory.update(torch.ones(1, 2), torch.tensor([3]))
    before = {k: v.clone() for k,v in memory.state_dict().items()}
    with pytest.raises(RunError) as e: memory.load_state_dict(other.state_dict())
    assert word in str(e.value) and one_line(e)
    for k,v in memory.state_dict().items(): assert torch.equal(v, before[k])


def test_a_memory_whose_corpus_is_not_known_loads_and_learns_it():
    memory, known = Memory(4, 2), Memory(4, 2, corpus='ab'*32)
    memory.load_state_dict(known.state_dict())
    assert torch.equal(memory.corpus, known.corpus)


def test_a_known_corpus_is_not_forgotten():
    memory = Memory(4, 2, corpus='ab'*32)
    memory.load_state_dict(Memory(4, 2).state_dict())
    assert memory.corpus[0] == 0xab


def test_rho_buffer():
    rho = ScalarMemory(6)
    assert all(x.isnan() for x in rho.mean_std())
    with pytest.raises(RunError, match='^ScalarMemory: '): rho.check()
    rho.update(torch.tensor([1., 2., 3., 9.]), torch.tensor([0, 1, 2, 0]))       # row 0 twice: the last counts
    rho.update(torch.tensor([torch.nan, 4.]), torch.tensor([1, 3]))              # unknown: the old value stays
    assert rho.values.tolist() == [9., 2., 3., 4., 0., 0.] and rho.seen.tolist() == [True]*4 + [False]*2
    mean, std = rho.mean_std()
    want = torch.tensor([9., 2., 3., 4.])
    torch.testing.assert_close(mean, want.mean())
    torch.testing.assert_close(std, want.std(correction=0))
    for bad, idx, word in ((torch.tensor([torch.inf]), [1], 'not finite'), (torch.ones(1), [6], 'outside 0 to 5'),
                           (torch.ones(1, 1), [0], 'one number')):
        with pytest.raises(RunError, match=word):
            rho.update(bad, torch.tensor(idx))
            rho.check()
    with pytest.raises(RunError, match='has 6 rows, this corpus 5'): ScalarMemory(5).load_state_dict(rho.state_dict())
