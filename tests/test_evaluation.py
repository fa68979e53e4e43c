"Evaluation: metrics against scikit-learn and loops, properties of every list, bad input, leakage on real features."
import json, os, time, tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from vfassoc.core import ConfigError, CorpusError, RunError, RunFolder, VfassocError, from_dict, read_json
from vfassoc.evaluation.intervals import (bootstrap, interval, influence_statistic, matching_influence, pair_statistic,
                                          ranking_influence, seed_interval)
from vfassoc.evaluation.metrics import ScoreError, matching_accuracy, auc, chance, eer, rank_gallery, rank_probe, roc
from vfassoc.evaluation.protocol import ProtocolConfig, evaluate, write_result
from vfassoc.evaluation.scorers import (AttributeScorer, CosineScorer, Embeddings, OracleScorer, load_embeddings,
                                        save_embeddings)
from vfassoc.evaluation.trials import DIRECTIONS, STRATA, matching, retrieval, same_video_share, verification

LIBRI = Path(os.environ.get('VFASSOC_SHARED', '/nowhere'))/'corpora'/'libri-lfw'
needs_libri = pytest.mark.skipif(not (LIBRI/'features.npz').is_file(),
                                 reason='VFASSOC_SHARED does not point to a folder with corpora/libri-lfw')

# ---- metrics

