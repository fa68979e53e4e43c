"""Exact search for one voice: python benchmarks/search.py [--rows 1000000] [--dim 512] [--threads 2]

Contenders take turns: the index of this package (memory-mapped), and a flat index of faiss (in memory).
Also: seconds to append the vectors and to open the index.
Aim at 1,000,000 x 512: below 0.3 s, within 1.2 x of faiss."""
import os, resource, statistics, tempfile
from pathlib import Path

from common import options, timed

args = options(__doc__, rows=1_000_000, dim=512, threads=2, turns=7)
os.environ.update(OMP_NUM_THREADS=str(args.threads), OPENBLAS_NUM_THREADS=str(args.threads))

import faiss
import numpy as np

from vfassoc.inference.index import Index


def chunks(rng, step=50_000):
    for i in range(0, args.rows, step):
        x = rng.standard_normal((min(step, args.rows - i), args.dim), dtype=np.float32)
        yield x/np.linalg.norm(x, axis=1, keepdims=True), [f'{i + k}.jpg' for k in range(len(x))]


with tempfile.TemporaryDirectory() as folder:
    made = Index('benchmark', args.dim, folder=Path(folder)/'index')
    append, _ = timed(lambda: made.extend(chunks(np.random.default_rng(0))))
    opening, index = timed(lambda: Index.load(Path(folder)/'index'))
    flat = faiss.IndexFlatIP(args.dim)
    for x in index.parts: flat.add(np.ascontiguousarray(x))
    query, seconds = index.rows([5]), {'index': [], 'faiss': []}
    for _ in range(args.turns):
        t, (scores, rows) = timed(lambda: index.nearest(query, 10, exact=True))
        seconds['index'].append(t)
        t, (theirs, same) = timed(lambda: flat.search(query, 10))
        seconds['faiss'].append(t)
    assert (rows == same).all() and np.abs(scores - theirs).max() < 1e-5
    ours, faisses = (statistics.median(seconds[k]) for k in ('index', 'faiss'))
    print(f'{args.rows:,} x {args.dim}, {args.threads} threads, load {os.getloadavg()[0]:.1f}: append {append:.1f} s,'
          f' drawing included; open {opening:.2f} s')
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    print(f'one query, median of {args.turns}: index {ours:.3f} s, faiss flat {faisses:.3f} s, '
          f'ratio {ours/faisses:.2f}; peak memory {memory:.1f} GB (faiss holds a copy)')
