"""k-means, all contenders in one run: python benchmarks/kmeans.py [--quick] [--threads 2] [--repeats 5] [--device cuda]

All contenders have the same start (random rows), the same number of centroid updates, and the Euclidean metric on unit
rows, so that they minimize the same inertia. Printed: seconds per update, inertia afterwards, and the ratio to the
default of `vfassoc.clustering.kmeans`. The contenders take turns in an order that changes with every repeat; a ratio is
the median over repeats of the ratios within one repeat, so that other load falls on all alike. Then: warm start against
cold, and KeOps against dense by dimension (--dims). On a GPU: the dense backend in bfloat16, TF32 and float32, KeOps,
and naive blocks (faiss-cpu and scikit-learn stay on the CPU and are left out).
"""
import argparse, os, random, statistics, time, warnings
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--quick', action='store_true', help='a small problem, seconds instead of minutes')
parser.add_argument('--threads', type=int, default=2)
parser.add_argument('--device', default='cpu', help='cpu, cuda')
parser.add_argument('--repeats', type=int, default=None, help='rounds of all contenders (5; quick: 2)')
parser.add_argument('--iters', type=int, default=10, help='centroid updates of each contender')
parser.add_argument('--data', choices=('planted', 'isotropic', 'random', 'faces'), default='planted',
                    help='what the rows are like; faces: the real features of libri-lfw, which VFASSOC_SHARED leads to')
parser.add_argument('--no-keops', action='store_true', help='leave KeOps out (it compiles, and takes most of the time)')
parser.add_argument('--dims', action='store_true', help='only: KeOps against dense by dimension')
parser.add_argument('--warm', action='store_true', help='only: warm start against cold')
args = parser.parse_args()
os.environ.update(OMP_NUM_THREADS=str(args.threads), OMP_WAIT_POLICY='PASSIVE', PYKEOPS_VERBOSE='0')
if args.device == 'cpu': os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from vfassoc.clustering.kmeans import _keops_works, _matrix_units, kmeans, warm_start_kmeans
from vfassoc.core import rng_for

warnings.simplefilter('ignore')
DEVICE = torch.device(args.device)
if DEVICE.type == 'cuda' and not torch.cuda.is_available(): parser.error('no GPU can be used here; leave --device out')
if args.data == 'faces' and 'VFASSOC_SHARED' not in os.environ:
    parser.error('--data faces needs VFASSOC_SHARED, the folder that holds corpora/libri-lfw')
sync = torch.cuda.synchronize if DEVICE.type == 'cuda' else lambda: None
torch.set_num_threads(args.threads)
faiss.omp_set_num_threads(args.threads)
N, D, IDS, KS = (3000, 128, 200, (60, 180)) if args.quick else (21_063, 512, 1251, (500, 1000, 1500))
REPEATS = args.repeats or (2 if args.quick else 5)


