"k-means: equal to naive loops, equal backends, empty clusters, warm starts, the public code's numbers, bad input."
import dataclasses, os, shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

import vfassoc.clustering.kmeans as C
import vfassoc.clustering.nearest as N
from vfassoc.clustering.kmeans import Clusters, kmeans, kmeans_plusplus, warm_start_kmeans
from vfassoc.clustering.memory import Memory
from vfassoc.clustering.quality import nmi, purity
from vfassoc.core import ConfigError, RunError, rng_for
from vfassoc.losses.released_cmpc import concentration, released_kmeans


def planted(n=600, groups=30, d=24, seed=0, noise=1., unit=True):
    g = torch.Generator().manual_seed(seed)
    who = torch.randint(0, groups, (n,), generator=g)
    x = torch.randn(groups, d, generator=g)[who] + noise*torch.randn(n, d, generator=g)
    return (F.normalize(x, dim=1) if unit else x), who


def plain_lloyd(x, c, metric, iters):
    "Lloyd in float64, all scores every time, nothing clever; the assignment belongs to the returned centroids."
    x, c = x.double(), c.double()
    for _ in range(iters + 1):
        s = x@c.T - (c.square().sum(1)/2 if metric == 'euclidean' else 0)
        assign = s.argmax(1)
        if _ == iters: return c, assign
        one = F.one_hot(assign, len(c)).double()
        mean = one.T@x/one.sum(0)[:, None]
        c = mean if metric == 'euclidean' else F.normalize(mean, dim=1)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('precision', ['float32', 'bf16', 'projected'])
@pytest.mark.parametrize('iters', [1, 2, 5, 12])
def test_equal_to_plain_lloyd(metric, precision, iters):
    x, _ = planted(unit=metric == 'cosine')
    start = x[:25].clone()
    got = kmeans(x, 25, metric, start=start, max_iter=iters, tol=0, precision=precision)
    c, assign = plain_lloyd(x, start, metric, iters)
    assert got.iterations <= iters and torch.equal(got.assign, assign)
    torch.testing.assert_close(got.centroids, c.float(), rtol=1e-4, atol=1e-5)
    want = 1 - (x.double()*c[assign]).sum(1) if metric == 'cosine' else (x - c[assign]).square().sum(1)
    assert abs(got.inertia/want.sum().item() - 1) < 1e-5
    torch.testing.assert_close(got.similarity, F.cosine_similarity(x, got.centroids[got.assign]), rtol=1e-4, atol=1e-5)
    assert got.history.dtype == torch.float64 and (got.history.diff() <= 1e-6*got.history[0]).all()


def test_the_result_belongs_to_its_centroids_at_any_stop():
    x, _ = planted(900, 60, 16)
    for kw in (dict(max_iter=1), dict(max_iter=3), dict(tol=.05), dict(tol=0)):
        got = kmeans(x, 40, seed=2, **kw)
        assert torch.equal(got.assign, (x.double()@got.centroids.double().T).argmax(1)), kw
        torch.testing.assert_close(got.centroids.norm(dim=1), torch.ones(40))


def test_precision_and_threads_change_nothing():
    g, results = torch.Generator().manual_seed(3), []
    x = torch.randn(2000, 12, generator=g)@torch.randn(12, 192, generator=g) + .2*torch.randn(2000, 192, generator=g)
    x = F.normalize(x, dim=1)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results += [kmeans(x, 70, start=x[:70], precision=p, tol=0) for p in ('float32', 'bf16', 'projected')]
    finally: torch.set_num_threads(before)
    for r in results[1:]:
        assert torch.equal(r.assign, results[0].assign) and torch.equal(r.centroids, results[0].centroids)
        assert torch.equal(r.similarity, results[0].similarity)


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_projected_products_give_the_same_clusters(metric, monkeypatch):
    "From k-means++, from centroids with empty clusters among them, and warm; and they are really projected."
    g, made = torch.Generator().manual_seed(3), []
    x = torch.randn(3000, 12, generator=g)@torch.randn(12, 192, generator=g)/4 + .1*torch.randn(3000, 192, generator=g)
    flat = N._LowRankProduct.__init__
    def counted(self, rows, width, which=None):
        made.append(which)
        flat(self, rows, width, which)
    monkeypatch.setattr(N._LowRankProduct, '__init__', counted)
    far = torch.cat([x[:50], 30 + torch.zeros(10, 192)])
    warm = kmeans(x, 60, metric, seed=2, precision='float32', max_iter=2)
    for start in (None, far, warm):
        how = dict(start=start, seed=1, tol=0, max_iter=12)
        a, b = (kmeans(x, 60, metric, precision=p, **how) for p in ('float32', 'projected'))
        assert torch.equal(a.assign, b.assign) and torch.equal(a.centroids, b.centroids)
        assert torch.equal(a.similarity, b.similarity)
        assert torch.equal(a.history, b.history) and (b.assign.bincount(minlength=60) > 0).all()
        assert any(w is None for w in made), 'never projected'
        made.clear()


