"""What evaluation costs, and whether its intervals cover.

    python benchmarks/evaluation.py speed      ours against one scikit-learn call per probe, and the full VoxCeleb1 size
    python benchmarks/evaluation.py coverage   share of 95 % intervals that contain the truth, in three simulated worlds
"""
import argparse, os, resource, time

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from vfassoc.evaluation.intervals import (bootstrap, interval, influence_statistic, matching_influence, pair_statistic,
                                          ranking_influence)
from vfassoc.evaluation.metrics import matching_accuracy, auc, rank_gallery
from vfassoc.evaluation.protocol import ProtocolConfig, evaluate
from vfassoc.evaluation.scorers import CosineScorer, Embeddings
from vfassoc.evaluation.trials import Retrieval, matching, retrieval, verification

def corpus(media, people=250, seed=0):
    "Tables of `media` voices and faces, with identities as unequal as in CMPC's galleries (24 to 371 of 20,000)."
    g = np.random.default_rng(seed)
    share = g.gamma(2.7, size=people) + .3
    who = np.sort(np.concatenate([np.repeat(np.arange(people), 2),
                                  g.choice(people, media - 2*people, p=share/share.sum())]))
    gender, nation = g.choice(['f', 'm'], people), g.choice(['USA', 'UK', 'Canada', 'India'], people,
                                                            p=[.64, .2, .1, .06])
    age = g.integers(20, 70, people)
    t = pd.DataFrame(dict(identity=np.char.add('id', who.astype(str)), gender=gender[who], nationality=nation[who],
                          age=age[who].astype(float)))
    t['video'] = t.identity + '-' + (t.groupby('identity').cumcount()//7).astype(str)
    return t.assign(path='wav/' + t.video + '/' + t.index.astype(str)), t.assign(path='faces/' + t.video + '/' +
                                                                                 t.index.astype(str))

def embeddings(voices, faces, d=512, seed=0):
    g = np.random.default_rng(seed)
    person = g.normal(size=(voices.identity.nunique(), d)).astype(np.float32)
    code = {p: i for i, p in enumerate(sorted(set(voices.identity)))}
    def make(t):
        return person[t.identity.map(code)] + 8*g.standard_normal((len(t), d), dtype=np.float32)
    return Embeddings(make(voices), make(faces), voices, faces)

def usual_retrieval(emb, probe, gallery, probes, items):
    "mAP the usual way: the ground truth by a double loop, one call of scikit-learn per probe."
    def unit(x):
        return x/np.linalg.norm(x, axis=1, keepdims=True)
    s = unit(probe) @ unit(gallery).T
    truth = [[int(p == q) for q in items] for p in probes]
    return np.mean([average_precision_score(y, x) for y, x in zip(truth, s)])

class Seconds(float):
    "Wall seconds that print with the CPU seconds of all threads; on a busy machine compare the CPU seconds."
    def __format__(self, spec): return f'{float(self):.2f} s' + (f' ({self.cpu:.2f} s of CPU)' if spec == 'cpu' else '')
    def __sub__(self, other):
        out = Seconds(float(self) - float(other))
        out.cpu = self.cpu - other.cpu
        return out

def timed(f):
    wall, cpu = time.perf_counter(), time.process_time()
    out = f()
    took = Seconds(time.perf_counter() - wall)
    took.cpu = time.process_time() - cpu
    return out, took

def speed(a):
    print(f'{os.cpu_count()} cores, numpy {np.__version__}, OMP_NUM_THREADS={os.environ.get("OMP_NUM_THREADS")}')
    voices, faces = corpus(a.media//10)
    emb = embeddings(voices, faces, a.dim)
    theirs, slow = timed(lambda: usual_retrieval(emb, emb.voice, emb.face, list(voices.identity), list(faces.identity)))
    def ours():
        scorer, t = CosineScorer(emb), retrieval(voices, faces)
        people = np.unique(np.concatenate([voices.identity, faces.identity]), return_inverse=True)[1]
        return rank_gallery(lambda r: scorer.matrix(t.probe[r], t.gallery), people[:len(voices)][t.probe],
                            people[len(voices):][t.gallery]).value('map')
    mine, fast = timed(ours)
    assert abs(mine - theirs) < 1e-5, (mine, theirs)
    print(f'retrieval {len(voices)} x {len(faces)}, one way: scikit-learn per probe {slow:cpu}, ours {fast:cpu}: '
          f'{slow.cpu/fast.cpu:.0f} times less CPU, same mAP {mine:.5f}')

    voices, faces = corpus(a.media)
    emb = embeddings(voices, faces, a.dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    def lists():
        return [verification(voices, faces, s, 30_000, seed=i) for i in range(2)
                for s in ('U', 'G', 'N', 'A', 'GNA')] + \
               [matching(voices, faces, d, s, 2, 10_000) for d in ('v2f', 'f2v') for s in ('U', 'G', 'N', 'GN')] + \
               [retrieval(voices, faces, d) for d in ('v2f', 'f2v')]
    drawn, took = timed(lists)
    print(f'drawing 18 lists and two galleries of {len(voices)}: {took:cpu}')
    scorer, took = timed(lambda: CosineScorer(emb))
    def plain():
        for t in drawn:
            if isinstance(t, Retrieval):
                evaluate_gallery(scorer, t, voices, faces)
            elif hasattr(t, 'label'): auc(t.label, scorer.pairs(t.voice, t.face))
            else:
                pair = (np.repeat(t.probe, 2), t.candidates.ravel())[::1 if t.direction == 'v2f' else -1]
                matching_accuracy(scorer.pairs(*pair).reshape(-1, 2))
    def evaluate_gallery(scorer, t, voices, faces):
        a, b = (voices, faces) if t.direction == 'v2f' else (faces, voices)
        code = {p: i for i, p in enumerate(sorted(set(a.identity)))}
        get = (lambda r: scorer.matrix(t.probe[r], t.gallery)) if t.direction == 'v2f' else (
            lambda r: scorer.matrix(t.gallery, t.probe[r]).T)
        return rank_gallery(get, a.identity.map(code).to_numpy()[t.probe],
                            b.identity.map(code).to_numpy()[t.gallery]).value('map')
    _, values = timed(plain)
    print(f'18 lists and {len(voices)} x {len(faces)} both ways, {a.dim}-d, values only: {values:cpu}, and {took:cpu} '
          'to prepare the vectors')
    _, all_ = timed(lambda: evaluate(scorer, voices, faces, ProtocolConfig(candidates=(2,)), lists=drawn, quiet=True))
    print(f'the same with intervals of 1000 replicates (protocols.evaluate): {all_:cpu}, so {all_ - values:cpu} more')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    print(f'peak memory {peak:.2f} GiB, of which before scoring {before:.2f}')

# ---- coverage

def world(g, people, kind, d=8, videos=4, rho=.45):
    "Unit voice and face vectors whose people have a shared latent, a sex, and parts of their own."
    z = g.normal(size=(people, d))
    z[:, 0] = 1.5*g.choice([-1, 1], people)
    def side():
        return np.repeat(rho*z + np.sqrt(1 - rho**2)*g.normal(size=(people, d)), videos,
                         0) + .5*g.normal(size=(people*videos, d))
    def unit(x):
        return x/np.linalg.norm(x, axis=1, keepdims=True)
    v, f, n = unit(side()), unit(side()), people*videos
    def each(x):
        return np.repeat(x, videos)
    if kind == 'attracting faces':
        v, f = np.column_stack([v, np.ones(n),
                                .25*each(g.normal(size=people))]), np.column_stack([f, .5*each(g.normal(size=people)),
                                                                                    np.ones(n)])
    if kind == 'bad faces': # a quarter of the faces attract every voice and miss their own
        bad = each(g.random(people) < .25)
        f[bad] = .2*g.normal(size=(bad.sum(), d))
        v, f = np.column_stack([v, np.ones(n)]), np.column_stack([f, .35*bad])
    return v.astype(np.float32), f.astype(np.float32), each(np.arange(people))

def trials(g, v, f, person, each, n=10):
    "Persons (t, n) and scores (t, n) of 1:n matching trials, the truth first."
    people, videos = person[-1] + 1, int((person == 0).sum())
    a = np.repeat(np.arange(people), each)
    who = np.column_stack([a, (a[:, None] + 1 + g.random((len(a), people - 1)).argsort(1)[:, :n - 1]) % people])
    def pick(p):
        return p*videos + g.integers(0, videos, p.shape)
    return who, np.einsum('td,tnd->tn', v[pick(a)], f[pick(who)])

def statistics(g, v, f, person, each):
    who, s = trials(g, v, f, person, each)
    y, pair = np.repeat([1, 0], len(s)), s[:, :2].T.ravel()
    r = rank_gallery(v @ f.T, person, person, ks=(1, 5), identities=person[-1] + 1, workers=1)
    return who, s, y, pair, r, {'AUC': auc(y, pair), '1:2': matching_accuracy(s[:, :2]), '1:10': matching_accuracy(s),
                                'mAP': r.value('map'), 'R@5': r.value('recall@5'), 'MRR': r.value('mrr')}

def coverage(a):
    rows = []
    for kind in ('plain', 'attracting faces', 'bad faces'):
        for people, each in ((40, 12), (120, 40)):
            far = [statistics(np.random.default_rng((1, i)), *world(np.random.default_rng((0, i)), people, kind),
                              each)[-1] for i in range(3*a.sets)]
            truth = pd.DataFrame(far).mean()
            for i in range(a.sets):
                g = np.random.default_rng((2, i))
                who, s, y, pair, r, value = statistics(g, *world(g, people, kind), each)
                def draw(f, n=people):
                    return bootstrap(f, n, 400, i)
                voice, face = np.tile(who[:, 0], 2), who[:, :2].T.ravel()
                n, one = len(y), lambda w: np.column_stack([w, np.ones(len(w))])
                by_trial = pair_statistic(y, pair, np.arange(n), np.full(n, n))
                found = {('AUC', 'trials'): draw(lambda w: by_trial(one(w)), n)[0],
                         ('AUC', 'people'): draw(pair_statistic(y, pair, voice, face))[0]}
                for k in (2, 10):
                    right = s[:, 0] > s[:, 1:k].max(1)
                    probe = np.bincount(who[:, 0], right - right.mean())/len(right)
                    for name, T in (('probe', probe), ('people', matching_influence(s[:, :k], who[:, :k], people))):
                        found[f'1:{k}', name] = draw(influence_statistic(right.mean(), T))
                for m, name in (('map', 'mAP'), ('recall@5', 'R@5'), ('mrr', 'MRR')):
                    T = ranking_influence(r, m)
                    found[name, 'people'] = draw(influence_statistic(r.value(m), T))
                    found[name, 'probe'] = draw(influence_statistic(r.value(m), T - r.influence[m]))
                for (m, name), x in found.items():
                    _, low, high = interval(value[m], x)
                    rows.append((kind, people, m, name, low <= truth[m] <= high, high - low, value[m]))
    t = pd.DataFrame(rows, columns=['world', 'people', 'metric', 'drawn', 'covers', 'width',
                                    'value']).groupby(['world', 'people', 'metric', 'drawn'], sort=False)
    print(pd.DataFrame(dict(coverage=t.covers.mean(), width=t.width.mean(),
                            ideal=3.92*t.value.std())).round(3).to_string())

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=('speed', 'coverage'))
    p.add_argument('--media', type=int, default=20_000, help='voices and faces of the full size')
    p.add_argument('--dim', type=int, default=512)
    p.add_argument('--sets', type=int, default=150, help='simulated test sets of each world')
    a = p.parse_args()
    globals()[a.what](a)