def rows(kind:str, n:int=N, d:int=D, seed:int=0) -> torch.Tensor:
    """Return (n, d) unit rows.

    planted: identities in a 64-dimensional space with falling variances, rows scattered in it and outside of it, like
    embeddings of a trained network; isotropic: identities in all directions alike; random: no structure at all;
    faces: features of real faces a, b, c mixed, a + 0.4(b - c), because there are only 1,041."""
    r = rng_for(seed, 'rows', kind)
    def normal(*s):
        return r.standard_normal(s, dtype=np.float32)
    if kind == 'faces':
        real = torch.from_numpy(np.load(Path(os.environ['VFASSOC_SHARED'], 'corpora/libri-lfw/features.npz'))['face'])
        a, b, c = F.normalize(real.float(), dim=1)[torch.from_numpy(r.integers(0, len(real), (3, n)))]
        return F.normalize(a + .4*(b - c), dim=1)
    if kind == 'random': return F.normalize(torch.from_numpy(normal(n, d)), dim=1)
    who = r.integers(0, IDS, n)
    if kind == 'isotropic': x = (normal(IDS, d)[who] + 1.5*normal(n, d))/np.float32(d**.5)
    else:
        rank = min(64, d//2)
        scale = np.arange(1, rank + 1, dtype=np.float32)**-.5
        scale /= np.linalg.norm(scale)
        basis = np.linalg.qr(normal(d, rank))[0]
        x = ((normal(IDS, rank)[who] + .6*normal(n, rank))*scale)@basis.T + .3*normal(n, d)/np.float32(d**.5)
    return F.normalize(torch.from_numpy(x.astype(np.float32)), dim=1)


def inertia(x:torch.Tensor, c:torch.Tensor) -> float:
    "Sum of squared distances of unit rows to their nearest centroid, the same arithmetic for everybody."
    half = c.square().sum(1)/2
    return float(sum((r.square().sum(1) - 2*(r@c.T - half).amax(1)).clamp_min(0).double().sum() for r in x.split(2048)))


def naive(x, c, iters):
    "What one writes first: blocks of 1024 rows, a product, argmax, index_add."
    for _ in range(iters):
        half = c.square().sum(1)/2
        assign = torch.cat([(r@c.T - half).argmax(1) for r in x.split(1024)])
        count = torch.bincount(assign, minlength=len(c))
        c = torch.where((count > 0)[:, None], torch.zeros_like(c).index_add_(0, assign, x)/count.clamp_min(1)[:, None],
                        c)
    return c


def keops(x, c, iters):
    "Plain KeOps: argmin of squared distances, as its documentation does k-means."
    from pykeops.torch import LazyTensor
    for _ in range(iters):
        assign = ((LazyTensor(x[:, None]) - LazyTensor(c[None]))**2).sum(-1).argmin(dim=1).view(-1)
        count = torch.bincount(assign, minlength=len(c))
        c = torch.where((count > 0)[:, None], torch.zeros_like(c).index_add_(0, assign, x)/count.clamp_min(1)[:, None],
                        c)
    return c


def ours(precision, backend='dense', allow='highest'):
    "Our centroids; `allow` is what torch may save in float32 products ('high': TF32)."
    def run(x, c, iters):
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision(allow)
            return kmeans(x, len(c), 'euclidean', start=c, max_iter=iters, tol=0, backend=backend,
                          precision=precision).centroids
        finally: torch.set_float32_matmul_precision(before)
    return run


def sklearn(algorithm):
    def run(x, c, iters):
        return torch.from_numpy(KMeans(len(c), init=c.numpy(), n_init=1, max_iter=iters, tol=0,
                                       algorithm=algorithm).fit(x.numpy()).cluster_centers_)
    return run


def faiss_kmeans(x, c, iters):
    km = faiss.Kmeans(x.shape[1], len(c), niter=iters, max_points_per_centroid=10**9, min_points_per_centroid=1)
    km.train(x.numpy(), init_centroids=c.numpy())
    return torch.from_numpy(km.centroids)


def clock(f, *a):
    sync()
    t = time.perf_counter()
    out = f(*a)
    sync()
    return time.perf_counter() - t, out


def contest(x, k):
    "Everybody `REPEATS` times, interleaved; a table."
    start = x[torch.from_numpy(rng_for(0, 'start', k).permutation(len(x))[:k].copy()).to(x.device)].clone()
    field = {'vfassoc dense (auto)': ours('auto'), 'vfassoc dense, float32': ours('float32'),
             'torch, naive blocks': naive}
    if DEVICE.type == 'cpu':
        field |= {'faiss-cpu': faiss_kmeans, 'scikit-learn lloyd': sklearn('lloyd')}
        if not args.quick: field['scikit-learn elkan'] = sklearn('elkan')
    else:
        field |= {'vfassoc dense, bf16': ours('bf16'), 'vfassoc dense, TF32': ours('float32', allow='high')}
        if not args.no_keops and _keops_works(x.shape[1], DEVICE.type):
            field['vfassoc KeOps'] = ours('float32', 'keops')
    seconds, centroids = {name: [] for name in field}, {}
    for f in field.values(): f(x[:4*k], start, 1)
    for rep in range(REPEATS):
        order = list(field)
        random.Random(f'{k} {rep}').shuffle(order)
        for name in order:
            t, centroids[name] = clock(field[name], x, start, args.iters)
            seconds[name].append(t/args.iters)
    ours_, base = seconds['vfassoc dense (auto)'], inertia(x, centroids['vfassoc dense (auto)'])
    if not args.no_keops and _keops_works(x.shape[1], DEVICE.type):
        keops(x[:k], start, 1)
        t, c = clock(keops, x, start, 1)
        t1, one = clock(ours('auto'), x, start, 1)
        same = abs(inertia(x, c)/inertia(x, one) - 1)
        print(f'  KeOps, plain: one update {t:.2f} s, {t/statistics.median(ours_):.0f} x; inertia after one update off '
              f'by {same:.1e}')
    print(f'  {"":24s}{"ms/update":>10s}{"ratio":>8s}{"lowest":>8s}{"inertia":>11s}{"off by":>9s}')
    for name in sorted(field, key=lambda name: statistics.median(seconds[name])):
        ratio = [a/b for a,b in zip(seconds[name], ours_)]
        j = inertia(x, centroids[name])
        print(f'  {name:24s}{1e3*statistics.median(seconds[name]):10.1f}{statistics.median(ratio):8.2f}'
              f'{min(ratio):8.2f}{j:11.2f}{j/base - 1:9.1e}', flush=True)


def warm_against_cold(x, ks):
    "One epoch later: k-means++ and Lloyd until tolerance, against the clusters of the epoch before."
    noise = torch.from_numpy(rng_for(1, 'move').standard_normal(x.shape, dtype=np.float32)).to(x)/x.shape[1]**.5
    y = F.normalize(x + .25*noise, dim=1)
    print(f'warm against cold: rows moved to cosine {float((x*y).sum(1).mean()):.3f}, tolerance 1e-3, cosine metric')
    old = warm_start_kmeans(x, ks)
    for name, some in [*((f'K = {k}', (k,)) for k in ks), ('all K', ks)]:
        times, ratios = [], []
        for rep in range(REPEATS):
            a, cold = clock(lambda: warm_start_kmeans(y, some, seed=rep + 1))
            b, warm = clock(lambda: warm_start_kmeans(y, some, old, seed=rep + 1))
            times.append((a, b))
            ratios.append(b/a)
        j = [sum(c.inertia for c in cl) for cl in (cold, warm)]
        it = ['/'.join(str(c.iterations) for c in cl) for cl in (cold, warm)]
        print(f'  {name:10s} cold {statistics.median(t[0] for t in times):.2f} s ({it[0]} updates), warm '
              f'{statistics.median(t[1] for t in times):.2f} s '
              f'({it[1]}); warm/cold {statistics.median(ratios):.3f} (highest {max(ratios):.3f}); inertia warm/cold '
              f'{j[1]/j[0]:.4f}', flush=True)


def by_dimension():
    "The two backends from the same start, per update, by dimension."
    n, k, iters = (5000, 100, 3) if args.quick else (21_063, 500, 3)
    print(f'backends by dimension: {n:,} rows, K = {k}, ms per update')
    for d in (2, 3, 8, 32, 128):
        x = torch.from_numpy(rng_for(0, 'dims').standard_normal((n, d), dtype=np.float32)).to(DEVICE)
        start, t = x[:k].clone(), {'dense': [], 'keops': []}
        if not _keops_works(d, DEVICE.type): return
        for rep in range(REPEATS):
            for b in t:
                t[b].append(clock(lambda: kmeans(x, k, 'euclidean', start=start, max_iter=iters, tol=0,
                                                 backend=b))[0]/iters)
        a, b = (kmeans(x, k, 'euclidean', start=start, max_iter=iters, tol=0, backend=b) for b in t)
        r = statistics.median(q/p for p,q in zip(t['dense'], t['keops']))
        print(f'  d = {d:4d}: dense {1e3*statistics.median(t["dense"]):8.1f}, KeOps '
              f'{1e3*statistics.median(t["keops"]):8.1f}, KeOps/dense {r:6.2f}, '
              f'same assignment: {torch.equal(a.assign, b.assign)}', flush=True)


def main():
    def load():
        return '/'.join(f'{v:.1f}' for v in os.getloadavg())
    print(f'{N:,} x {D} unit rows ({args.data}) on {DEVICE}, {args.iters} updates, {args.threads} threads of '
          f'{os.cpu_count()}, {REPEATS} repeats, matrix units: '
          f'{_matrix_units(DEVICE)}, load {load()}')
    if args.dims: return by_dimension()
    x = rows(args.data).to(DEVICE)
    if not args.warm:
        for k in KS:
            print(f'K = {k}')
            contest(x, k)
    warm_against_cold(x, KS)
    print(f'load at the end {load()}')


if __name__ == '__main__': main()