@pytest.mark.parametrize('scale', [2.**-90, 2.**-30, 2.**45])
def test_scale_changes_no_digit(scale):
    x, _ = planted(unit=False)
    one, other = (kmeans(s*x, 20, 'euclidean', start=s*x[:20], tol=0) for s in (1, scale))
    assert torch.equal(one.assign, other.assign) and torch.equal(one.centroids*scale, other.centroids)
    assert torch.equal(one.similarity, other.similarity)
    torch.testing.assert_close(one.history*scale**2, other.history, rtol=1e-12, atol=0)


def test_rows_far_from_the_origin():
    "Centred inside; centroids, inertia and cosines are those of the rows as they were given."
    x, _ = planted(unit=False)
    x, off = x.round(decimals=2), torch.full((24,), 64.)
    one = kmeans(x, 20, 'euclidean', start=x[:20], tol=0)
    other = kmeans(x + off, 20, 'euclidean', start=x[:20] + off, tol=0)
    assert torch.equal(one.assign, other.assign)
    torch.testing.assert_close(other.centroids, one.centroids + off, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(other.history, one.history, rtol=1e-4, atol=0)
    cosine = F.cosine_similarity(x + off, other.centroids[other.assign])
    torch.testing.assert_close(other.similarity, cosine, rtol=1e-5, atol=1e-6)


def test_small_clusters_far_apart():
    "Four blobs of 0.02 at 1,000 from their mean: inertia equals float64, falls, and is that of the nearest centroids."
    g = torch.Generator().manual_seed(0)
    centers = torch.tensor([[1000., 0.], [-1000., 0.], [0., 1000.], [0., -1000.]])
    x = centers.repeat(100, 1) + .02*torch.randn(400, 2, generator=g)
    got = kmeans(x, 8, 'euclidean', tol=0)
    d = torch.cdist(x.double(), got.centroids.double(), compute_mode='donot_use_mm_for_euclid_dist')
    assert abs(got.inertia/float(d.amin(1).square().sum()) - 1) < 1e-3
    assert (d.gather(1, got.assign[:, None])[:, 0] <= d.amin(1) + 1e-4).all()
    assert (got.history.diff() <= 1e-3*got.history[:-1]).all() and got.iterations < 30


@pytest.mark.parametrize('scale', [1e-4, 1., 1e4])
def test_empty_clusters_at_any_scale(scale):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 4, generator=g)*scale
    far = torch.cat([x[:5], 50*scale + torch.zeros(5, 4)])
    assert (kmeans(x, 10, 'euclidean', start=far).assign.bincount(minlength=10) > 0).all()
    copies = kmeans((torch.randn(6, 4, generator=g)*scale).repeat(10, 1), 15, 'euclidean')
    assert copies.iterations < 10 and copies.inertia < 1e-8*scale**2


def test_a_cluster_that_shrinks_forgets_the_rounding_of_its_large_sum():
    x = torch.zeros(30_001, 3)
    x[:-1] = torch.randn(30_000, 3, generator=torch.Generator().manual_seed(0)) + 300
    x[-1] = -300.
    before = torch.zeros(30_001, dtype=torch.long)
    sums = C._RunningSums(x, before, 2)
    for leave in torch.arange(30_000).split(10_001):
        after = before.clone()
        after[leave] = 1
        sums.update(after)
        before = after
    assert sums.count.tolist() == [1, 30_000] and sums.total[0].tolist() == [-300., -300., -300.]


