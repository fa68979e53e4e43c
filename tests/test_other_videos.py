"Positives of other videos, of the same video, and the shortcut gap: on drawn tables, in a run, on the released lists."
import json, os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from sklearn.metrics import average_precision_score, roc_auc_score

from vfassoc.core import ConfigError, CorpusError, RunFolder, to_dict, write_json
from vfassoc.corpus.layout import read_metadata
from vfassoc.evaluation.intervals import bootstrap, interval, pair_statistic
from vfassoc.evaluation.metrics import eer
from vfassoc.evaluation.other_videos import mark_copies
from vfassoc.evaluation.protocol import ProtocolConfig, evaluate, write_result
from vfassoc.evaluation.published import evaluate_lists, resolve_lists
from vfassoc.evaluation.run_published import baseline_vectors, listed_media
from vfassoc.evaluation.scorers import AttributeScorer, CosineScorer, Embeddings, OracleScorer
from vfassoc.evaluation.trial_files import read_lists
from vfassoc.evaluation.trials import Retrieval, Verification, matching, retrieval
from vfassoc.methods.base import Method
from vfassoc.training.config import TrainConfig
from vfassoc.training.recipes import RECIPES, load_recipe, stored_recipe
from vfassoc.training.run import _validation
from vfassoc.training.validation import draw_pairs, valid_auc

SMALL = ProtocolConfig(strata=('U', 'G'), matching_strata=('U',), verification_trials=900, matching_trials=300,
                       candidates=(2, 4), replicates=200)
KEY = ['task', 'direction', 'stratum', 'candidates', 'metric']

def corpus(people=12, videos=3, each=2, seed=0):
    g = np.random.default_rng(seed)
    rows = [(f'id{p:02d}', f'{p}-{v}', 'fm'[p % 2], k) for p in range(people) for v in range(videos)
            for k in range(each)]
    t = pd.DataFrame(rows, columns=['identity', 'video', 'gender', 'k']).assign(nationality='unknown', age=np.nan)
    t = t.sample(frac=1, random_state=seed).reset_index(drop=True)
    return (t.assign(path=m + '/' + t.video + '/' + t.k.astype(str)) for m in ('wav', 'faces'))

def vectors(v, f, session=0., seed=0, d=6):
    "A vector is the person, the session of the video, and noise."
    g = np.random.default_rng(seed)
    names = sorted({*v.identity, *f.identity, *v.video, *f.video})
    part = dict(zip(names, g.normal(size=(len(names), d))))
    def make(t):
        return np.array([part[a] + session*part[b] for a, b in zip(t.identity, t.video)]) + g.normal(size=(len(t), d))
    return Embeddings(make(v).astype(np.float32), make(f).astype(np.float32), v, f)

def table(result): return pd.DataFrame(result.by_positives)

def one(t, positives, metric, direction='', stratum='U', candidates=None):
    keep = (t.positives == positives) & (t.metric == metric) & (t.direction == direction) & (t.stratum == stratum)
    found = t[keep & ((t.candidates == candidates) if candidates else t.candidates.isna())]
    assert len(found) == 1, found
    return found.iloc[0]

def naive_map(s, own, same, kind):
    "Mean AP of the items of one kind, those of the other kind removed."
    found = []
    for x, o, m in zip(s, own, same):
        good, bad = (m, o & ~m) if kind == 'same_video' else (o & ~m, m)
        if good.any(): found.append(average_precision_score(good[~bad], x[~bad]))
    return np.mean(found)

def naive_gap(s, own, same):
    "Each relevant item looked for alone: one over its pessimistic rank among strangers."
    found = []
    for x, o, m in zip(s, own, same):
        alone = np.array([1/(1 + (x[~o] >= y).sum()) for y in x])
        if m.any() and (o & ~m).any(): found.append(alone[m].mean() - alone[o & ~m].mean())
    return np.mean(found)