def lists(n=150):
    "Labels and scores: few distinct values or none equal, balanced or one of a kind, all equal, integers, infinities."
    for i in range(n):
        g = np.random.default_rng(i)
        size = int(g.integers(2, 80))
        y = g.permutation(np.arange(size) < g.choice([1, size - 1, max(1, size//2)]))
        s = [g.integers(0, g.integers(1, 9), size), g.normal(size=size), np.full(size, 3.),
             g.integers(-2, 3, size).astype(np.float32),
             np.where(g.random(size) < .2, -np.inf, g.integers(0, 4, size))][i % 5]
        yield y.astype(g.choice([bool, int, float])), s

def finite(s): return np.where(np.isneginf(s), -9, s) # the same order, for scikit-learn

def test_auc_is_scikit_learns():
    for y, s in lists(): assert auc(y, s) == pytest.approx(roc_auc_score(y, finite(s)), abs=1e-12)

def test_auc_is_exact_for_large_lists_and_constant_scores():
    y = np.arange(300_000) % 2
    assert auc(y, np.zeros(300_000)) == .5 == eer(y, np.zeros(300_000))
    assert auc(y, y) == 1 and eer(y, y) == 0 and auc(y, -y) == 0 and eer(y, -y) == 1

def test_roc_is_scikit_learns():
    for y, s in lists():
        np.testing.assert_allclose([x[1:] for x in roc(y, finite(s))],
                                   [x[1:] for x in roc_curve(y, finite(s), drop_intermediate=False)])

def test_eer_lies_on_the_curve_where_the_errors_meet():
    for y, s in lists():
        fpr, tpr, _ = roc_curve(y, finite(s), drop_intermediate=False)
        e = eer(y, s)
        on = [abs(np.interp(e, [a, b], [c, d]) - (1 - e)) < 1e-9 if b > a else min(c, d) - 1e-9 <= 1 - e <= max(c, d) +
              1e-9
              for a, b, c, d in zip(fpr[:-1], fpr[1:], tpr[:-1], tpr[1:]) if a - 1e-9 <= e <= b + 1e-9]
        assert any(on), (e, fpr, tpr)

def test_accuracy_ties_are_wrong():
    g = np.random.default_rng(0)
    for n in range(2, 11):
        s = g.integers(0, 6, (300, n))
        assert matching_accuracy(s) == np.mean([all(x[0] > y for y in x[1:]) for x in s.tolist()])
    assert matching_accuracy(np.zeros((5, 3))) == 0

def naive_ranking(s, own, k):
    ap = average_precision_score(np.isin(np.arange(len(s)), own), s)
    rank = 1 + sum(s[j] >= max(s[i] for i in own) for j in range(len(s)) if j not in set(own))
    return ap, 1/rank, float(rank <= k)

@pytest.mark.parametrize('kind', ['few values', 'continuous', 'constant'])
@pytest.mark.parametrize('skipping', [False, True])
def test_retrieval_is_scikit_learns(kind, skipping):
    g = np.random.default_rng(3)
    probe, gallery = g.integers(0, 8, 40), np.append(np.arange(8), g.integers(0, 8, 90))
    s = {'few values': g.integers(0, 7, (40, 98)), 'continuous': g.normal(size=(40, 98)).astype(np.float32),
         'constant': np.zeros((40, 98))}[kind]
    skip = (g.integers(0, 4, 40), g.integers(4 if not skipping else 0, 8, 98)) if skipping else None
    if skipping: skip[1][:8] = 9 # everybody keeps an item
    kept = [np.full(98, True) if skip is None else skip[1] != v for v in (skip[0] if skipping else range(40))]
    expected = np.array([naive_ranking(x[k].astype(float), np.flatnonzero(gallery[k] == p), 5)
                         for x, k, p in zip(s, kept, probe)]).mean(0)
    for block, workers in ((0, None), (1, 1), (7, 2), (40, 1)):
        r = rank_gallery(s, probe, gallery, skip, block=block, workers=workers)
        np.testing.assert_allclose([r.value(m) for m in ('map', 'mrr', 'recall@5')], expected, atol=1e-12)
        assert list(r.gallery) == [k.sum() for k in kept]
        assert list(r.relevant) == [(gallery[k] == p).sum() for k, p in zip(kept, probe)]
    if kind == 'constant' and not skipping: # all in one tie group: precision is the share of relevant items
        np.testing.assert_allclose(r.ap, r.relevant/98)

def test_influence_does_not_depend_on_blocks():
    g = np.random.default_rng(0)
    s, probe, gallery = g.normal(size=(50, 70)), g.integers(0, 9, 50), np.append(np.arange(9), g.integers(0, 9, 61))
    one, two = (rank_gallery(s, probe, gallery, ks=(1, 5), identities=9, block=b, workers=w)
                for b, w in ((50, 1), (3, 2)))
    for m in one.influence: np.testing.assert_allclose(one.influence[m], two.influence[m], atol=1e-14)
    plain = rank_gallery(s, probe, gallery)
    assert (one.ap == plain.ap).all() and (one.rank == plain.rank).all() and plain.influence is None

def test_gallery_memory_is_not_squared():
    g = np.random.default_rng(0)
    v, f, person = g.normal(size=(4000, 4)).astype(np.float32), g.normal(size=(20_000, 4)).astype(
        np.float32), np.arange(20_000) % 50
    tracemalloc.start()
    rank_gallery(lambda rows: v[rows] @ f.T, person[:4000], person, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6, f'{peak/1e6:.0f} MB; the whole matrix would be 320'

def test_chance_is_what_guessing_gives():
    g = np.random.default_rng(0)
    for r, n in ((1, 1), (1, 50), (4, 9), (9, 9), (30, 300)):
        ap, rank = np.array([rank_probe(g.random(n), np.arange(r)) for _ in range(3000)]).T
        for m, x in (('map', ap), ('mrr', 1/rank), ('recall@5', rank <= 5)):
            assert chance(m, r, n) == pytest.approx(x.mean(), abs=4*x.std()/3000**.5 + 1e-12), (m, r, n)
    assert chance('map', [1, 4], [50, 9]) == pytest.approx((chance('map', 1, 50) + chance('map', 4, 9))/2)
    assert chance('recall@10', 80,
                  20_000) == pytest.approx(1 - np.prod((19_920 - np.arange(10))/(20_000 - np.arange(10))), rel=1e-8)

# ---- intervals

def test_weighted_statistics_are_those_of_repeated_people():
    for i in range(30):
        g = np.random.default_rng(i)
        y, s, a = g.permutation(np.arange(80) < 40), g.integers(0, g.integers(2, 30), 80), g.integers(0, 7, 80)
        b = np.where(y, a, (a + g.integers(1, 7, 80)) % 7)
        w = g.multinomial(7, np.full(7, 1/7), size=4).astype(float)
        areas, rates = pair_statistic(y, s, a, b)(w)
        for row, area, rate in zip(w, areas, rates):
            again = np.repeat(np.arange(80), np.where(y, row[a], row[a]*row[b]).astype(int))
            if len(set(y[again])) < 2:
                assert np.isnan(area)
                continue
            assert (area, rate) == pytest.approx((auc(y[again], s[again]), eer(y[again], s[again])), abs=1e-12)

def test_bootstrap_is_a_function_of_its_seed():
    f = influence_statistic(.5, np.linspace(-.1, .1, 20))
    a, b = bootstrap(f, 20, 300, seed=1), bootstrap(f, 20, 300, seed=1, block=7)
    np.testing.assert_allclose(a, b, atol=1e-15)
    assert (a != bootstrap(f, 20, 300, seed=2)).any() and a.shape == (300,)
    assert a.std() == pytest.approx(np.sqrt((np.linspace(-.1, .1, 20)**2).sum()), rel=.15)

def test_interval_has_its_level():
    x = np.random.default_rng(0).random(20_000)
    assert interval(.5, x)[1:] == pytest.approx((.025, .975), abs=.01)
    assert interval(.5, x, .5)[1:] == pytest.approx((.25, .75), abs=.02)
    gaps = np.where(np.arange(100) < 51, np.nan, .3)
    assert np.isnan(interval(.3, gaps).low) and interval(.3, gaps[2:]).low == .3

def test_matching_effect_is_the_change_that_a_person_makes():
    "A finite difference: an identity's trials weigh 1 + h, both where it is the probe and where it is the impostor."
    g = np.random.default_rng(0)
    who = np.array([g.permutation(12)[:4] for _ in range(400)])
    s = g.normal(size=(400, 4))
    right, h = (s[:, 0] > s[:, 1:].max(1)).astype(float), 1e-6
    won = s[:, :1] > s[:, 1:]
    others = np.stack([np.delete(won, j, 1).all(1) for j in range(3)], 1)
    q = won[others].mean()
    for p in range(12):
        w = 1 + h*(who[:, 0] == p)
        as_probe = ((w*right).sum()/w.sum() - right.mean())/h
        as_impostor = sum(won[i, j] - q for i in range(400) for j in range(3) if who[i, j + 1] == p
                          and others[i, j])/400
        assert matching_influence(s, who, 12)[p] == pytest.approx(as_probe + as_impostor, abs=1e-5)

def test_ranking_effect_is_the_change_that_a_person_makes():
    "A finite difference of the mean over probes: an identity's probes weigh 1 + h, and so do its items for others."
    g = np.random.default_rng(0)
    s, probe, gallery, h = g.integers(0, 30, (60, 80)), g.integers(0, 9, 60), np.append(
        np.arange(9), g.integers(0, 9, 71)), 1e-6
    r = rank_gallery(s, probe, gallery, ks=(5,), identities=9)
    def ap(me, row, w):
        pos = row[gallery == me]
        return np.mean([k/(k + (w*(row >= x))[gallery != me].sum()) for x in pos for k in [(pos >= x).sum()]])
    for p in range(9):
        def value(h):
            return np.average([ap(me, row, 1 + h*(gallery == p)) for me, row in zip(probe, s)],
                              weights=1 + h*(probe == p))
        assert ranking_influence(r, 'map')[p] == pytest.approx((value(h) - value(-h))/2/h, abs=1e-6)
        alone = np.array([1/rank_probe(np.delete(row, (gallery == p) & (me != p)),
                                       np.flatnonzero(np.delete(gallery, (gallery == p) & (me != p)) == me))[1]
                          for me, row in zip(probe, s)])
        as_probe = ((1/r.rank - r.value('mrr'))*(probe == p)).mean()
        assert ranking_influence(r, 'mrr')[p] == pytest.approx(as_probe + r.value('mrr') - alone.mean(), abs=1e-12)

def test_intervals_of_people_are_wider_than_those_of_trials():
    g = np.random.default_rng(0)
    effect, a = g.normal(size=25), np.repeat(np.arange(25), 40)
    b = (a + g.integers(1, 25, 1000)) % 25
    y, s = np.repeat([1, 0], 1000), np.concatenate([.8 + effect[a] + .3*g.normal(size=1000),
                                                    effect[b] + .3*g.normal(size=1000)])
    each, last = np.arange(2000), np.full(2000, 2000)
    by_trial = pair_statistic(y, s, each, last)
    def width(x):
        return np.subtract(*interval(0, x)[:0:-1])
    people = width(bootstrap(pair_statistic(y, s, np.tile(a, 2), np.concatenate([a, b])), 25, 300)[0])
    assert people > 2*width(bootstrap(lambda w: by_trial(np.column_stack([w, np.ones(len(w))])), 2000, 300)[0])

def test_seed_interval():
    x = [.71, .74, .70, .75]
    half = 3.18245*np.std(x, ddof=1)/2 # t of three degrees of freedom
    assert seed_interval(x) == pytest.approx((np.mean(x), np.mean(x) - half, np.mean(x) + half), abs=1e-5)
    assert seed_interval([.5]).value == .5 and np.isnan(seed_interval([.5])[1:]).all()

Y, S = np.array([1, 0, 1, 0]), np.array([.1, .2, .3, .4])
@pytest.mark.parametrize('call, words', [
    (lambda: auc(Y, [1., np.nan, 0, 0]), '1 of 4 scores are NaN'),
    (lambda: auc(Y, S[:3]), 'one label for each score'),
    (lambda: auc(Y[:, None], S[:, None]), 'one label for each score'),
    (lambda: auc([1, 1, 1, 1], S), '4 of them positive'),
    (lambda: eer([0, 0, 0, 0], S), '0 of them positive'),
    (lambda: auc([], []), '0 trials'),
    (lambda: auc([1, 2, 0, 1], S), 'labels must be 1'),
    (lambda: matching_accuracy([1., 2.]), 'shape (2,)'),
    (lambda: matching_accuracy([[1.], [2.]]), 'two candidates'),
    (lambda: matching_accuracy(np.zeros((0, 2))), 'shape (0, 2)'),
    (lambda: matching_accuracy([[1., np.nan], [0, 1]]), '1 of 2 trials have NaN'),
    (lambda: matching_influence([[1., np.nan]], [[0, 1]], 2), 'NaN'),
    (lambda: rank_gallery(np.array([[1., np.nan]]), [0], [0, 1]), 'NaN scores'),
    (lambda: rank_gallery(np.zeros((1, 3)), [0], [0, 1]), 'shape (1, 3)'),
    (lambda: rank_gallery(np.zeros((2, 2)), [0, 5], [0, 1]), 'probe 1 has nothing relevant'),
    (lambda: rank_gallery(np.zeros((1, 2)), [0], [0, 1], (np.array([4]), np.array([4, 5]))),
     'probe 0 has nothing relevant'),
    (lambda: rank_gallery(np.zeros((0, 2)), [], [0, 1]), '0 probes'),
    (lambda: seed_interval([]), 'one finite value'),
    (lambda: seed_interval([.5, np.nan]), 'one finite value'),
])
def test_bad_scores_are_one_clear_line(call, words):
    with pytest.raises(ScoreError) as e: call()
    assert words in str(e.value) and '\n' not in str(e.value) and isinstance(e.value, VfassocError)

# ---- trials

def corpus(seed=0, people=14, unknown=True):
    "Media tables with unequal identities and videos, ages that change between videos, missing metadata, odd names."
    g = np.random.default_rng(seed)
    rows = []
    for p in range(people):
        gender, nation, born = g.choice(['f', 'm']), g.choice(['USA', 'UK', 'Türkiye'],
                                                              p=[.5, .3, .2]), g.integers(20, 60)
        for v in range(g.integers(1, 6)):
            for m, n in (('voice', g.integers(1, 4)), ('face', g.integers(1, 6))):
                rows += [(m, f'{m}/Zoë {p}, "{v}"/{i:03d}.x', f'id{p:02d}', f'v{p}_{v}', gender, nation, born + 4.*v)
                         for i in range(n)]
    t = pd.DataFrame(rows, columns=['modality', 'path', 'identity', 'video', 'gender', 'nationality', 'age'])
    if unknown:
        t.loc[t.identity == 'id01', 'nationality'] = 'unknown'
        t.loc[t.video == 'v2_0', 'age'] = np.nan
    return tuple(t[t.modality == m].drop(columns='modality').sample(frac=1, random_state=seed).reset_index(drop=True)
                 for m in ('voice', 'face'))

ATTRIBUTES = {'U': [], 'G': ['gender'], 'N': ['nationality'], 'A': ['decade'], 'GN': ['gender', 'nationality'],
              'GNA': ['gender', 'nationality', 'decade']}

def shares(a, b, stratum):
    a, b = (x.assign(decade=x.age//10) for x in (a, b))
    return all((a[c].to_numpy() == b[c].to_numpy()).all() and not a[c].isin(['unknown']).any() and a[c].notna().all()
               for c in ATTRIBUTES[stratum])

@pytest.mark.parametrize('same_video', ['allow', 'exclude'])
@pytest.mark.parametrize('stratum', STRATA)
def test_verification_holds_what_it_promises(stratum, same_video):
    for seed in range(6):
        v, f = corpus(seed)
        for n in (30, 100_000):
            t = verification(v, f, stratum, n, seed, same_video)
            a, b = v.iloc[t.voice], f.iloc[t.face]
            assert len(t) <= n and len(t)
            assert ((a.identity.to_numpy() == b.identity.to_numpy()) == t.label).all()
            assert len(set(zip(t.voice, t.face))) == len(t), 'a pair twice'
            assert shares(a, b, stratum)
            # every voice has as many negatives as positives, unless the people of its cell have no more faces
            per_voice = pd.DataFrame(dict(voice=t.voice, label=t.label)).groupby('voice').label.agg(['sum', 'size'])
            if n == 30: assert (2*per_voice['sum'] == per_voice['size']).all()
            share = same_video_share(t, v, f)
            assert share == (a.video.to_numpy() == b.video.to_numpy())[t.label].mean()
            assert share == 0 if same_video == 'exclude' else share > 0
        kin = v.identity.to_numpy()[:, None] == f.identity.to_numpy()
        alike = np.logical_and.reduce([kin | True] + [known(v, c)[:, None] == known(f, c) for c in ATTRIBUTES[stratum]])
        other_video = v.video.to_numpy()[:, None] != f.video.to_numpy()
        possible = kin & alike & (other_video | (same_video == 'allow')) & (alike & ~kin).any(1, keepdims=True)
        assert t.label.sum() == possible.sum(), 'a list of more trials than possible has every possible positive pair'

def known(t, c):
    x = (t.age//10 if c == 'decade' else t[c]).astype(object)
    return x.where(x.notna() & (x != 'unknown'), np.nan).to_numpy() # nan differs from itself

@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('stratum', STRATA)
def test_matching_holds_what_it_promises(stratum, direction):
    for seed in range(6):
        v, f = corpus(seed)
        t = matching(v, f, direction, stratum, 5, 700, seed)
        probes, others = (v, f) if direction == 'v2f' else (f, v)
        p, there = probes.iloc[t.probe], t.candidates >= 0
        assert there[:, :2].all() and (np.diff(there.astype(int),
                                               axis=1) <= 0).all(), 'candidates are missing only at the end'
        names = np.where(there, others.identity.to_numpy()[t.candidates], '')
        assert (p.identity.to_numpy() == names[:, 0]).all()
        for row, k in zip(names, there.sum(1)): assert len(set(row[:k])) == k, 'an impostor twice'
        for j in range(5): assert shares(p[there[:, j]], others.iloc[t.candidates[there[:, j], j]], stratum)
        cell = others.assign(decade=others.age//10).groupby(ATTRIBUTES[stratum]
                                                            or (lambda i: 0)).identity.transform('nunique').to_numpy()
        assert (there.sum(1) == np.minimum(cell[t.candidates[:, 0]], 5)).all(), 'as many impostors as the cell has'
        for n in range(2, 6):
            cut = t.one_of(n)
            assert cut.candidates.shape[1] == n and (cut.candidates >= 0).all() and len(cut) == there[:, n - 1].sum()

def test_everybody_counts_the_same():
    v, f = corpus(5, people=11, unknown=False)
    t = matching(v, f, 'f2v', 'U', 3, 400)
    counts = f.identity.iloc[t.probe].value_counts()
    assert len(counts) == 11 and counts.max() - counts.min() <= 1 and len(t) == 400
    within = f.assign(n=np.bincount(t.probe, minlength=len(f))).groupby('identity').n
    assert (within.max() - within.min() <= 1).all(), 'the faces of a person take turns'
    impostor = v.identity.iloc[t.candidates[:, 1]].value_counts()
    assert impostor.max() - impostor.min() <= 2
    u = verification(v, f, 'U', 110)
    pairs = v.identity.value_counts()*f.identity.value_counts()
    expected = np.minimum(10, 2*pairs) # or all that she has
    assert (v.identity.iloc[u.voice].value_counts().reindex(expected.index) ==
            expected).all() and (expected == 10).sum() > 5
    assert len(matching(v, f, trials=5)) == 5, 'fewer trials than people'

@pytest.mark.parametrize('make', [lambda v, f, s: verification(v, f, 'G', 200, s), lambda v, f,
                                  s: matching(v, f, 'f2v', 'N', 4, 200, s),
                                  lambda v, f, s: verification(v, f, 'A', 200, s, 'exclude'), lambda v, f,
                                  s: retrieval(v, f, 'v2f', 12, s)])
def test_lists_depend_on_seed_and_media_only(make):
    v, f = corpus(3)
    def name(t, v, f):
        return [[x.path.to_numpy()[k] for k in np.atleast_1d(rows) if k >= 0] for x, rows in
                                zip((v, f) if hasattr(t, 'label') or t.direction == 'v2f' else (f, v),
                                    (t.voice, t.face) if hasattr(t, 'label')
                                    else (t.probe, t.candidates.ravel() if hasattr(t, 'candidates') else t.gallery))]
    first = name(make(v, f, 0), v, f)
    mixed = [x.sample(frac=1, random_state=9) for x in (v, f)] # with a shuffled index, too
    assert name(make(*mixed, 0), *mixed) == first
    assert name(make(v, f, 1), v, f) != first
    assert first[0] and first[1]

def test_tens_of_thousands_of_trials_take_no_time():
    g = np.random.default_rng(0)
    who = np.sort(g.integers(0, 200, 20_000))
    t = pd.DataFrame(dict(identity=np.char.add('id', who.astype(str)), gender=np.array(['f', 'm'])[who % 2],
                          nationality=np.array(['a', 'b', 'c'])[who % 3], age=20. + who % 50))
    t['video'] = t.identity + '/' + (t.groupby('identity').cumcount()//5).astype(str)
    v, f = (t.assign(path=m + '/' + t.index.astype(str)) for m in ('wav', 'faces'))
    start = time.process_time()
    for s in STRATA:
        verification(v, f, s, 40_000)
        matching(v, f, 'f2v', s, 10, 10_000)
    assert time.process_time() - start < 12*.8

def test_what_is_missing_is_said():
    v, f = corpus(0)
    none = [x.assign(nationality='unknown', age=np.nan) for x in (v, f)]
    for s, words in (('N', 'nationality unknown'), ('A', 'age unknown'), ('GNA', 'nationality and age unknown')):
        for t in (verification(*none, s), matching(*none, 'f2v', s)):
            assert len(t) == 0 and len(t.notes) == 1 and 'not available' in t.notes[0] and words in t.notes[0], t.notes
    assert not verification(v, f, 'G').notes
    note = verification(v, f, 'N').notes[0]
    count = (v.identity == 'id01').sum()
    assert note == f'verification N: 1 of 14 identities ({count} of {len(v)} voices) left out, nationality unknown'
    strangers = [x.assign(nationality=x.identity) for x in (v, f)]
    t = matching(*strangers, 'v2f', 'N')
    assert len(t) == 0 and 'matching v2f N: not available: 14 of 14 identities' in t.notes[
        0] and 'no impostor of the same nationality' in t.notes[0]
    one_video = [x[~x.identity.isin(['id03', 'id04']) | x.video.str.endswith('_0')].reset_index(drop=True)
                 for x in (v, f)]
    assert any('no face of the person in another video' in n
               for n in verification(*one_video, same_video='exclude').notes)
    voiceless = v[v.identity != 'id05'].reset_index(drop=True)
    assert 'probes left out, nothing of the person in the gallery' in retrieval(voiceless, f, 'f2v').notes[0]
    assert 'no voice of the person' in matching(voiceless, f, 'f2v').notes[0]

def test_retrieval_lists():
    v, f = corpus(2)
    for direction, (a, b) in zip(DIRECTIONS, ((v, f), (f, v))):
        t = retrieval(v, f, direction)
        assert sorted(t.probe) == list(range(len(a))) and sorted(t.gallery) == list(range(len(b)))
        same, kin = ((a[c].to_numpy()[t.probe][:, None] == b[c].to_numpy()[t.gallery]) for c in ('video', 'identity'))
        assert same_video_share(t, v, f) == pytest.approx(same.sum()/kin.sum())
        t = retrieval(v, f, direction, same_video='exclude')
        usable = [(b.identity[b.video != x.video] == x.identity).any() for x in a.itertuples()]
        assert sorted(t.probe) == list(np.flatnonzero(usable)) and same_video_share(t, v, f) == 0
    t = retrieval(v, f, 'v2f', limit=20)
    per = f.identity.iloc[t.gallery].value_counts()
    assert len(t.gallery) == 20 and len(per) == 14, 'nobody vanishes while there is room'

@pytest.mark.parametrize('stratum', ['U', 'GN'])
@pytest.mark.parametrize('people', [2, 3])
def test_tiny_corpora(people, stratum):
    t = pd.DataFrame(dict(identity=[f'p{i}' for i in range(people)], gender='f', nationality='UK', age=30.,
                          video=[f'v{i}' for i in range(people)]))
    v, f = t.assign(path='a' + t.video), t.assign(path='b' + t.video)
    assert len(verification(v, f, stratum)) == 2*people
    m = matching(v, f, 'v2f', stratum, 10)
    assert len(m) == people*(people - 1) and len(m.one_of(people)) == len(m) and len(m.one_of(people + 1)) == 0

V, F = corpus(0)
@pytest.mark.parametrize('call, error, words', [
    (lambda: verification(V[V.identity == 'id00'], F[F.identity == 'id00']), CorpusError, 'one identity (id00)'),
    (lambda: retrieval(V[V.identity == 'id00'], F[F.identity == 'id00']), CorpusError, 'one identity (id00)'),
    (lambda: verification(V[:0], F), CorpusError, 'there are no voices'),
    (lambda: matching(V, F[:0]), CorpusError, 'there are no faces'),
    (lambda: verification(V.drop(columns='video'), F), CorpusError, 'voices: no column video'),
    (lambda: verification(V, pd.concat([F, F[:1]])), CorpusError, 'listed twice'),
    (lambda: verification(V, F, 'NG'), ConfigError, "stratum = 'NG'"),
    (lambda: matching(V, F, 'both'), ConfigError, "direction = 'both'"),
    (lambda: matching(V, F, candidates=1), ConfigError, 'candidates = 1'),
    (lambda: matching(V, F, trials=0), ConfigError, 'trials = 0'),
    (lambda: verification(V, F, trials=1), ConfigError, 'trials = 1'),
    (lambda: verification(V, F, same_video='no'), ConfigError, "same_video = 'no'"),
    (lambda: verification(V, F, 'A', age_bin=0), ConfigError, 'age_bin = 0'),
    (lambda: retrieval(V, F, limit=-1), ConfigError, 'limit = -1'),
    (lambda: ProtocolConfig(strata=('U', 'X')), ConfigError, 'strata'),
    (lambda: ProtocolConfig(candidates=(1,)), ConfigError, 'candidates'),
    (lambda: from_dict(ProtocolConfig, {'strata': ['U'], 'replicate': 100}), ConfigError, "unknown key 'replicate'"),
    (lambda: from_dict(ProtocolConfig, {'same_video': 'never'}), ConfigError, 'same_video'),
])
def test_bad_lists_are_one_clear_line(call, error, words):
    with pytest.raises(error) as e: call()
    assert words in str(e.value) and '\n' not in str(e.value)

# ---- protocols

SMALL = ProtocolConfig(verification_trials=600, matching_trials=300, candidates=(2, 5), replicates=100)

def vectors(v, f, d=6, seed=0, share=1.):
    g = np.random.default_rng(seed)
    person = {p: g.normal(size=d) for p in sorted({*v.identity, *f.identity})}
    def make(t):
        return np.array([share*person[p] + g.normal(size=d) for p in t.identity], np.float32)
    return Embeddings(make(v), make(f), v, f)

def test_every_record_is_what_a_loop_gives():
    v, f = corpus(0)
    emb = vectors(v, f)
    r = evaluate(CosineScorer(emb), v, f, SMALL, trained_on=['somebody'])
    s = emb.voice @ emb.face.T/np.linalg.norm(emb.voice, axis=1)[:, None]/np.linalg.norm(emb.face, axis=1)
    kin = v.identity.to_numpy()[:, None] == f.identity.to_numpy()
    assert set(r.table.columns) == {'task', 'direction', 'stratum', 'candidates', 'metric', 'value', 'low', 'high',
                                    'chance', 'ceiling', 'trials', 'identities', 'same_video'}
    assert len(r.scores) == 6*2 + 2*4*2 + 2*5
    for x in r.table.itertuples():
        t = r.trials[(r.trials.task == x.task) & (r.trials.stratum == x.stratum) & (r.trials.direction == x.direction)]
        if x.task == 'verification':
            assert (t.label == kin[t.voice, t.face]).all() and x.trials == len(t) and x.chance == .5
            if x.metric == 'auc': assert x.value == pytest.approx(roc_auc_score(t.label, s[t.voice, t.face]), abs=1e-4)
        elif x.task == 'matching':
            rows = [k for _, k in t.groupby('trial') if len(k) >= x.candidates]
            assert x.value == pytest.approx(np.mean([k.score.iloc[0] > k.score.iloc[1:int(x.candidates)].max()
                                                     for k in rows]))
            assert x.trials == len(rows) and x.chance == 1/x.candidates
        else:
            m, truth = (s, kin) if x.direction == 'v2f' else (s.T, kin.T)
            expected = np.mean([naive_ranking(a, np.flatnonzero(b),
                                              int(x.metric[7:] or 0) if 'recall' in x.metric else 1)
                                for a, b in zip(m, truth)], 0)
            assert x.value == pytest.approx(expected['map mrr'.split().index(x.metric) if 'recall' not in x.metric
                                                     else 2], abs=1e-5)
            assert x.trials == len(m) and 0 < x.chance < x.value
        assert x.low <= x.value <= x.high and x.high - x.low > 0 and 0 < x.same_video < 1
    assert not any('leakage' in n for n in r.notes) and any('nationality unknown' in n for n in r.notes)

def test_same_trials_for_every_method():
    v, f = corpus(0)
    a, b = (evaluate(CosineScorer(vectors(v, f, seed=i)), v, f, SMALL) for i in range(2))
    assert a.trials.drop(columns='score').equals(b.trials.drop(columns='score')) and not a.trials.score.equals(
        b.trials.score)
    assert a.protocol == b.protocol and a.notes == b.notes
    again = evaluate(CosineScorer(vectors(v, f)), v, f, SMALL)
    assert json.dumps(again.scores) == json.dumps(a.scores), 'an evaluation repeats to the last bit'

def test_excluded_videos_are_excluded_everywhere():
    v, f = corpus(0)
    scorer = AttributeScorer(v, f, 'video') # knows the video, hence every positive of the same video
    r = evaluate(scorer, v, f, ProtocolConfig(same_video='exclude', replicates=100)).table
    assert (r.same_video == 0).all()
    assert (r[r.metric == 'auc'].value == .5).all() and (r[r.metric == 'accuracy'].value == 0).all()
    x = r[(r.metric == 'map') & (r.direction == 'v2f')].iloc[0]
    assert x.value == pytest.approx(x.chance, abs=.05)

def test_collapsed_embeddings_tie():
    v, f = corpus(0)
    g = np.random.default_rng(0)
    emb = Embeddings(np.tile(g.normal(size=33), (len(v), 1)).astype(np.float32),
                     np.tile(g.normal(size=33), (len(f), 1)).astype(np.float32), v, f)
    r = evaluate(CosineScorer(emb), v, f, SMALL).table.set_index('metric').value
    assert (r['auc'] == .5).all() and (r['eer'] == .5).all() and (r['accuracy'] ==
                                                                  0).all() and (r['recall@5'] == 0).all()

def test_equal_vectors_tie_wherever_they_stand():
    g = np.random.default_rng(0)
    for n, d in ((1003, 130), (4099, 192), (257, 512)):
        v, f = pd.DataFrame(dict(path=range(7), identity='a',
                                 video='a')), pd.DataFrame(dict(path=range(n), identity='a', video='a'))
        emb = Embeddings(g.normal(size=(7, d)).astype(np.float32), g.normal(size=(n, d)).astype(np.float32), v, f)
        emb.face[::3] = emb.face[0]
        emb.voice[3] = emb.voice[6]
        s = CosineScorer(emb)
        for rows in ([0], [3, 6], list(range(7))):
            b = s.matrix(np.array(rows), np.arange(n))
            assert (b[:, ::3] == b[:, :1]).all() and (len(rows) != 2 or (b[0] == b[1]).all())
            # another call: another product
            np.testing.assert_allclose(s.matrix(np.array(rows), np.arange(0, n, 3))[:, :1], b[:, :1], atol=1e-6)
        p = s.pairs(np.arange(n) % 2*3 + 3, np.arange(n)//3*3) # voices 3 and 6 are equal, and so are all these faces
        assert (p == p[0]).all()

def test_pairs_and_block_agree_whatever_the_shape():
    v, f = corpus(1)
    for scorer in (CosineScorer(vectors(v, f)), AttributeScorer(v, f)):
        for rows, columns in (([3, 1, 1, 4], range(30)), (range(len(v)), [5, 2]), ([2], [3])):
            rows, columns = np.array(rows), np.array(columns)
            b = scorer.matrix(rows, columns)
            np.testing.assert_allclose(b.ravel(), scorer.pairs(np.repeat(rows, len(columns)),
                                                               np.tile(columns, len(rows))), atol=1e-6)
        first, again = scorer.matrix(np.arange(9),
                                     columns := np.arange(40)), scorer.matrix(np.arange(9), columns[::-1].copy())
        np.testing.assert_allclose(first, again[:, ::-1], atol=1e-6)
        columns[:] = 0 # a caller may reuse its array
        same = scorer.matrix(np.arange(9), columns)
        assert (same == same[:, :1]).all() # in one call equal vectors tie; two calls are two products
        np.testing.assert_allclose(same, first[:, :1].repeat(40, 1), atol=1e-6)

def test_unknown_attributes_agree_with_nothing():
    v, f = corpus(0)
    s = AttributeScorer(v, f, 'nationality')
    unknown = np.flatnonzero(v.identity == 'id01')
    assert len(unknown) and s.matrix(unknown, np.arange(len(f))).sum() == 0 and s.matrix(
        np.arange(len(v)), np.arange(len(f))).sum() > 0

def test_leakage_is_an_error():
    v, f = corpus(0)
    scorer = CosineScorer(vectors(v, f))
    with pytest.raises(RunError, match=r'2 of 14 identities were trained on \(id03, id05\)'):
        evaluate(scorer, v, f, SMALL, trained_on=['id05', 'x', 'id03'])
    seen = ProtocolConfig(**{**vars(SMALL), 'protocol': 'seen'})
    r = evaluate(scorer, v, f, seen, trained_on=['id05', 'id03'])
    assert 'seen-heard protocol: 2 of 14 identities were trained on' in r.notes and r.protocol['protocol'] == 'seen'
    assert 'leakage not checked: the training identities are not known' in evaluate(scorer, v, f, SMALL).notes
    assert not any('leakage' in n for n in evaluate(scorer, v, f, SMALL, trained_on=[]).notes)

def test_few_people_have_no_interval():
    v, f = ([x[x.identity.isin(['id02', 'id03', 'id06'])].reset_index(drop=True) for x in corpus(0)])
    r = evaluate(CosineScorer(vectors(v, f)), v, f, SMALL)
    assert r.table.low.isna().all() and r.table.value.notna().all()
    assert any('3 identities, too few for an interval' in n for n in r.notes)

class Best:
    "An oracle that knows who is who, and is asked for the stratum."
    def __init__(self, v, f, asked): self.s, self.asked = AttributeScorer(v, f, 'identity'), asked
    def for_stratum(self, stratum):
        self.asked.append(stratum)
        return self.s

def test_the_oracle_is_the_ceiling():
    v, f = corpus(0)
    asked = []
    r = evaluate(CosineScorer(vectors(v, f)), v, f, SMALL, oracle=Best(v, f, asked)).table
    best = r.metric.map(lambda m: 0. if m == 'eer' else 1.)
    assert (r.ceiling == best).all() and set(asked) == set(STRATA)
    assert evaluate(CosineScorer(vectors(v, f)), v, f, SMALL).table.ceiling.isna().all()

def test_lists_of_ones_own(tmp_path):
    v, f = corpus(0)
    t = verification(v, f, 'U', 60)
    r = evaluate(CosineScorer(vectors(v, f)), v, f, SMALL, lists=[t])
    assert len(r.scores) == 2 and len(r.trials) == 60

def test_run_folder(tmp_path):
    v, f = corpus(0)
    emb, run = vectors(v, f), RunFolder(tmp_path)
    save_embeddings(run, emb)
    back = load_embeddings(run)
    assert (back.voice == emb.voice).all() and back.faces.equals(f) and back.voices.equals(v)
    r = evaluate(CosineScorer(back), back.voices, back.faces, SMALL)
    write_result(run, r)
    m, t = read_json(run.metrics), pd.read_parquet(run.trials)
    assert m['schema'] == 1 and m['notes'] == r.notes and m['protocol']['replicates'] == 100 and len(
        m['scores']) == len(r.scores)
    assert m['scores'][0]['ceiling'] is None and m['scores'][0]['value'] == r.scores[0]['value']
    u = t[(t.task == 'verification') & (t.stratum == 'U')]
    assert auc(u.label, u.score) == r.scores[0]['value'], 'the stored trials give the stored score, to the last bit'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['embeddings.parquet', 'embeddings.safetensors',
                                                          'metrics.json', 'trials.parquet']

@pytest.mark.parametrize('breaks', ['embeddings.safetensors', 'embeddings.parquet'])
def test_broken_embeddings(tmp_path, breaks):
    v, f = corpus(0)
    save_embeddings(RunFolder(tmp_path), vectors(v, f))
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:200]), lambda p: p.write_bytes(b''), lambda p: p.unlink()):
        damage(tmp_path/breaks)
        with pytest.raises(RunError, match=rf'^{tmp_path}: .*\(.+\)'): load_embeddings(RunFolder(tmp_path))

def damaged(change):
    v, f = corpus(0)
    e = vectors(v, f)
    parts = dict(voice=e.voice, face=e.face, voices=v, faces=f)
    return CosineScorer(Embeddings(**{**parts, **change(e)}))

def nan_row(e):
    e.face[4, 2] = np.nan
    return {}
def zero_row(e):
    e.voice[3] = 0
    return {}

@pytest.mark.parametrize('change, words', [
    (nan_row, 'not finite (first: face/'), (zero_row, '1 vectors are zero'),
    (lambda e: dict(voice=e.voice[1:]), 'a vector for each'),
    (lambda e: dict(voice=e.voice[:, 1:]), 'must share one space'),
])
def test_bad_embeddings_are_one_clear_line(change, words):
    with pytest.raises(ScoreError) as e: damaged(change)
    assert words in str(e.value) and '\n' not in str(e.value)

def test_oracle_of_the_synthetic_corpus(tmp_path):
    synthetic = pytest.importorskip('vfassoc.synthetic.corpus')
    if not hasattr(synthetic, 'oracle_scores'): pytest.skip('the synthetic corpus has no oracle yet')
    cfg = synthetic.SynthConfig(identities=24, videos_per_identity=3, size=32, frames=1, seconds=.5)
    synthetic.write_corpus(tmp_path, cfg, workers=0)
    truth = synthetic.read_truth(tmp_path)
    t = pd.DataFrame(dict(identity=truth.identity, video=truth.video, gender=truth.gender,
                          nationality=truth.nationality, age=np.nan))
    v, f = t.assign(path='a' + t.video), t.assign(path='b' + t.video)
    oracle = OracleScorer(truth, v, f)
    s = oracle.matrix(np.arange(len(v)), np.arange(len(f)))
    np.testing.assert_allclose(s.ravel(), oracle.pairs(np.repeat(np.arange(len(v)), len(f)),
                                                       np.tile(np.arange(len(f)), len(v))), atol=1e-8)
    r = evaluate(AttributeScorer(v, f), v, f, SMALL, oracle=oracle).table
    auc_ = r[r.metric == 'auc'].set_index('stratum')
    assert auc_.ceiling['U'] > auc_.value['U'] and .5 < auc_.ceiling['G'] < auc_.ceiling['U'] and auc_.value['G'] == .5
    assert oracle.for_stratum('GNA').shared == 'GN' and oracle.for_stratum('U').shared == ''

# ---- real features: only sex can be learnt

def libri(split):
    "Media tables and features of one split of libri-lfw ('1' train, '4' test)."
    meta = pd.read_csv(LIBRI/'vox1_meta.csv', sep='\t').set_index('VGGFace1 ID')
    keep = pd.read_csv(LIBRI/'identity_splits.txt', sep=' ', header=None, dtype=str).set_index(0)[1]
    names = dict(zip(meta['VoxCeleb1 ID'], meta.index))
    with np.load(LIBRI/'features.npz') as z: z = {k: z[k] for k in z}
    def table(paths):
        parts = pd.Series(paths).str.split('/')
        name = parts.str[1].map(lambda x: names.get(x, x))
        return pd.DataFrame(dict(path=paths, identity=meta['VoxCeleb1 ID'].loc[name].to_numpy(), video=parts.str[-2],
                                 gender=meta.Gender.loc[name].to_numpy(),
                                 nationality='unknown', age=np.nan)), (keep.loc[name] == split).to_numpy()
    out = []
    for m in ('voice', 'face'):
        t, mine = table(z[f'{m}_path'])
        out += [t[mine].reset_index(drop=True), z[m][mine]]
    return out[0], out[2], out[1], out[3]

@needs_libri
def test_knowing_sex_is_worth_three_quarters_and_nothing_in_g():
    v, f, *_ = libri('4')
    assert v.identity.nunique() == f.identity.nunique() == 40
    r = evaluate(AttributeScorer(v, f), v, f, trained_on=[])
    u, g = (next(r.table.query(f'metric == "auc" and stratum == "{s}"').itertuples()) for s in 'UG')
    assert u.value == pytest.approx(.75, abs=.02) and u.low < .756 < u.high
    assert (g.value, g.low, g.high) == (.5, .5, .5)
    assert (r.table.query('task == "matching" and stratum == "G"').value == 0).all()
    for s, word in (('N', 'nationality'), ('A', 'age'), ('GN', 'nationality'), ('GNA', 'nationality and age')):
        assert f'verification {s}: not available: {word} unknown' in r.notes and s not in set(r.table.stratum)

@needs_libri
def test_random_embeddings_are_at_chance():
    v, f, *_ = libri('4')
    inside = []
    for seed in range(4):
        g = np.random.default_rng(seed)
        emb = Embeddings(g.normal(size=(len(v), 32)).astype(np.float32),
                         g.normal(size=(len(f), 32)).astype(np.float32), v, f)
        t = evaluate(CosineScorer(emb), v, f, ProtocolConfig(replicates=300, candidates=(2, 10), ks=(5,))).table
        assert ((t.value - t.chance).abs() < .1).all()
        inside.append((t.low <= t.chance) & (t.chance <= t.high))
    assert np.mean(inside) > .85, np.mean(inside)

@needs_libri
def test_real_features_that_know_sex_do_not_leak():
    "Sex from the pretrained features, learnt on the training people: AUC near 0.75 in U; in G 0.5 within its interval."
    (v, f, xv, xf), (tv, tf, yv, yf) = libri('4'), libri('1')
    def logit(x, t, new):
        return LogisticRegression(C=1, max_iter=2000).fit(x, t.gender == 'm').decision_function(new)
    both = [np.column_stack([np.tanh(logit(*a)), np.full(len(a[-1]), .3)]).astype(np.float32)
            for a in ((yv, tv, xv), (yf, tf, xf))]
    r = evaluate(CosineScorer(Embeddings(*both, v, f)), v, f, trained_on=set(tv.identity)).table
    u, g = (next(r.query(f'metric == "auc" and stratum == "{s}"').itertuples()) for s in 'UG')
    assert .68 < u.value < .82 and u.low > .6
    assert g.low <= .5 <= g.high and g.high - g.low < .2