def test_history_counts_the_rows_that_have_a_cluster():
    x, _ = planted()
    old = kmeans(x, 20, seed=1, tol=0)
    missing = dataclasses.replace(old, assign=torch.where(torch.arange(len(x)) % 2 == 0, old.assign, -1))
    assert kmeans(x, 20, start=missing, max_iter=1).history[0] < .6*old.history[-1]


@pytest.mark.parametrize('spread', [1e-1, 1e-2, 2e-3])
def test_rows_that_bfloat16_cannot_tell_apart(spread):
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.eye(32)[0] + spread*torch.randn(800, 32, generator=g), dim=1)
    a, b = (kmeans(x, 20, start=x[:20], precision=p, tol=0, max_iter=8) for p in ('float32', 'bf16'))
    assert torch.equal(a.assign, b.assign)


def test_same_inertia_as_scikit_learn():
    x, _ = planted(1500, 40, 20, unit=False)
    start = x[:40].clone()
    ours = kmeans(x, 40, 'euclidean', start=start, tol=0)
    theirs = KMeans(40, init=start.numpy(), n_init=1, tol=0, max_iter=300, algorithm='lloyd').fit(x.numpy())
    assert abs(ours.inertia/theirs.inertia_ - 1) < 1e-4
    assert (ours.assign.numpy() == theirs.labels_).mean() > .999


def test_seeded():
    x, _ = planted()
    a, b, c = kmeans(x, 20, seed=1), kmeans(x, 20, seed=1), kmeans(x, 20, seed=2)
    assert torch.equal(a.assign, b.assign) and torch.equal(a.centroids, b.centroids)
    assert not torch.equal(a.assign, c.assign)
    before = torch.get_rng_state()
    kmeans(x, 20)
    assert torch.equal(before, torch.get_rng_state())


def test_several_k_are_the_single_ones():
    x, _ = planted()
    for k, many in zip((10, 25), kmeans(x, (10, 25), seed=3)):
        one = kmeans(x, k, seed=3)
        assert many.k == k and torch.equal(many.assign, one.assign) and torch.equal(many.centroids, one.centroids)


# ---- k-means++

def exact_distribution(x, k):
    d2, out = (x[:, None] - x[None]).square().sum(-1).double().numpy(), Counter()

    def draw(sequence, p):
        if len(sequence) == k:
            out[tuple(sequence)] += p
            return
        w = d2[:, sequence].min(1) if sequence else np.ones(len(x))
        for i in np.flatnonzero(w): draw([*sequence, int(i)], p*w[i]/w.sum())
    draw([], 1.)
    return out


def test_batches_do_not_change_the_distribution_of_kmeans_plusplus():
    x, n = torch.tensor([[0.], [1.], [3.], [3.5], [7.]]), 3000
    want = exact_distribution(x, 3)
    got = Counter(tuple(kmeans_plusplus(x, 3, rng_for(s, 'test'))[0].tolist()) for s in range(n))
    assert set(got) <= set(want)
    chi2, free = sum((got[s] - n*p)**2/(n*p) for s,p in want.items()), len(want) - 1
    assert chi2 < free + 4*(2*free)**.5, (chi2, free)


def test_kmeans_plusplus_draws_distinct_rows_and_knows_the_nearest():
    x, _ = planted(2000, 50, 16)
    drawn, near = kmeans_plusplus(x, 300, rng_for(0))
    assert len(set(drawn.tolist())) == 300
    assert (near == torch.cdist(x, x[drawn]).argmin(1)).float().mean() > .999


# ---- empty clusters

@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_empty_clusters_are_filled_and_never_nan(metric):
    g = torch.Generator().manual_seed(1)
    x = torch.cat([.05*torch.randn(200, 6, generator=g) + torch.eye(6)[0], torch.randn(40, 6, generator=g)])
    far = torch.randn(30, 6, generator=g)*.1 - 20*torch.eye(6)[1]           # nobody is near most of these
    got = [kmeans(x, 30, metric, start=far, precision=p, tol=0) for p in ('float32', 'bf16')]
    for r in got:
        assert torch.bincount(r.assign, minlength=30).min() >= 1
        assert r.centroids.isfinite().all() and r.similarity.isfinite().all() and r.history.isfinite().all()
        assert (r.history.diff() <= 1e-6*r.history[0]).all()
    assert torch.equal(got[0].assign, got[1].assign)