@pytest.fixture(scope='module')
def scored():
    v, f = corpus()
    emb = vectors(v, f, 1.)
    return v, f, emb, evaluate(CosineScorer(emb), v, f, SMALL, trained_on=[], quiet=True)


# ---- values

def test_every_kind_is_what_a_loop_gives(scored):
    v, f, emb, r = scored
    t, trials = table(r), r.trials
    same = v.video.to_numpy()[trials.voice] == f.video.to_numpy()[trials.face]
    expected = np.where(trials.label, np.where(same, 'same_video', 'other_videos'), '')
    assert (trials.positives == expected).all(), 'every positive is marked, and no negative'
    u = trials[(trials.task == 'verification') & (trials.stratum == 'U')]
    for kind in ('other_videos', 'same_video'):
        k = u[~u.label | (u.positives == kind)]
        assert one(t, kind, 'auc').value == roc_auc_score(k.label, k.score) and one(t, kind, 'auc').trials == len(k)
        assert one(t, kind, 'eer').value == eer(k.label, k.score)
        for n in (2, 4):
            m = trials[(trials.task == 'matching') & (trials.direction == 'f2v')]
            m = [x.score.to_numpy()[:n] for _, x in m.groupby('trial') if x.positives.iloc[0] == kind]
            assert one(t, kind, 'accuracy', 'f2v', candidates=n).value == np.mean([x[0] > x[1:].max() for x in m])
    gap = one(t, 'gap', 'auc')
    assert gap.value == one(t, 'same_video', 'auc').value - one(t, 'other_videos', 'auc').value
    s, own, same = grids(v, f, emb)
    for direction, turn in (('v2f', np.asarray), ('f2v', np.transpose)):
        x = [turn(a) for a in (s, own, same)]
        for kind in ('other_videos', 'same_video'):
            assert one(t, kind, 'map', direction).value == pytest.approx(naive_map(*x, kind), abs=1e-6)
        assert one(t, 'gap', 'map', direction).value == pytest.approx(naive_gap(*x), abs=1e-6)

def grids(v, f, emb):
    s = emb.voice@emb.face.T/np.linalg.norm(emb.voice, axis=1)[:, None]/np.linalg.norm(emb.face, axis=1)
    return s, *(v[c].to_numpy()[:, None] == f[c].to_numpy() for c in ('identity', 'video'))

def test_the_mixture_lies_between_and_stays_as_it_was(scored):
    v, f, emb, r = scored
    t = table(r)
    for x in pd.DataFrame(r.scores).itertuples():
        if x.metric not in ('auc', 'accuracy'): continue
        n = None if np.isnan(x.candidates) else x.candidates
        other, same = (one(t, k, x.metric, x.direction, x.stratum, n) for k in ('other_videos', 'same_video'))
        trials = r.trials[(r.trials.task == x.task) & (r.trials.direction == x.direction)
                          & (r.trials.stratum == x.stratum) & r.trials.label]
        share = (trials.positives == 'same_video').mean()
        assert x.same_video == pytest.approx(share)
        if n in (None, 2): assert x.value == pytest.approx(share*same.value + (1 - share)*other.value)
    plain = evaluate(CosineScorer(emb), *(t.assign(video='') for t in (v, f)), SMALL, lists=None, quiet=True)
    assert set(r.scores[0]) == {*KEY, 'value', 'low', 'high', 'chance', 'ceiling', 'trials', 'identities', 'same_video'}
    assert [x['value'] for x in plain.scores] == [x['value'] for x in r.scores], 'the mixture does not see videos'

def test_intervals_are_paired(scored):
    v, f, _, r = scored
    u = r.trials[(r.trials.task == 'verification') & (r.trials.stratum == 'U')]
    who = {p: k for k, p in enumerate(sorted(set(v.identity)))}
    a, b = v.identity.map(who).to_numpy()[u.voice], f.identity.map(who).to_numpy()[u.face]
    def draws(kind):
        keep = ~u.label.to_numpy() | (u.positives == kind).to_numpy()
        return bootstrap(pair_statistic(u.label[keep], u.score[keep], a[keep], b[keep]), len(who), 200)[0]
    other, same = draws('other_videos'), draws('same_video')
    x = one(table(r), 'gap', 'auc')
    assert (x.low, x.high) == pytest.approx(interval(x.value, same - other)[1:], abs=1e-12)
    x = one(table(r), 'other_videos', 'auc')
    assert (x.low, x.high) == pytest.approx(interval(x.value, other)[1:], abs=1e-12)

