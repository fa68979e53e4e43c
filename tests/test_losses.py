"Losses: equal to the published outputs of the released CMPC code, right over two processes, clear about bad input."
import itertools, math, os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from clean_process import run_ranks
from vfassoc.clustering.memory import ScalarMemory
from vfassoc.core import ConfigError, RunError, rank_and_world
from vfassoc.losses.contrastive import negative_at_percentile, pair_contrast, pins_loss
from vfassoc.losses.infonce import cid_loss, info_nce
from vfassoc.losses.prototype import Prototypes, cmpc_loss, prototype_contrast, prototype_losses, stack_prototypes
from vfassoc.losses.recalibration import deviation, prototype_agreement, recalibration_weights
from vfassoc.losses.released_cmpc import (released_cmpc_loss, released_deviation, released_prototype_contrast,
                                          released_temperatures, released_weights)
from vfassoc.losses.triplet import kim_loss, triplet_margin, triplet_ratio
from vfassoc.training.loop import reduce_rows

DEVICES = ['cpu'] + ['cuda']*torch.cuda.is_available()
close = torch.testing.assert_close

def clusterings(n=30, d=8, ks=(3, 5, 7), seed=0, length=None, device='cpu'):
    g = torch.Generator().manual_seed(seed)
    out = []
    for k in ks:
        c = torch.randn(k, d, generator=g)
        out.append(SimpleNamespace(centroids=(c if length is None else length*F.normalize(c, dim=1)).to(device),
                                   assign=torch.randint(k, (n,), generator=g).to(device)))
    return out