def test_fewer_distinct_rows_than_clusters():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).repeat(10, 1)
    got = kmeans(x, 15)
    assert got.centroids.isfinite().all() and got.inertia < 1e-4
    assert (torch.bincount(got.assign, minlength=15) > 0).sum() == 6


def test_rows_that_cancel_out_leave_the_centroid_where_it_was():
    x = torch.tensor([[1., 0.], [-1., 0.], [0., 1.], [0., 1.]])
    got = kmeans(x, 2, start=torch.tensor([[0., -1.], [0., 1.]]), max_iter=3, tol=0)
    assert got.centroids.isfinite().all()
    torch.testing.assert_close(got.centroids.norm(dim=1), torch.ones(2))


# ---- warm start

def test_warm_start_needs_less_and_ends_no_worse():
    x, _ = planted(3000, 100, 48)
    y = F.normalize(x + .25*torch.randn(x.shape, generator=torch.Generator().manual_seed(9))/48**.5, dim=1)
    old = warm_start_kmeans(x, (40, 120))
    for cold, warm in zip(warm_start_kmeans(y, (40, 120), seed=1), warm_start_kmeans(y, (40, 120), old)):
        assert warm.iterations < cold.iterations and warm.inertia < 1.005*cold.inertia
    for a, b in zip(old, warm_start_kmeans(x, (40, 120), old, tol=0)): assert b.inertia <= a.inertia*(1 + 1e-6)


def test_warm_start_begins_with_the_old_assignment():
    x, _ = planted(400, 20, 12)
    old = kmeans(x, 15)
    nonsense = dataclasses.replace(old, centroids=torch.randn(15, 12, generator=torch.Generator().manual_seed(0)))
    a, b = kmeans(x, 15, start=old), kmeans(x, 15, start=nonsense)
    assert torch.equal(a.assign, b.assign) and torch.equal(a.centroids, b.centroids)
    means = torch.stack([F.normalize(x[old.assign == j].mean(0), dim=0) for j in range(15)])
    assert abs(float(a.history[0]) - float((1 - (x*means[old.assign]).sum(1)).sum())) < 1e-3


def test_rows_seen_first_take_part_and_rows_unseen_do_not():
    memory, (x, _) = Memory(400, 12), planted(400, 20, 12)
    memory.update(x[:200], torch.arange(200))
    rows, idx = memory.seen_rows()
    first = warm_start_kmeans(rows, (10, 20), idx=idx, n=400)
    for c in first:
        assert len(c.assign) == len(c.similarity) == 400
        assert (c.assign[200:] == -1).all() and (c.similarity[200:] == 0).all() and (c.assign[:200] >= 0).all()
    memory.update(x[150:300], torch.arange(150, 300))
    rows, idx = memory.seen_rows()
    for c in warm_start_kmeans(rows, (10, 20), first, idx=idx, n=400):
        assert (c.assign[:300] >= 0).all() and (c.assign[300:] == -1).all()
        assert torch.equal(c.assign[idx], (rows@c.centroids.T).argmax(1))


def test_a_new_k_starts_cold():
    x, _ = planted()
    old = warm_start_kmeans(x, (10,))
    assert [c.k for c in warm_start_kmeans(x, (10, 20), old)] == [10, 20]


def test_expanded_to_a_corpus_the_clusters_of_other_rows_are_unknown():
    x, _ = planted()
    small, idx = kmeans(x, 12), torch.arange(0, 1200, 2)
    c = small.expand_to(idx, 1200)
    assert torch.equal(c.assign[idx], small.assign) and torch.equal(c.similarity[idx], small.similarity)
    assert (c.assign[1::2] == -1).all() and (c.similarity[1::2] == 0).all()
    assert c.centroids is small.centroids and c.history is small.history
    with pytest.raises(dataclasses.FrozenInstanceError): c.similarity = None


# ---- KeOps

@pytest.mark.skipif(not shutil.which('g++'), reason='KeOps needs a C++ compiler')
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_keops_gives_the_dense_answer(metric, capfd):
    C._keops_works.cache_clear()
    x, _ = planted(500, 20, 3, unit=False)
    dense, keops = (kmeans(x, 15, metric, start=x[:15], tol=0, backend=b) for b in ('dense', 'keops'))
    assert torch.equal(dense.assign, keops.assign) and torch.equal(dense.centroids, keops.centroids)
    assert torch.equal(dense.history, keops.history)
    out, err = capfd.readouterr()
    assert '3 dimensions' in err and '[KeOps]' not in out + err and '[pyKeOps]' not in out + err