def test_a_shared_session_opens_the_gap_and_its_absence_does_not():
    v, f = corpus(30, 4, 2, 1)
    cfg = replace(SMALL, strata=('U',), candidates=())
    def gaps(session, seed):
        return table(evaluate(CosineScorer(vectors(v, f, session, seed)), v, f, cfg, quiet=True)).query(
            'positives == "gap"').set_index(['metric', 'direction'])
    x = gaps(2., 0)
    assert set(x.index) == {('auc', ''), ('map', 'v2f'), ('map', 'f2v')} and (x.low > 0).all()
    assert (x.chance == 0).all() and (x.identities == 30).all()
    contained = sum((x.low <= 0) & (0 <= x.high) for x in (gaps(0., seed) for seed in range(12)))
    assert (contained >= 9).all(), contained # of 100 seeds 90 to 94 do

def test_an_oracle_has_a_ceiling_for_each_kind(scored):
    v, f, emb, _ = scored
    class Two(AttributeScorer):
        def for_positives(self, kind): return CosineScorer(emb) if kind == 'same_video' else self
    t = table(evaluate(CosineScorer(emb), v, f, SMALL, Two(v, f), quiet=True))
    mine, plain = (one(t, k, 'auc') for k in ('same_video', 'other_videos'))
    assert mine.ceiling == mine.value and plain.ceiling != plain.value
    assert one(t, 'gap', 'auc').ceiling == pytest.approx(mine.ceiling - plain.ceiling)
    assert one(t, 'same_video', 'map', 'f2v').ceiling == one(t, 'same_video', 'map', 'f2v').value

def test_other_strata_have_their_columns_too(scored):
    t = table(scored[3])
    for kind in ('other_videos', 'same_video', 'gap'): assert one(t, kind, 'auc', stratum='G').trials > 0

def test_the_run_folder_keeps_both(scored, tmp_path):
    write_result(RunFolder(tmp_path), scored[3])
    m = json.loads((tmp_path/'metrics.json').read_text())
    assert set(m) == {'schema', 'scores', 'notes', 'protocol', 'by_positives'} and m['schema'] == 1
    assert 'positives' not in m['scores'][0] and {x['positives'] for x in m['by_positives']} == {
        'other_videos', 'same_video', 'gap'}
    assert set(pd.read_parquet(tmp_path/'trials.parquet').positives.unique()) == {'', 'other_videos', 'same_video'}


# ---- bad input

def test_one_video_a_person_is_one_line():
    v, f = corpus(videos=1)
    r = evaluate(CosineScorer(vectors(v, f)), v, f, SMALL, trained_on=[], quiet=True)
    assert set(table(r).positives) == {'same_video'}
    assert [n for n in r.notes if 'positives' in n] == [
        'other-video positives: none in any list, so the column and the shortcut gap are empty; an identity needs two '
        'videos, and videos need names']

def test_videos_without_names_are_neither():
    v, f = corpus()
    emb = vectors(v, f)
    r = evaluate(CosineScorer(emb), v.assign(video=''), f.assign(video=''), SMALL, trained_on=[], quiet=True)
    assert not r.by_positives and r.scores and len([n for n in r.notes if 'positives' in n]) == 3
    n = r.trials.label.sum()
    assert f'{n} of {n} positives are of a video without a name: in the mixture only' in r.notes
    some = v.assign(video=v.video.where(v.identity != 'id00'))
    r = evaluate(CosineScorer(emb), some, f, SMALL, trained_on=[], quiet=True)
    lost = v.identity.to_numpy()[r.trials.voice] == 'id00'
    assert ((r.trials.positives == 'unknown') == (lost & r.trials.label)).all()