def densities(clusters, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [(.1 + .2*torch.rand(len(c.centroids), generator=g)).to(c.centroids.device) for c in clusters]

def batch(b=6, d=8, n=30, seed=2, device='cpu'):
    g = torch.Generator().manual_seed(seed)
    v, f = F.normalize(torch.randn(2, b, d, generator=g), dim=2).to(device)
    return v, f, torch.randperm(n, generator=g)[:b].to(device)

V, Fc = clusterings(seed=0), clusterings(ks=(4, 5, 9), seed=5)
LOSSES = {
    'cid': lambda v, f, idx, V, Fc: cid_loss(v, f),
    'cmpc': lambda v, f, idx, V, Fc: cmpc_loss(v, f, idx, V, Fc),
    'kim': lambda v, f, idx, V, Fc: kim_loss(v, f),
    'kim ratio': lambda v, f, idx, V, Fc: kim_loss(v, f, margin=None),
    'pins': lambda v, f, idx, V, Fc: pins_loss(v, f, .8, margin=1.8),
    'released': lambda v, f, idx, V, Fc: released_cmpc_loss(v, f, idx, V, Fc, densities(V), densities(Fc))[0],
}

# ---- what holds for every loss

@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', LOSSES)
def test_a_loss_is_one_value_a_row_with_gradient_on_its_device(name, device):
    v, f, idx = batch(device=device)
    v.requires_grad_(), f.requires_grad_()
    args = clusterings(seed=0, device=device), clusterings(ks=(4, 5, 9), seed=5, device=device)
    loss = LOSSES[name](v, f, idx, *args)
    assert loss.shape == (6,) and loss.dtype == torch.float32 and loss.device == v.device and (loss >= 0).all()
    gv, gf = torch.autograd.grad(loss.sum(), (v, f))
    assert gv.abs().sum() > 0 and gf.abs().sum() > 0 and gv.isfinite().all() and gf.isfinite().all()
    close(loss.cpu(), LOSSES[name](*(x.cpu() for x in (v, f, idx)), V, Fc), rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize('name', [n for n in LOSSES if n != 'released'])
def test_the_order_of_a_batch_does_not_matter(name):
    v, f, idx = batch()
    p = torch.tensor([3, 0, 5, 1, 4, 2])
    close(LOSSES[name](v, f, idx, V, Fc)[p], LOSSES[name](v[p], f[p], idx[p], V, Fc))

@pytest.mark.parametrize('name', LOSSES)
def test_bfloat16_autocast_changes_nothing_but_the_inputs(name):
    v, f, idx = batch()
    v, f = v.bfloat16(), f.bfloat16()
    with torch.autocast('cpu', torch.bfloat16): loss = LOSSES[name](v, f, idx, V, Fc)
    assert loss.dtype == torch.float32
    close(loss, LOSSES[name](v.float(), f.float(), idx, V, Fc))

@pytest.mark.parametrize('name', LOSSES)
def test_gradient_equals_finite_differences(name):
    v, f, idx = batch()
    u = torch.randn(6, 8, generator=torch.Generator().manual_seed(9))
    def at(t): return LOSSES[name](F.normalize(v + t*u, dim=1), f, idx, V, Fc).sum()
    t = torch.tensor(0., requires_grad=True)
    slope = torch.autograd.grad(at(t), t)[0]
    with torch.no_grad(): numeric = (at(torch.tensor(3e-4)) - at(torch.tensor(-3e-4)))/6e-4
    close(slope, numeric, rtol=2e-2, atol=2e-2)

@pytest.mark.parametrize('name', LOSSES)
def test_identical_and_single_rows_stay_finite(name):
    one = torch.eye(8)[:1].expand(4, -1)  # exactly: every distance is 0, where a square root has no slope
    for v, f, idx in ((one, one, torch.arange(4)), (one[:1], one[:1], torch.tensor([0]))):
        v, f = v.clone().requires_grad_(), f.clone().requires_grad_()
        loss = LOSSES[name](v, f, idx, V, Fc)
        grads = torch.autograd.grad(loss.sum(), (v, f))
        assert loss.isfinite().all() and all(g.isfinite().all() for g in grads)

# ---- prototypes

def test_prototypes_of_other_modality_and_own_row():
    v, f, idx = batch()
    by_hand = [F.cross_entropy(z @ F.normalize(c.centroids, dim=1).T/.03, c.assign[idx], reduction='none')
               for z, cs in ((v, Fc), (f, V)) for c in cs]
    close(cmpc_loss(v, f, idx, V, Fc) - cid_loss(v, f), sum(by_hand)/3, rtol=1e-4, atol=1e-4)

def test_a_row_never_clustered():
    v, f, idx = batch()
    holes = [SimpleNamespace(centroids=c.centroids, assign=c.assign.clone()) for c in Fc]
    for c in holes: c.assign[idx[2]] = -1
    for fn in (lambda: prototype_contrast(v, holes[0], idx), lambda: cmpc_loss(v, f, idx, V, holes),
               lambda: cmpc_loss(v, f, idx, V, stack_prototypes(holes)), lambda: prototype_agreement(V, holes, idx),
               lambda: released_cmpc_loss(v, f, idx, V, holes, densities(V), densities(holes))):
        with pytest.raises(RunError, match=f'row {int(idx[2])} was never clustered'): fn()
    full, part = cmpc_loss(v, f, idx, V, Fc), cmpc_loss(v, f, idx, V, holes, missing='skip')
    keep = torch.arange(6) != 2
    close(part[keep], full[keep])
    close(part[2], cid_loss(v, f)[2] + prototype_losses(f, stack_prototypes(V), idx).mean(1)[2])
    rho = deviation(v, f, prototype_agreement(V, holes, idx, missing='skip'))
    assert rho.isnan().tolist() == (~keep).tolist() and prototype_agreement(V, holes, missing='skip').isnan().sum() == 1
    with pytest.raises(ConfigError, match="prototypes.*missing = 'drop'"):
        cmpc_loss(v, f, idx, V, holes, missing='drop')

@pytest.mark.parametrize('fn, word', [
    (lambda v, f, idx: cmpc_loss(v, f, idx + 25, V, Fc), 'prototypes: .* 30 rows'),
    (lambda v, f, idx: cmpc_loss(v, f, idx - 30, V, Fc), 'prototypes: .* 30 rows'),
    (lambda v, f, idx: cmpc_loss(v, f, idx, clusterings(n=31), Fc), '31 voices and 30 faces'),
    (lambda v, f, idx: prototype_agreement(clusterings(n=31), Fc), 'two memories of one corpus'),
    (lambda v, f, idx: prototype_agreement(V[:2], Fc, idx), 'as many times each'),
    (lambda v, f, idx: stack_prototypes([]), 'no clustering'),
    (lambda v, f, idx: stack_prototypes(V[:1] + clusterings(n=31)), r'\[30, 31\] rows'),
    (lambda v, f, idx: stack_prototypes(V[:1] + clusterings(d=9)), r'\[8, 9\] dimensions'),
    (lambda v, f, idx: stack_prototypes([SimpleNamespace(centroids=V[0].centroids[:2], assign=V[0].assign)]),
     r'K is \(2,\)'),
    (lambda v, f, idx: stack_prototypes([SimpleNamespace(centroids=V[0].centroids, assign=V[0].assign - 2)]),
     'clusters -2 to'),
])
def test_clusters_that_do_not_fit(fn, word):
    with pytest.raises(RunError, match=word) as e: fn(*batch())
    assert '\n' not in str(e.value)

def test_stacked_once_is_the_same_and_checked_once():
    s = stack_prototypes(V)
    assert isinstance(s, Prototypes) and s.complete and s.sizes == (3, 5, 7) and s.centroids.shape == (15, 8)
    close(s.centroids.norm(dim=1), torch.ones(15))
    v, f, idx = batch()
    close(prototype_losses(v, s, idx), torch.stack([prototype_contrast(v, c, idx) for c in V], 1))

# ---- recalibration

def test_weights_have_no_gradient_and_are_the_gaussian_distribution_function():
    v, f, idx = batch()
    v.requires_grad_()
    agree = prototype_agreement(V, Fc, idx)
    rho = deviation(v, f, agree)
    assert not rho.requires_grad and not recalibration_weights((v*f).sum(1), 0., .1).requires_grad
    for delta, kappa in itertools.product((-2., -1., .5), (.01, .1, 2.)):
        gauss = torch.distributions.Normal(.05 + delta*.2, math.sqrt(kappa)*.2)
        close(recalibration_weights(rho, .05, .2, delta, kappa), gauss.cdf(rho), rtol=1e-4, atol=1e-6)

def test_equal_deviations_get_equal_weights():
    memory = ScalarMemory(50)
    memory.update(torch.full((50,), 1/3), torch.arange(50))
    w = recalibration_weights(torch.full((8,), 1/3), *memory.mean_std())
    close(w, torch.full((8,), .99922), rtol=1e-4, atol=1e-5)
    w = recalibration_weights(torch.tensor([.2, .4]), torch.tensor(.3), torch.tensor(0.))
    assert w.tolist() == [0., 1.]

# ---- baselines

def test_curriculum_chooses_by_rank_and_never_the_positive():
    d = torch.tensor([[.0, .9, .5, .7], [.8, .1, .6, .6]])
    target = torch.tensor([0, 1])
    picks = {h: negative_at_percentile(d, target, h).tolist() for h in (0., .5, 1.)}
    assert picks == {0.: [1, 0], .5: [3, 2], 1.: [2, 3]}

def test_a_batch_of_one_has_no_negatives():
    v, f = (x[:1] for x in batch()[:2])
    close(pins_loss(v, f, .8, margin=2.), (v - f).square().sum(1))
    assert kim_loss(v, f).item() == 0 and kim_loss(v, f, None).item() == 0
    z, t = v.expand(3, -1), torch.arange(3)
    assert triplet_margin(z, z, t).tolist() == pytest.approx([.2]*3)
    assert triplet_ratio(z, z, t).tolist() == pytest.approx([.5]*3)
    assert pair_contrast(z, z, t, 1.).tolist() == pytest.approx([.18]*3, abs=1e-3)

# ---- the released code: published outputs

def golden(k):
    shared = os.environ.get('VFASSOC_SHARED')
    if not shared or not Path(shared, 'golden').is_dir(): pytest.skip('VFASSOC_SHARED has no published outputs')
    with np.load(Path(shared, 'golden', f'released_cmpc_{k}.npz')) as file:
        d = {a: torch.from_numpy(file[a]) for a in file.files}
    def part(m, x): return [d[f'{m}_{x}_{r}'] for r in range(3)]
    clusters = {m: [SimpleNamespace(centroids=c, assign=a) for c,a in zip(part(m, 'centroids'), part(m, 'assign'))]
                for m in ('voice', 'face')}
    return d, clusters, {m: part(m, 'phi') for m in ('voice', 'face')}

def relative(x, y): return ((x.detach() - y).abs().max()/y.abs().max()).item()

@pytest.mark.parametrize('k', range(3))
def test_equal_to_the_published_outputs(k):
    "The published outputs were made with three entries in the dictionary the code divides by, training has four."
    d, c, phi = golden(k)
    v, f, idx = d['v'].requires_grad_(), d['f'].requires_grad_(), d['idx']
    vn, fn, own = F.normalize(v, dim=1), F.normalize(f, dim=1), torch.arange(len(v))
    assert relative(info_nce(vn, fn, own), d['inst_inst_v2f']) < 1e-5
    assert relative(info_nce(fn, vn, own), d['inst_inst_f2v']) < 1e-5
    assert relative(released_prototype_contrast(v, c['face'], phi['face'], idx, entries=3), d['inst_proto_v2f']) < 1e-5
    f2v = released_prototype_contrast(f, c['voice'], phi['voice'], idx, entries=3)
    assert relative(f2v, d['inst_proto_f2v']) < 1e-5
    loss, w = released_cmpc_loss(v, f, idx)
    assert w is None and relative(reduce_rows(loss), d['loss_without_clusters']) < 1e-5
    loss = reduce_rows(*released_cmpc_loss(v, f, idx, c['voice'], c['face'], phi['voice'], phi['face'], entries=3))
    assert relative(loss, d['loss']) < 1e-5
    for ours, name in zip(torch.autograd.grad(loss, (v, f)), ('grad_v', 'grad_f')):
        assert relative(ours, d[name]) < 1e-5
        rows = (ours - d[name]).norm(dim=1)/d[name].norm(dim=1)
        assert rows.max() < 1e-5

@pytest.mark.parametrize('k', range(3))
def test_published_outputs_tell_the_variants_apart(k):
    "With four entries, or with the paper's loss, the numbers differ by far more than the tolerance of the test above."
    d, c, phi = golden(k)
    four = released_prototype_contrast(d['v'], c['face'], phi['face'], d['idx'])
    paper = prototype_losses(F.normalize(d['v'], dim=1), stack_prototypes(c['face']), d['idx']).mean(1)
    assert relative(four, d['inst_proto_v2f']) > .1 and relative(paper, d['inst_proto_v2f']) > .1

# ---- the released code: one test for each row of the table that concerns a loss

def released(b=6, seed=2, n=30):
    v, f, idx = batch(b=b, seed=seed, n=n)
    return v, f, idx, densities(V), densities(Fc)

def test_row_negatives_are_the_prototypes_of_the_batch():
    v, f, idx, _, phi = released(b=3)
    away = [SimpleNamespace(centroids=c.centroids.clone(), assign=c.assign) for c in Fc]
    for c in away: c.centroids[[k for k in range(len(c.centroids)) if k not in c.assign[idx]]] = torch.nan
    want = released_prototype_contrast(v, Fc, phi, idx)
    close(released_prototype_contrast(v, away, phi, idx), want) # absent prototypes have no part
    assert prototype_losses(v, stack_prototypes(away), idx).isnan().any()                              # eq. (6): a part
    one = SimpleNamespace(centroids=torch.randn(1, 8), assign=torch.zeros(30, dtype=torch.int64))
    loss = released_prototype_contrast(v, [one], [torch.tensor([.2])], idx, entries=1)
    close(loss, torch.full((3,), math.log(3))) # items of one cluster are negatives of each other
    close(prototype_contrast(v, one, idx), torch.zeros(3)) # eq. (6) has no negative with one prototype

def test_row_temperature_is_a_density_and_the_positive_has_that_of_item_0():
    v, f, idx, _, phi = released(b=4)
    c, p = Fc[2], phi[2]
    own, cos = p[c.assign[idx]], v @ F.normalize(c.centroids[c.assign[idx]], dim=1).T
    expected = []
    for i in range(4):
        logits = [cos[i, i]/own[0]] + [cos[i, j]/own[k] for k,j in enumerate([j for j in range(4) if j != i], start=1)]
        expected.append(-F.log_softmax(torch.stack(logits), 0)[0])
    close(released_prototype_contrast(v, [c], [p], idx, entries=1), torch.stack(expected))
    assert released_temperatures(own).diagonal().unique().tolist() == [own[0]]
    swapped = released_prototype_contrast(v[[1, 0, 2, 3]], [c], [p], idx[[1, 0, 2, 3]], entries=1)
    assert (swapped[2:] - torch.stack(expected)[2:]).abs().min() > 1e-4   # another item 0: other losses of the others

def test_row_mean_over_granularities_is_divided_inside_the_loop():
    v, f, idx, _, phi = released()
    single = [released_prototype_contrast(v, [c], [p], idx, entries=1) for c,p in zip(Fc, phi)]
    close(released_prototype_contrast(v, Fc, phi, idx), single[0]/64 + single[1]/16 + single[2]/4)
    close(released_prototype_contrast(v, Fc, phi, idx, entries=3), single[0]/27 + single[1]/9 + single[2]/3)

def test_row_rho_is_a_sum_over_raw_centroids():
    v, f, idx, *_ = released()
    raw_v, raw_f = clusterings(seed=0, length=.7), clusterings(ks=(4, 5, 9), seed=5, length=.7)
    rho, paper = released_deviation(v, f, raw_v, raw_f, idx), deviation(v, f, prototype_agreement(raw_v, raw_f, idx))
    cos = (v*f).sum(1)
    close(cos - rho, 3*.7*.7*(cos - paper))
    assert not rho.requires_grad

def test_row_mean_and_deviation_are_those_of_the_batch():
    rho = torch.linspace(-.3, .3, 12)
    assert (released_weights(rho)[:6] - released_weights(rho[:6])).abs().max() > .1
    close(recalibration_weights(rho, 0., .2)[:6], recalibration_weights(rho[:6], 0., .2))

@pytest.mark.parametrize('n', (2, 6, 128))
def test_row_weight_is_the_normalised_cumulative_sum_of_the_density(n):
    rho = np.random.default_rng(n).normal(.2, .1, n)
    s, order = np.sort(rho), np.argsort(rho)
    mu, sigma = rho.mean() - rho.std(), rho.std()*math.sqrt(.1)
    y = np.cumsum(np.exp(-(s - mu)**2/(2*sigma**2)))
    expected = np.empty(n)
    expected[order] = y/y[-1]
    w = released_weights(torch.from_numpy(rho).float())
    np.testing.assert_allclose(w, expected, rtol=1e-4, atol=1e-7)
    assert w.max() == 1 and w.min() > 0
    far = released_weights(torch.cat([torch.zeros(127), torch.tensor([-50.])]))  # an outlier whose density underflows
    assert far.isfinite().all() and far[-1] < 1e-6
    assert released_weights(torch.linspace(-1, 1, 9), delta=-3., kappa=.005).isfinite().all() # all densities underflow

def test_released_guards():
    v, f, idx, pv, pf = released()
    close(released_weights(torch.full((5,), .3)), torch.ones(5))                     # the code: 0/0
    tied = released_weights(torch.tensor([.1, .1, .5, .5]), delta=0., kappa=1.)
    assert tied[0] < tied[1] < tied[2] < tied[3] == 1                                # ties: shares in order of rows
    many = torch.randint(5, (300,), generator=torch.Generator().manual_seed(0))/10.
    order = torch.argsort(many, stable=True)
    assert (released_weights(many)[order].diff() >= 0).all()
    with pytest.raises(RunError, match='3 voice and 2 face clusterings'):
        released_cmpc_loss(v, f, idx, V, Fc[:2], pv, pf[:2])
    with pytest.raises(RunError, match='density is 0 or NaN'):
        released_prototype_contrast(v, Fc, [p*0 for p in pf], idx)
    with pytest.raises(RunError, match='3 clusterings and 2 densities'): released_prototype_contrast(v, Fc, pf[:2], idx)
    with pytest.raises(ConfigError, match='entries = 0'): released_prototype_contrast(v, Fc, pf, idx, entries=0)
    loss, w = released_cmpc_loss(5*v, .3*f, idx, V, Fc, pv, pf) # lengths of embeddings do not matter
    same = released_cmpc_loss(v, f, idx, V, Fc, pv, pf)
    close(loss, same[0]), close(w, same[1])

# ---- two processes

def part(rank, n):
    v, f, idx = batch(b=8)
    mine = slice(rank*8//n, (rank + 1)*8//n)
    v, f = v[mine].clone().requires_grad_(), f[mine].clone().requires_grad_()
    memory, out = ScalarMemory(30), {}
    memory.update(deviation(v, f, prototype_agreement(V, Fc, idx[mine])), idx[mine])
    w = recalibration_weights(memory.values[idx[mine]], *memory.mean_std())
    for name, loss in LOSSES.items():
        rows = loss(v, f, idx[mine], V, Fc)
        g = torch.autograd.grad(reduce_rows(rows, w), (v, f))
        out |= {f'{name}/loss': rows.detach(), f'{name}/v': g[0], f'{name}/f': g[1]}
    w = released_cmpc_loss(v, f, idx[mine], V, Fc, densities(V), densities(Fc))[1]
    return out | {'released/w': w, 'rho/all': memory.values}

def worker(folder):
    torch.distributed.init_process_group('gloo')
    rank, n = rank_and_world()
    save_file({k: x.contiguous() for k,x in part(rank, n).items()}, folder/f'{rank}.safetensors')
    torch.distributed.destroy_process_group()

def test_two_processes_give_the_rows_and_gradients_of_one(tmp_path):
    run_ranks(worker, (tmp_path,), tmp_path)
    parts, one = [load_file(tmp_path/f'{r}.safetensors') for r in range(2)], part(0, 1)
    for key, x in one.items():
        if key == 'rho/all':
            for p in parts: close(p[key], x)
        else:
            both = torch.cat([p[key] for p in parts])
            mean = both/2 if key.endswith(('/v', '/f')) else both # DDP divides by the number of processes
            close(mean, x, rtol=1e-4, atol=1e-5)