def test_no_compiler_is_one_line_and_the_same_answer(monkeypatch, capsys):
    monkeypatch.setattr(C.shutil, 'which', lambda *a, **k: None)
    C._keops_works.cache_clear()
    x, _ = planted()
    got = kmeans(x, 10, start=x[:10], backend='keops')
    C._keops_works.cache_clear()
    assert torch.equal(got.assign, kmeans(x, 10, start=x[:10], backend='dense').assign)
    err = capsys.readouterr().err.strip()
    assert err.count('\n') == 0 and 'needs a C++ compiler' in err and 'dense backend takes over' in err


def test_a_broken_keops_is_one_line_too(monkeypatch, capsys):
    monkeypatch.setattr(C.shutil, 'which', lambda *a, **k: '/usr/bin/g++')
    def fail(self, moved): raise OSError('cannot load\nthe formula')
    monkeypatch.setattr(C._KeopsSearch, 'update', fail)
    C._keops_works.cache_clear()
    x, _ = planted()
    assert kmeans(x, 10, backend='keops').k == 10
    C._keops_works.cache_clear()
    lines = [l for l in capsys.readouterr().err.splitlines() if l.startswith('clustering:')]
    assert len(lines) == 2 and 'cannot load the formula' in lines[1]


@pytest.mark.parametrize('units, shape, device, want', [
    (True, (21_063, 1500, 512), 'cpu', ('dense', 'bf16')),
    (True, (21_063, 1500, 512), 'cuda', ('dense', 'bf16')),
    (True, (21_063, 1500, 8), 'cpu', ('dense', 'float32')),
    (True, (21_063, 500, 3), 'cpu', ('dense', 'float32')),
    (True, (200_000, 500, 3), 'cpu', ('keops', 'float32')),
    (True, (200_000, 500, 3), 'cuda', ('dense', 'float32')),
    (False, (21_063, 1500, 512), 'cpu', ('dense', 'projected')),
    (False, (21_063, 1500, 512), 'cuda', ('dense', 'float32')),
    (False, (21_063, 1500, 128), 'cpu', ('dense', 'float32')),
    (False, (300, 20, 512), 'cpu', ('dense', 'float32')),
])
def test_auto_is_what_was_measured(monkeypatch, units, shape, device, want):
    monkeypatch.setattr(C, '_matrix_units', lambda device: units)
    assert C.select_backend(*shape, device) == want


def test_auto_does_not_touch_keops(monkeypatch):
    monkeypatch.setattr(C, '_keops_works', lambda *a: pytest.fail('auto asked for KeOps'))
    assert kmeans(planted()[0], 10).k == 10


# ---- released

@pytest.mark.parametrize('k', [8, 20])
def test_released_kmeans_and_densities_are_those_of_the_public_code(k):
    shared = os.environ.get('VFASSOC_SHARED')
    if not shared or not Path(shared, 'golden').is_dir(): pytest.skip('VFASSOC_SHARED has no published outputs')
    d = {n: torch.from_numpy(v) for n,v in np.load(Path(shared, 'golden', 'released_kmeans.npz')).items()}
    got, distance = released_kmeans(d['x'], k, iters=20)
    assert torch.equal(got.assign, d[f'assign_{k}'])
    ours = dict(centroids=got.centroids, squared_distance=distance, phi=concentration(got, distance))
    for name, a in ours.items():
        want = d[f'{name}_{k}']
        assert ((a - want).norm()/want.norm()).item() < 1e-5, name


def test_released_kmeans_stops_between_its_two_steps():
    x, _ = planted(300, 10, 5)
    c, d2 = released_kmeans(x, 10, iters=3)
    before, _ = released_kmeans(x, 10, iters=2)
    all_d2 = torch.cdist(x.double(), before.centroids.double()).square()
    assert torch.equal(c.assign, all_d2.argmin(1)) # assigned by the centroids of one update ago
    torch.testing.assert_close(d2, all_d2.amin(1).float(), rtol=1e-4, atol=1e-5)
    for j in range(10): torch.testing.assert_close(c.centroids[j], x[c.assign == j].mean(0))