def test_copies_are_counted_and_never_on_both_sides():
    v, f = corpus(8)
    v, f = (t.sort_values('path').reset_index(drop=True) for t in (v, f))
    x, y = np.random.default_rng(0).normal(size=(2, len(v), 5))
    x[2] = x[0] # a voice of 0-0 again in 0-1
    y[10:14] = y[40:44] # faces of one person's videos under another person
    a, b, notes = mark_copies(v, f, x, y)
    assert len(notes) == 1 and '1 of 48 voice vectors' in notes[0] and '4 of 48 face vectors' in notes[0]
    assert '3 videos count as one' in notes[0]
    assert a.recording[0] == a.recording[2] == b.recording[0] == b.recording[3] and v.video[0] != v.video[2]
    emb = vectors(v, f)
    i, j = (k.ravel() for k in np.indices((48, 48)))
    every = Verification('U', i, j, v.identity.to_numpy()[i] == f.identity.to_numpy()[j])
    lists = [every, matching(a, b, 'v2f', 'U', 4, 2000), retrieval(a, b, 'v2f')]
    r = evaluate(CosineScorer(emb), a, b, SMALL, trained_on=[], lists=lists, quiet=True)
    both = (a.recording.to_numpy()[r.trials.voice] == b.recording.to_numpy()[r.trials.face])
    assert ((r.trials.positives == 'same_video') == (both & r.trials.label)).all()
    u = r.trials[r.trials.task == 'verification'].reset_index(drop=True)
    both = a.recording.to_numpy()[u.voice] == b.recording.to_numpy()[u.face]
    assert (both & ~u.label).any(), 'the list has a negative with a copy on both sides'
    kept = u[(u.positives == 'other_videos') | (~u.label & ~both)]
    assert one(table(r), 'other_videos', 'auc').value == roc_auc_score(kept.label, kept.score)
    m = r.trials[r.trials.task == 'matching']
    m = m.assign(both=a.recording.to_numpy()[m.voice] == b.recording.to_numpy()[m.face])
    m = [x.score.to_numpy() for _, x in m.groupby('trial') if not x.both.any()]
    assert one(table(r), 'other_videos', 'accuracy', 'v2f', candidates=4).value == np.mean(
        [x[0] > x[1:].max() for x in m])
    s, own, _ = grids(v, f, emb)
    same = a.recording.to_numpy()[:, None] == b.recording.to_numpy()
    s = np.where(same & ~own, -9, s) # as if it were not there
    assert one(table(r), 'other_videos', 'map', 'v2f').value == pytest.approx(
        naive_map(s, own, same & own, 'other_videos'), abs=1e-6)
    assert mark_copies(v, f, np.eye(len(v)), y[:len(f)] + np.arange(len(f))[:, None])[2] == []


# ---- the released lists

SHARED = Path(os.environ.get('VFASSOC_SHARED', '/nowhere'))/'voxceleb'

@pytest.fixture(scope='module')
def published():
    if not SHARED.is_dir(): pytest.skip('VFASSOC_SHARED has no released lists')
    table = SHARED/'cmpc/vox1_meta.csv'
    meta = read_metadata(table)
    def resolved(*files):
        named = [x for name in files for x in read_lists(SHARED/name)[0]]
        v, f = listed_media(named, table)
        return v, f, resolve_lists(named, v, f, dict(zip(meta['name'], meta.index)))
    return resolved