def test_released_kmeans_drops_an_empty_cluster():
    x, _ = planted(100, 4, 5)
    x[1] = x[0]                                                              # the second start can win no row
    c, d2 = released_kmeans(x, 6)
    count = torch.bincount(c.assign, minlength=6)
    assert count[1] == 0 and (c.centroids[1] == 0).all() and c.centroids.isfinite().all()
    phi = concentration(c, d2)
    assert phi.isfinite().all() and (phi > 0).all() and abs(phi.mean().item() - .2) < 1e-6


def test_density_of_coinciding_rows_is_the_mean():
    c = Clusters(torch.zeros(2, 2), torch.tensor([0, 0, 1, 1]), torch.zeros(4), torch.zeros(1))
    assert torch.allclose(concentration(c, torch.zeros(4)), torch.full((2,), .2))


# ---- quality

def test_purity_and_mutual_information():
    assert purity([0, 0, 1, 1, -1], ['a', 'b', 'c', 'c', 'd']) == .75
    assert purity(torch.arange(4), list('aabb')) == 1. and purity([0]*4, list('aabb')) == .5
    assert nmi([1, 1, 0, 0, -1], list('aabbb')) == pytest.approx(1.)
    assert nmi([0, 1, 0, 1], list('aabb')) == pytest.approx(0., abs=1e-9)


# ---- bad input

X = planted(50, 5, 4)[0]
ZERO, NAN, INF = (X.clone() for _ in range(3))
ZERO[[3, 7]] = 0
NAN[5, 1] = torch.nan
INF[2, 0] = torch.inf

@pytest.mark.parametrize('call, error, word', [
    (lambda: kmeans(X, 51), ConfigError, 'at most the number of rows, 50 here'),
    (lambda: kmeans(X, 1), ConfigError, 'k = 1; allowed: 2 or more'),
    (lambda: kmeans(X, (5, 0)), ConfigError, 'k = 0'),
    (lambda: kmeans(ZERO, 5), RunError, '2 of 50 rows are zero vectors (first: row 3)'),
    (lambda: kmeans(NAN, 5), RunError, '1 of 50 rows are not finite'),
    (lambda: kmeans(INF, 5, 'euclidean'), RunError, '(first: row 2)'),
    (lambda: kmeans(X[0], 2), RunError, 'rows of shape (4,)'),
    (lambda: kmeans(X, 5, 'manhattan'), ConfigError, "metric = 'manhattan'"),
    (lambda: kmeans(X, 5, backend='faiss'), ConfigError, "backend = 'faiss'"),
    (lambda: kmeans(X, 5, precision='fp8'), ConfigError, "precision = 'fp8'"),
    (lambda: kmeans(X, 5, max_iter=0), ConfigError, 'max_iter'),
    (lambda: kmeans(X, 5, tol=-1.), ConfigError, 'tol'),
    (lambda: kmeans(X, 5, start='random'), ConfigError, "start = 'random'"),
    (lambda: kmeans(X, 5, start=X[:4]), RunError, 'the start has centroids (4, 4), wanted are (5, 4)'),
    (lambda: kmeans(X, 5, start=NAN[3:8]), RunError, 'all finite'),
    (lambda: kmeans(X, (5, 6), start=[None]), ConfigError, 'one for each of the 2 k'),
    (lambda: kmeans(X, 5, start=kmeans(X[:40], 5)), RunError, 'the start assigns 40 rows'),
    (lambda: warm_start_kmeans(X, (5,), [kmeans(X[:40], 5)]), RunError, 'clustering has 40 rows, this corpus 50'),
    (lambda: warm_start_kmeans(Memory(9, 4).seen_rows()[0], (5,)), ConfigError, 'at most the number of rows, 0 here'),
    (lambda: released_kmeans(X, 60), ConfigError, 'at most the number of rows'),
])
def test_bad_input_is_one_clear_line(call, error, word):
    with pytest.raises(error) as e: call()
    assert word in str(e.value) and '\n' not in str(e.value)


def test_zero_rows_are_fine_in_the_euclidean_metric():
    got = kmeans(ZERO, 5, 'euclidean')
    assert got.similarity.isfinite().all() and got.centroids.isfinite().all()