@pytest.mark.parametrize('kind', ['random', 'gender'])
def test_vectors_that_know_no_video_have_no_gap_on_the_released_lists(published, kind):
    v, f, lists = published(*(f'cmpc/veriflist/veriflist_test_{s}_unseenunheard.txt' for s in ('random', 'G')),
                            'cmpc/matching/matching_v2f_U.csv', 'cmpc/retrieval')
    g = np.random.default_rng(0)
    lists = [replace(x, trials=replace(x.trials, probe=g.choice(x.trials.probe, 1500, replace=False)))
             if isinstance(x.trials, Retrieval) else x for x in lists]
    emb = Embeddings(*(baseline_vectors(kind, t, 16, 0, m) for m, t in (('voice', v), ('face', f))), v, f)
    cfg = ProtocolConfig(replicates=200, candidates=(2,))
    r = evaluate_lists(CosineScorer(emb), lists, v, f, cfg, [], quiet=True)
    gaps = table(r).query('positives == "gap"')
    assert len(gaps) == len(lists) == 5 and ((gaps.low <= 0) & (0 <= gaps.high)).all(), gaps
    assert gaps.same_video.between(.12, .145).all() and set(gaps.list) == {x.name for x in lists}

def test_released_lists_of_one_video_only_have_no_other_video_column(published):
    v, f, lists = published('cmpc/veriflist/veriflist_test_G_seenheard.txt')
    r = evaluate_lists(AttributeScorer(v, f), lists, v, f, ProtocolConfig(replicates=100), quiet=True)
    assert set(table(r).positives) == {'same_video'} and [n for n in r.notes if n.startswith('other-video')]

def test_released_lists_whose_faces_are_of_no_video_have_the_mixture_only(published):
    v, f, lists = published('seeking-the-shape-of-sound/verify_v2f_test.txt')
    r = evaluate_lists(AttributeScorer(v, f), lists, v, f, ProtocolConfig(replicates=100), [], quiet=True)
    n = lists[0].trials.label.sum()
    assert r.scores and not r.by_positives
    assert f'{n} of {n} positives are of a video without a name: in the mixture only' in r.notes


# ---- validation

def test_validation_leaves_a_videos_own_pair_out():
    class Given(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
        def encode_voice(self, x): return x
        def encode_face(self, x): return x
    g = torch.Generator().manual_seed(0)
    who, v, f = np.repeat(np.arange(5), 3), torch.randn(15, 4, generator=g), torch.randn(15, 4, generator=g)
    f += 2*v # a video's own pair is the best
    batch, s, same = [(v, f, torch.arange(15))], (v@f.T).numpy(), who[:, None] == who
    assert valid_auc(Method(Given()), batch, who) == pytest.approx(roc_auc_score(same.ravel(), s.ravel()))
    kept = ~np.eye(15, dtype=bool)
    other = valid_auc(Method(Given()), batch, who, 'other_videos')
    assert other == pytest.approx(roc_auc_score(same[kept], s[kept])) and other < valid_auc(Method(Given()), batch, who)
    i, j, one = draw_pairs(who, 7, 'other_videos')
    assert one.sum() == 7 and (i != j).all() and (who[i] == who[j])[one].all()

def test_recipes_say_what_they_validate_by(tmp_path):
    for name in RECIPES:
        wanted = 'other_videos' if 'twin' in name else 'mixture'
        assert load_recipe(name).train.validation_positives == wanted, name
    assert TrainConfig().validation_positives == 'other_videos'
    old = to_dict(load_recipe('cid-demo'))
    del old['train']['validation_positives']
    write_json(tmp_path/'config.json', old)
    assert stored_recipe(tmp_path/'config.json') == load_recipe('cid-demo'), 'runs from before the option'
    with pytest.raises(ConfigError, match='validation_positives'):
        load_recipe('cid-demo', {'train.validation_positives': 'videos'})

def test_training_without_other_videos_is_one_line():
    source = SimpleNamespace(manifest=SimpleNamespace(root='here'))
    with pytest.raises(CorpusError, match='^here: .*2 validation identities has one video.*mixture$'):
        _validation(source, np.array(['a', 'b']), 'other_videos')

def test_the_planted_oracle_knows_the_kind_of_positive():
    asked = OracleScorer(None, *corpus(2)).for_stratum('GN').for_positives('same_video')
    assert asked.same_video and asked.shared == 'GN' and asked.for_stratum('G').same_video
    assert not asked.for_positives('other_videos').same_video
