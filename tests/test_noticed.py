"Mistakes of one line that would train and evaluate as ever: each test says which one it notices."
import math, shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import mutants
from vfassoc.clustering.kmeans import Clusters
from vfassoc.clustering.memory import Memory, ScalarMemory
from vfassoc.clustering.pseudo_labels import Schedule, pseudo_labels
from vfassoc.core import ConfigError, CorpusError, RunFolder, Settings
from vfassoc.corpus.audio import LogMel
from vfassoc.corpus.dataset import DistributedBatchSampler, PairDataset, subsample_shots
from vfassoc.corpus.faces import prepare_faces
from vfassoc.corpus.features import FeaturePairs, load_features, save_features
from vfassoc.corpus.manifest import scan
from vfassoc.corpus.source import DataConfig
from vfassoc.corpus.voxceleb1 import INDEX, missing_media, read_index, read_split_tables, split_counts, write_splits
from vfassoc.evaluation.metrics import Ranking
from vfassoc.evaluation.protocol import ProtocolConfig, evaluate
from vfassoc.evaluation.scorers import ShortlistScorer
from vfassoc.evaluation.trials import verification
from vfassoc.losses.classification import identity_loss
from vfassoc.losses.contrastive import supervised_contrastive, pair_contrast
from vfassoc.losses.infonce import cid_loss
from vfassoc.losses.matching import gumbel_noise, hard_negatives, match_rows, matching_loss
from vfassoc.losses.multi_similarity import multi_similarity_loss
from vfassoc.losses.prototype import Prototypes, cmpc_loss
from vfassoc.losses.recalibration import deviation, prototype_agreement, recalibration_weights
from vfassoc.losses.released_cmpc import concentration
from vfassoc.losses.triplet import triplet_margin, triplet_ratio
from vfassoc.methods.base import Method
from vfassoc.methods.baselines import PINs, PINsConfig
from vfassoc.methods.classifier import DIMNetI, DIMNetIConfig
from vfassoc.methods.cmpc import CMPC, CMPCConfig
from vfassoc.methods.cmpc_released import ReleasedCMPC, ReleasedCMPCConfig
from vfassoc.methods.faa import FAA, FAAConfig
from vfassoc.methods.positives import Positives, other_videos
from vfassoc.models.all_pairs import score_all
from vfassoc.models.embedding import VideoPool
from vfassoc.models.fusion import FusionConfig, FusionEncoder
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel
from vfassoc.training import loop as training, recipes, run as training_run
from vfassoc.training.config import TrainConfig, make_optimizer
from vfassoc.training.validation import draw_pairs, valid_auc

close = torch.testing.assert_close
E1, E2 = torch.eye(2)


# ---- the table of mutants itself

def test_every_mutant_still_has_its_line_and_its_tests():
    "Notices a mutant whose line was rewritten or whose test was renamed: `make mutants` would try nothing there."
    assert not mutants.faults()
    assert len(mutants.MUTANTS) >= 80
    assert {m.module for m in mutants.MUTANTS} >= {
        'contrastive', 'prototype', 'recalibration', 'multisimilarity', 'memory', 'clustering', 'nearest', 'pairs',
        'fusion', 'cmpc', 'faa', 'training', 'recipes', 'dataset', 'features', 'metrics', 'trials', 'protocols',
        'voxceleb'}


def test_a_stale_mutant_is_an_error(monkeypatch, capsys):
    "Notices a runner that passes over a mutant it cannot apply."
    m = mutants.MUTANTS[0]
    for change, word in ((dict(old='no such line'), 'stands 0 times'), (dict(old='e'), 'times in'),
                         (dict(new=m.old), 'changes'), (dict(tests='test_no'), 'not there'), (dict(new='('), m.name)):
        monkeypatch.setattr(mutants, 'MUTANTS', [replace(m, **change)])
        assert mutants.main([]) == 2
        assert word in capsys.readouterr().err


def test_a_mutant_is_written_into_the_copy_alone(tmp_path):
    "Notices a mutant that reaches the module and not the chapter, which runs its own cells, and one in the repository."
    m = mutants.MUTANTS[0]
    files = m.path, mutants.exporting(m.path)
    for f in files:
        (tmp_path/f).parent.mkdir(parents=True)
        shutil.copy(mutants.ROOT/f, tmp_path/f)
    before = mutants.applied(mutants.Job('pytest', (), m), tmp_path)
    for f in files:
        assert before[tmp_path/f] == (mutants.ROOT/f).read_text() != (tmp_path/f).read_text()
    assert m.old in (mutants.ROOT/m.path).read_text() and m.old not in (tmp_path/m.path).read_text()
    assert mutants.applied(mutants.Job('pytest', ()), tmp_path) == {}


@pytest.mark.parametrize('by, survives, tests, book, status', [
    ('either', '', 'failed', '', 0), ('either', '', 'passed', 'too slow', 0), ('either', '', 'passed', 'passed', 1),
    ('pytest', '', 'passed', 'failed', 1), ('both', '', 'failed', 'passed', 1), ('both', '', 'failed', 'failed', 0),
    ('either', 'the same number', 'passed', 'passed', 0), ('either', 'the same number', 'failed', 'passed', 1),
    ('either', '', 'failed', 'broken', 1)])
def test_a_survivor_fails_the_run_unless_it_is_explained(by, survives, tests, book, status, capsys):
    "Notices a runner that is content although a mutant lives, or that keeps an explanation which is no longer true."
    m = replace(mutants.MUTANTS[0], by=by, survives=survives)
    jobs = mutants.Job('pytest', ('a',), m, verdict=tests), mutants.Job('chapter', ('b',), m, verdict=book)
    assert mutants.summary({m: jobs}, {}, 60.) == status
    killed = int('failed' in (tests, book) or book == 'too slow')
    assert capsys.readouterr().out.splitlines()[-1] == f'killed {killed} of 1 in 1.0 min'


# ---- losses

def test_cid_adds_both_directions():
    "Notices CID with one direction: a voice among faces is not a face among voices."
    v, f = torch.stack([E1, E2]), torch.stack([E1, (E1 + E2)/math.sqrt(2)])
    h = math.sqrt(.5)
    voice_to_face = torch.tensor([math.log(1 + math.exp(h - 1)), math.log(1 + math.exp(-h))])
    face_to_voice = torch.tensor([math.log(1 + math.exp(-1)), math.log(2)])
    close(cid_loss(v, f, tau=1.), voice_to_face + face_to_voice)


def test_tau_reaches_the_prototypes():
    "Notices eq. (7) with the default temperature: at tau = 1/2 every part of the loss is log(1 + exp(-2))."
    z, idx = torch.stack([E1, E2]), torch.arange(2)
    prototypes = Prototypes(z, idx[:, None], (2,), True)
    close(cmpc_loss(z, z, idx, prototypes, prototypes, tau=.5), torch.full((2,), 4*math.log(1 + math.exp(-2))))
    method = cmpc(2, num_prototypes=(2,), tau=.5)
    method.loss(z, z, idx)
    method.on_epoch_start(1)
    close(method.loss(z, z, idx)[0], torch.full((2,), 4*math.log(1 + math.exp(-2))))


def test_a_triplet_counts_negatives_that_are_near():
    "Notices a margin on the wrong side, and the positive among the negatives: distances .8 and .08, hinges 0 and .12."
    z, candidates, own = E1[None], torch.tensor([[1., 0.], [.6, .8], [.96, .28]]), torch.tensor([0])
    close(triplet_margin(z, candidates, own, margin=.2), torch.tensor([.06]))
    share = [1/(1 + math.exp(math.sqrt(d) - 1e-3)) for d in (.8, .08)]
    close(triplet_ratio(z, candidates, own), torch.tensor([sum(2*x*x for x in share)/2]))


def test_a_pair_loss_is_quadratic_on_both_sides():
    "Notices a margin that is not squared: pull 0.4/2, and a negative 0.2 away has (0.6 - 0.2)^2/2 = 0.08."
    candidates = torch.tensor([[.8, .6], [.98, math.sqrt(1 - .98**2)]])
    loss = pair_contrast(E1[None], candidates, torch.tensor([0]), hardness=1.)
    close(loss, torch.tensor([.28]), rtol=1e-4, atol=1e-4)


def both(n=4, d=3):
    "Embeddings of n videos in both modalities and pseudo-labels of two each."
    g = torch.Generator().manual_seed(4)
    v, f = F.normalize(torch.randn(2, n, d, generator=g), dim=2)
    return v, f, torch.arange(n)//2


def test_label_contrast_is_a_double_loop():
    "Notices an anchor that is its own positive."
    v, f, y = both()
    z, label, each = torch.cat([v, f]), torch.cat([y, y]), []
    for i in range(8):
        near = [(z[i] - z[j]).square().sum()/2 for j in range(8) if j != i and label[j] == label[i]]
        far = [F.relu(.6 - (z[i] - z[j]).norm()).square()/2 for j in range(8) if label[j] != label[i]]
        each.append(sum(near)/len(near) + sum(far)/len(far))
    expected = torch.stack([(each[i] + each[i + 4])/2 for i in range(4)])
    close(supervised_contrastive(v, f, y), expected, rtol=1e-4, atol=1e-5)


def test_multi_similarity_is_a_double_loop():
    """Notices the printed min of eq. (3), the slack on the wrong side, a miner that keeps what is easy, an anchor that
    is its own positive, beta in place of alpha, and one modality left out."""
    v, f, y = both(6)
    z, label, each, mined = torch.cat([v, f]), torch.cat([y, y]), [], []
    for i in range(12):
        s = [float(z[i] @ z[j]) for j in range(12)]
        near = [s[j] for j in range(12) if j != i and label[j] == label[i]]
        far = [s[j] for j in range(12) if label[j] != label[i]]
        hard_near, hard_far = [x for x in near if x < max(far) + .1], [x for x in far if x > min(near) - .1]
        each.append(math.log1p(sum(math.exp(-2*(x - 1)) for x in hard_near))/2)
        each[-1] += math.log1p(sum(math.exp(3*(x - 1)) for x in hard_far))/3
        mined.append((len(near) - len(hard_near), len(far) - len(hard_far)))
    assert all(any(x) for x in zip(*mined)), 'the miner leaves out some of each'
    want = torch.tensor([(each[i] + each[i + 6])/2 for i in range(6)])
    close(multi_similarity_loss(v, f, y, beta=3.), want, rtol=1e-4, atol=1e-5)


def test_agreement_is_a_mean_over_granularities():
    "Notices rho with a sum over r: prototypes that agree in one clustering and are at right angles in the other: 1/2."
    row = torch.zeros(1, 2, dtype=torch.long)
    voices, faces = (Prototypes(torch.stack([E1, second]), row, (1, 1), True) for second in (E1, E2))
    assert prototype_agreement(voices, faces).tolist() == [.5]


def test_rho_and_its_weight():
    "Notices rho as a sum, kappa as a deviation, the threshold above the mean, and an unknown rho that counts nothing."
    close(deviation(E1[None], torch.tensor([[.6, .8]]), torch.tensor([.25])), torch.tensor([.35]))
    w = recalibration_weights(torch.tensor([1., 3., math.nan]), mean=3., std=2., delta=-1., kappa=4.)
    close(w, torch.tensor([.5, .5*(1 + math.erf(.5/math.sqrt(2))), 1.])) # at the threshold; at the mean; unknown


def test_a_density_is_the_released_formula():
    "Notices another smoothing than log(n + 10), and percentiles at one end only."
    assign, distance = torch.tensor([0]*3 + [1]*4 + [2]*2 + [3]*6 + [4]), torch.arange(1., 17)
    c = Clusters(torch.zeros(5, 1), assign, torch.zeros(16), torch.zeros(1))
    raw = [distance[assign == j].mean().item()/math.log(int((assign == j).sum()) + 10) for j in range(4)]
    phi = np.array([*raw, max(raw)])                                 # one row alone has no distance of its own
    phi = phi.clip(*np.quantile(phi, [.1, .9]))
    np.testing.assert_allclose(concentration(c, distance.square()), .2*phi/phi.mean(), rtol=1e-5)


def test_rows_are_weighed():
    "Notices weights that only divide: (1*1 + 1*2 + 2*6)/4."
    assert training.reduce_rows(torch.tensor([1., 2., 6.]), torch.tensor([1., 1., 2.])).item() == 15/4


def test_an_identity_has_a_direction_and_both_modalities_are_classified():
    "Notices classifier vectors whose length counts, and a loss of voices alone."
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    vectors = torch.diag(torch.tensor([2., 5.]))
    close(identity_loss(E1[None], vectors, torch.tensor([0]), tau=1.), torch.tensor([right]))
    method = DIMNetI(towers(2), DIMNetIConfig(tau=1.), 2, identity=['a', 'b'])
    with torch.no_grad(): method.weight.copy_(3*torch.eye(2))
    loss, _ = method.loss(E1[None], E2[None], torch.tensor([0]))
    close(loss, torch.tensor([right + wrong]))


# ---- methods

def towers(dim):
    "In place of towers: embeddings are given."
    out = nn.Module()
    out.cfg = SimpleNamespace(dim=dim)
    return out


def cmpc(n, **cfg):
    "CMPC on embeddings in the plane; memories keep the last embedding."
    return CMPC(towers(2), CMPCConfig(**{**dict(num_prototypes=(2,), cid_samples=0, momentum=0., tau=.5), **cfg}), n)


def test_each_memory_holds_its_own_modality():
    "Notices memories that are swapped: prototypes of voices would be made of faces."
    method, v, f = cmpc(2), torch.stack([E1, E1]), torch.stack([E2, E2])
    method.loss(v, f, torch.arange(2))
    close(method.memory['voice'].rows, v)
    close(method.memory['face'].rows, f)


def moving(epoch):
    "Five videos in two groups; the fifth changes its group with every epoch."
    return torch.stack([E1, E1, E2, E2, E2 if epoch % 2 else E1])


def test_prototypes_are_new_in_every_epoch():
    "Notices a clustering that is left out in every second epoch, or whenever there is one already."
    method, idx = cmpc(5), torch.arange(5)
    for epoch in range(4):
        z = moving(epoch)
        method.loss(z, z, idx)
        method.on_epoch_start(epoch + 1)
        for m in ('voice', 'face'):
            group = getattr(method, f'{m}_assign_2')
            assert (group == group[4]).tolist() == (z @ z[4] == 1).tolist(), epoch


def test_rho_is_that_of_the_new_prototypes():
    "Notices rho kept from the old prototypes: all weights of an epoch would be taken against numbers of another one."
    method, idx = cmpc(4, num_prototypes=(2,)), torch.arange(4)
    v, f = torch.stack([E1, E1, E2, E2]), torch.stack([E1, E2, E1, E2])
    method.loss(v, v, idx)
    method.on_epoch_start(1)
    method.loss(v, v, idx)
    close(method.rho.values, torch.zeros(4)) # cosine 1 - agreement 1
    method.memory['face'].update(f, idx)     # the faces of videos 1 and 2 have changed places
    method.on_epoch_start(2)
    close(method.rho.values, torch.tensor([0., 1., 1., 0.])) # cosines are still 1, agreements 1, 0, 0, 1


def test_the_curriculum_of_pins_grows():
    "Notices negatives as hard in all epochs."
    method, hard = PINs(towers(2), PINsConfig(), 4), []
    for epoch in (0, 1, 2, 5):
        method.on_epoch_start(epoch)
        hard.append(method.hardness)
    assert hard == pytest.approx([.3, .3, .4, .5])


def test_matching_has_the_pair_and_its_hardest_negatives():
    "Notices a true pair as the false one, a video without a negative that counts a third, eq. (5) turned round."
    def fusion(v, f): return torch.stack([torch.zeros(len(v)), 2*(v*f).sum(1)], 1)
    def no(cosine): return math.log(1 + math.exp(2*cosine))
    z, yes = torch.stack([E1, E2, torch.tensor([.6, .8])]), math.log(1 + math.exp(-2))
    loss, there = match_rows(fusion, z, z, torch.tensor([0, 1, 1]))
    close(loss, torch.tensor([(yes + 2*no(.6))/3, (yes + 2*no(0))/3, (yes + 2*no(.6))/3]))
    assert there.all()
    loss, there = match_rows(fusion, z, z, torch.zeros(3, dtype=torch.long))
    close(loss, torch.full((3,), yes))
    assert not there.any()
    logits = torch.tensor([[0., math.log(3)]]).repeat(2, 1)
    close(matching_loss(logits, torch.tensor([True, False])), torch.tensor([math.log(4/3), math.log(4)]))


def test_delta_weighs_the_alignment_and_every_batch_draws_its_negatives():
    "Notices delta on the other loss, and the same random negatives in every batch."
    torch.manual_seed(0)
    v, f, _ = both(8, 4)
    cfg = FAAConfig(delta=.75, negative_mining='random', fusion=FusionConfig(dim=4, layers=1, heads=1, inner=4))
    method = FAA(towers(4), cfg, 8).eval()
    idx, losses = torch.arange(8), []
    for step in range(2):
        uniform = gumbel_noise(0, step, 8)
        match, _ = match_rows(method.fusion, v, f, idx, 'random', uniform)
        losses.append(method.loss(v, f, idx)[0])
        close(losses[-1], .75*multi_similarity_loss(v, f, idx) + .25*match)
    assert not torch.equal(*losses)


def test_c_is_halved_by_the_method():
    "Notices a schedule that is never asked."
    cfg = FAAConfig(patience=1, min_clusters=2, fusion=FusionConfig(dim=4, layers=1, heads=1, inner=4))
    method = FAA(towers(4), cfg, 8)
    clusters = [method.on_epoch_end(epoch, score)['clusters'] for epoch, score in enumerate((.5, .4, .3, .6))]
    assert clusters == [8, 8, 4, 2]


def test_prototypes_are_those_of_the_other_modality():
    "Notices a voice that is compared with prototypes of voices, and weights that are never given."
    method, idx = cmpc(3, num_prototypes=(2,)), torch.arange(3)
    v, f = torch.stack([E1, E2, E2]), torch.stack([E1, E1, E2])
    method.loss(v, f, idx)
    method.on_epoch_start(1)
    loss, w = method.loss(v, f, idx)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    close(loss - cid_loss(v, f, .5), torch.tensor([2*right, 2*wrong, 2*right]), rtol=1e-4, atol=1e-5)
    close(w, torch.full((3,), .5*(1 + math.erf(1/math.sqrt(.2)))))  # every rho is the mean


def test_the_instance_term_is_annealed_after_the_warm_up():
    "Notices a weight that stays 1, one that falls in the warm-up or twice as fast, and half of the weight."
    method = cmpc(3, cid_samples=6, instance_schedule='cosine', instance_weight=.2, instance_samples=9)
    v, f, idx, constant = torch.stack([E1, E2, E2]), torch.stack([E1, E1, E2]), torch.arange(3), cmpc(3)
    for m in (method, constant):
        for _ in range(2): close(m.loss(v, f, idx)[0], cid_loss(v, f, .5))
        m.on_epoch_start(1)
    proto = constant.loss(v, f, idx)[0] - cid_loss(v, f, .5)
    assert proto.min() > .1
    for weight in (1., .8, .4, .2, .2): close(method.loss(v, f, idx)[0], weight*cid_loss(v, f, .5) + proto)


def test_a_weight_of_zero_leaves_the_prototypes_alone():
    method, other = cmpc(3, instance_weight=0.), cmpc(3)
    v, f, idx = torch.stack([E1, E2, E2]), torch.stack([E1, E1, E2]), torch.arange(3)
    for m in (method, other):
        m.loss(v, f, idx)
        m.on_epoch_start(1)
    close(method.loss(v, f, idx)[0], other.loss(v, f, idx)[0] - cid_loss(v, f, .5))


def test_the_weight_may_come_from_the_cosine_alone():
    "Notices a weight from rho: by rho all three are equal, by v.f the second one deviates."
    method, idx = cmpc(3, weight_source='cosine'), torch.arange(3)
    v, f = torch.stack([E1, E2, E2]), torch.stack([E1, E1, E2])
    method.loss(v, f, idx)
    method.on_epoch_start(1)
    _, w = method.loss(v, f, idx)
    mean, std = 2/3, math.sqrt(2)/3
    z = torch.tensor([(x - mean)/std for x in (1., 0., 1.)])
    close(w, torch.special.ndtr((z + 1)/math.sqrt(.1)))


def test_positives_are_other_videos_of_the_cluster():
    "Notices a video with its own face, one of another cluster, videos of unknown cluster together, one draw for all."
    label = np.array([3, 0, 3, 3, -1, 0, -1, 9])
    draws = np.array([other_videos(label, 0, epoch) for epoch in range(40)])
    assert (np.sort(draws, 1) == np.arange(8)).all() # each face once
    assert (draws[:, [4, 6, 7]] == [4, 6, 7]).all() # alone
    assert (label[draws] == label).all() and (draws[:, [0, 1, 2, 3, 5]] != [0, 1, 2, 3, 5]).all()
    assert {tuple(d) for d in draws[:, [0, 2, 3]]} == {(2, 3, 0), (3, 0, 2)}


def test_a_face_of_another_video_goes_into_its_own_row():
    "Notices a face in the row of the voice, and a voice that is drawn to the prototype of its own face."
    method, idx, other = cmpc(3, recalibration=False), torch.arange(3), torch.tensor([1, 2, 0])
    v, f = torch.stack([E1, E2, E2]), torch.stack([E1, E1, E2])
    method.pair_loss(v, f, idx, other)
    close(method.memory['voice'].rows, v)
    close(method.memory['face'].rows[other], f)
    method.on_epoch_start(1)
    loss, w = method.pair_loss(v, f, idx, other)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    close(loss - cid_loss(v, f, .5), torch.tensor([2*right, 2*wrong, 2*right]), rtol=1e-4, atol=1e-5)
    assert w is None and not method.rho.seen.any() and not method.cosine.seen.any()


def test_positives_are_those_on_which_both_modalities_agree():
    "Notices clusters of one modality: videos 0 and 1 have one voice, 1 and 2 one face, 3 and 4 both, 5 was not seen."
    method = cmpc(6, recalibration=False)
    v, f = torch.stack([E1, E1, E2, E2, E2]), torch.stack([E1, E2, E2, E1, E1])
    assert method.positive_labels() is None
    method.loss(v, f, torch.arange(5))
    method.on_epoch_start(1)
    label = method.positive_labels().tolist()
    assert label[3] == label[4] and len({*label[:4]}) == 4 and label[5] == -1


def test_only_the_oracle_reads_identities():
    "Notices positives by true identity under another name; people that are hidden from a draw by cluster."
    class Unreadable:
        def __len__(self): return 6
        def video_means(self, modality): return np.repeat(np.eye(3, dtype=np.float32), 2, 0)
        @property
        def videos(self): raise AssertionError('identities were read')
    def partners(pairs, **data):
        method = CMPC(towers(2), CMPCConfig(num_prototypes=(2,)), 6)
        keys = Positives(DataConfig(**data), 0, method, pairs).plan(DistributedBatchSampler(6, 6, 0, 0), 0)
        return {k[1]: k[2] for batch in keys for k in batch if len(k) == 3}
    assert partners(Unreadable()) == {}
    assert partners(Unreadable(), positives='cluster') == {i: i for i in range(6)} # no clusters yet
    by = dict(positives='cluster', cluster_by='both', num_clusters=3)
    assert partners(Unreadable(), **by) == {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4}
    known = Unreadable.__new__(type('Known', (Unreadable,), {'videos': pd.DataFrame({'identity': list('abcabc')})}))
    assert partners(known, positives='oracle') == {0: 3, 1: 4, 2: 5, 3: 0, 4: 1, 5: 2}


@pytest.mark.parametrize('recipe, changes, field, value', [
    ('cmpc-demo', {'data.positives': 'oracle'}, 'data.positives', 'oracle'), # rho needs one video
    ('cmpc-released-demo', {'data.positives': 'cluster'}, 'data.positives', 'cluster'),
    ('dimnet-i-demo', {'data.positives': 'cluster'}, 'data.positives', 'cluster'),
    ('cid-demo', {'data.positives': 'cluster'}, 'data.cluster_by', 'method'), # makes no clusters
    ('cid-demo', {'data.positives': 'cluster', 'data.cluster_by': 'both', 'data.num_clusters': 9}, 'data.cluster_by',
     'both'), # has no features
    ('cid-demo', {'data.positives': 'labels'}, 'positives', 'labels'),
    ('cid-demo', {'data.num_clusters': 9}, 'num_clusters', '9'),
    ('cid-cluster-demo', {'data.num_clusters': 1}, 'num_clusters', '1')])
def test_impossible_positives(recipe, changes, field, value):
    with pytest.raises(ConfigError, match=rf'{field} = .?{value}'): recipes.load_recipe(recipe, changes)


def test_recipes_that_read_labels_say_so():
    found = {name for name in recipes.RECIPES if name.endswith('-demo') and recipes.load_recipe(name).uses_labels}
    labelled = [f'{name}-demo' for name in recipes._LABELLED]
    assert found == {*labelled, 'low-shot-demo', 'pretrain-demo', 'cid-oracle-demo'}


def test_the_warm_up_counts_samples():
    "Notices a warm-up in batches, and released prototypes that act one batch late."
    method, z, idx = cmpc(2, cid_samples=4), torch.stack([E1, E2]), torch.arange(2)
    for epoch, done in ((1, False), (2, True)):
        method.loss(z, z, idx)
        method.on_epoch_start(epoch)
        assert (method.prototypes() is not None) == done
    cfg = ReleasedCMPCConfig(num_prototypes=(2,), cid_samples=4, cluster_every=2)
    released, g = ReleasedCMPC(towers(2), cfg, 6), torch.Generator().manual_seed(0)
    v, f = F.normalize(torch.randn(2, 6, 2, generator=g), dim=2)
    acts = [released.loss(v, f, torch.arange(6))[1] is not None for _ in range(5)]
    assert acts == [False, False, True, False, True]


def test_rho_that_is_unknown_takes_no_part():
    "Notices an unknown rho that is taken for 0, and a deviation of samples: of 1 and 3 the mean is 2, the deviation 1."
    rho = ScalarMemory(3)
    rho.replace(torch.tensor([1., math.nan, 3.]))
    assert [x.item() for x in rho.mean_std()] == [2., 1.]


def test_released_memory_mixes_directions():
    "Notices an embedding that enters with its length: half (1, 0), half the direction of (0, 9) is the diagonal."
    memory = Memory(1, 2, variant='released')
    memory.rows.copy_(E1)
    memory.update(9*E2[None], torch.tensor([0]))
    close(memory.rows, torch.full((1, 2), math.sqrt(.5)))


# ---- pairs and fusion

def test_c_is_halved_when_validation_stands_still():
    "Notices patience of one epoch more or less, a wait that a better score does not end, and no floor."
    s, clusters = Schedule(16, patience=2, min_clusters=5), []
    for score in (.5, .4, .6, .6, .5, .5, .6, .5, .5, .5, .9, .8):
        s = s.after(score)
        clusters.append(s.clusters)
    assert clusters == [16, 16, 16, 16, 8, 8, 5, 5, 5, 5, 5, 5]


def test_pseudo_labels_keep_their_numbers():
    "Notices a clustering that starts anew in every epoch: labels would be dealt again."
    rows = torch.tensor([[0., 0.], [.1, 0.], [5., 5.], [5., 5.1], [9., 0.], [9.1, 0.]])
    for labels in ([0, 0, 1, 1, 2, 2], [1, 1, 0, 0, 2, 2], [2, 2, 1, 1, 0, 0]):
        assert pseudo_labels(rows, 3, torch.tensor(labels)).tolist() == labels


def test_sampled_negatives_follow_temperature_and_batch():
    "Notices sampling that ignores its temperature, and draws that are the same in every batch."
    v, f, _ = both(16)
    label, u = torch.arange(16), gumbel_noise(0, 0, 16)[0]
    def pick(how, t=1.): return hard_negatives(v, label, f, label, how, u, t)[0].tolist()
    assert pick('sampled', 1e-4) == pick('hardest') != pick('sampled', 1e4) == pick('random')
    assert not torch.equal(gumbel_noise(0, 0, 4), gumbel_noise(0, 1, 4))
    assert not torch.equal(gumbel_noise(0, 0, 4), gumbel_noise(1, 0, 4))
    assert torch.equal(torch.cat([gumbel_noise(0, 3, 4, r, 2) for r in (0, 1)], 1), gumbel_noise(0, 3, 4))


def test_a_video_is_the_mean_of_its_files_face_first():
    "Notices pooling by sums, which moves a video by how many files it has."
    pool = VideoPool(2, 1)
    pool.add('face', torch.tensor([[1.], [3.], [7.]]), torch.tensor([0, 0, 1]))
    pool.add('voice', torch.tensor([[5.], [8.], [8.]]), torch.tensor([0, 1, 1]))
    assert pool.result().tolist() == [[2., 5.], [7., 8.]]


def test_a_hard_negative_has_another_label():
    "Notices a negative drawn among the anchor's own pseudo-class."
    z, candidates = E1[None], torch.stack([E1, torch.tensor([.8, .6]), torch.tensor([.6, .8]), E2])
    chosen, there = hard_negatives(z, torch.tensor([0]), candidates, torch.tensor([0, 0, 1, 1]))
    assert chosen.tolist() == [2] and there.tolist() == [True]
    assert hard_negatives(z, torch.tensor([0]), candidates, torch.zeros(4, dtype=torch.long))[1].tolist() == [False]


def with_gains(**cfg):
    "A fusion encoder whose norms have gains and offsets, as training leaves them."
    torch.manual_seed(0)
    fusion = FusionEncoder(FusionConfig(**{**dict(dim=8, layers=2, heads=2, inner=16), **cfg})).eval()
    with torch.no_grad():
        for layer in fusion.encoder.layers:
            for norm in (layer.norm1, layer.norm2):
                norm.weight.uniform_(.2, 3.)
                norm.bias.normal_()
    return fusion


def test_all_pairs_with_gains_that_are_not_one():
    "Notices gains or offsets of the norms that are not folded into the matrices: new norms have gain 1 and offset 0."
    fusion = with_gains()
    v, f = F.normalize(torch.randn(2, 5, 8), dim=2)
    with torch.no_grad(): plain = fusion(v.repeat_interleave(5, 0), f.repeat(5, 1)).softmax(1)[:, 1].view(5, 5)
    np.testing.assert_allclose(score_all(fusion, v, f, quiet=True), plain, atol=1e-5)
    assert plain.std() > .01


def test_a_shortlist_holds_the_most_alike():
    "Notices a shortlist of the least alike."
    angle = torch.tensor([0., .2, .4, 2.])
    gallery = torch.stack([angle.cos(), angle.sin()], 1)
    cosine = SimpleNamespace(matrix=lambda voice, face: (E1 @ gallery.T)[None].numpy())
    fused = SimpleNamespace(pairs=lambda voice, face: np.zeros(len(voice), np.float32))
    s = ShortlistScorer(fused, cosine, 2, 'v2f').matrix(np.array([0]), np.arange(4))
    assert (s[0] > 2).tolist() == [True, True, False, False]
    asked = []
    def pairs(voice, face):
        asked.append((voice.tolist(), face.tolist()))
        return np.zeros(len(voice), np.float32)
    fused = SimpleNamespace(pairs=pairs)
    cosine = SimpleNamespace(matrix=lambda voice, face: torch.stack([gallery[:, 0], -gallery[:, 0]], 1).numpy())
    ShortlistScorer(fused, cosine, 1, 'f2v').matrix(np.arange(4), np.array([7, 8]))
    assert asked == [([0, 3], [7, 8])] # faces ask; voice 0 is the most alike to 7, voice 3 to 8


def test_the_projection_is_for_training_only():
    "Notices a projection that is kept at evaluation."
    torch.manual_seed(0)
    model = VoiceFaceModel(ModelConfig(encoder='linear', dim=4, voice_dim=3, face_dim=5, projection='separate'))
    voice, face = torch.randn(2, 3), torch.randn(2, 5)
    for encode, tower, head, x in ((model.encode_voice, model.voice, model.heads[0], voice),
                                   (model.encode_face, model.face, model.heads[1], face)):
        close(encode(x), F.normalize(head(tower(x)), dim=1))
        model.eval()
        close(encode(x), F.normalize(tower(x), dim=1))
        model.train()


# ---- training

class Slope(Method):
    "One number with the gradient 1 in every step: Adam then moves it by the learning rate, neither more nor less."
    def __init__(self, slope=1.):
        super().__init__(nn.Module())
        self.at, self.slope = nn.Parameter(torch.ones(())), slope

    def forward(self, voice, face, idx): return self.slope*self.at.expand(len(idx)), None


def slide(path, method, validate=None, **cfg):
    "Train a `Slope` for six steps of eight samples."
    cfg = TrainConfig(**{**dict(total_samples=48, batch_size=8, lr_warmup=0, weight_decay=0.), **cfg})
    batch = torch.zeros(8, 1), torch.zeros(8, 1), torch.arange(8)
    return training.fit(method, lambda epoch, start: [batch]*(2 - start), 2, cfg, RunFolder(path), validate, quiet=True)


def test_the_learning_rate_counts_samples(tmp_path):
    "Notices a schedule by steps: 6 steps of 8 samples, up over the first 32, have rates of 1, 2, 3, 4, 5, 4 tenths."
    method = Slope()
    slide(tmp_path, method, lr_warmup=32, peak_lr=.5, lr_start=.1, lr_end=.3)
    assert method.at.item() == pytest.approx(1 - (.1 + .2 + .3 + .4 + .5 + .4), abs=1e-5)


def test_weight_decay_decays(tmp_path):
    "Notices weight decay that is lost: without a gradient, AdamW leaves 1 - rate*decay of a weight in each step."
    method = Slope(0.)
    slide(tmp_path, method, optimizer='adamw', weight_decay=.5, peak_lr=.1, lr_start=.1, lr_end=.1)
    assert method.at.item() == pytest.approx(.95**6, abs=1e-6)


@pytest.mark.parametrize('optimizer, left', [('adam', .9), ('adamw', .95)])
def test_adam_decays_by_a_gradient_and_adamw_by_a_factor(optimizer, left):
    "Notices one optimiser in place of the other: decay .5 at rate .1 is a whole step of Adam, a factor .95 of AdamW."
    at = nn.Parameter(torch.ones(1))
    at.grad = torch.zeros(1)
    make_optimizer([at], TrainConfig(optimizer=optimizer, lr_start=.1, weight_decay=.5)).step()
    assert at.item() == pytest.approx(left, abs=1e-5)


def test_the_first_of_equal_epochs_is_kept_and_stops_the_run(tmp_path):
    "Notices a best epoch that is the worst, and patience of one epoch more."
    scores = iter([.5, .7, .7, .6, .9])
    result = slide(tmp_path, Slope(), lambda m: next(scores), total_samples=160, patience=2)
    assert (result.state.best_epoch, result.state.best, result.state.epoch) == (2, pytest.approx(.7), 4)


def test_a_gradient_is_clipped_for_all_numbers_together(tmp_path):
    "Notices a norm that is not clipped: Adam's second moment then holds the whole gradient."
    opt, method = [], Slope(100.)
    real = training.make_optimizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'make_optimizer', lambda *a: opt.append(real(*a)) or opt[0])
        slide(tmp_path, method, total_samples=8, grad_clip=2.)
    assert opt[0].state[method.at]['exp_avg_sq'].item() == pytest.approx(.001*2**2, rel=1e-4)


def test_an_epoch_that_is_resumed_does_not_start_again(tmp_path):
    "Notices prototypes or labels that are made anew in the middle of an epoch because a run was stopped there."
    method, batch, started = Slope(), (torch.zeros(8, 1), torch.zeros(8, 1), torch.arange(8)), []
    method.on_epoch_start = started.append
    def cut(epoch, start):
        yield batch
        if epoch: raise RuntimeError('power cut')
        yield batch
    cfg = TrainConfig(total_samples=48, batch_size=8, lr_warmup=0, checkpoint_every=1)
    with pytest.raises(RuntimeError, match='cut'): training.fit(method, cut, 2, cfg, RunFolder(tmp_path), quiet=True)
    assert started == [0, 1]
    training.fit(method, lambda epoch, start: [batch]*(2 - start), 2, cfg, RunFolder(tmp_path), quiet=True)
    assert started == [0, 1, 2]


class Two(nn.Module):
    "Embeddings as they are."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def encode_voice(self, x): return x
    def encode_face(self, x): return x


def test_validation_counts_all_pairs_of_a_person():
    "Notices an AUC whose positives are a video's own voice and face only: the first one would be 10/12."
    z, who = torch.stack([E1, E1, E2, E2]), np.array(['a', 'a', 'b', 'b'])
    assert valid_auc(Method(Two()), [(z, z, torch.arange(4))], who) == 1.
    parts = torch.tensor([[0, 2], [3, 1]])
    assert valid_auc(Method(Two()), [(z[i], z[i], i) for i in parts], who) == 1.
    assert valid_auc(Method(Two()), [(z, z.flip(0), torch.arange(4))], who) == 0.


def test_validation_within_a_modality_leaves_out_a_video_with_itself():
    """Notices pairs of a video with itself. Pairs of one person are 1.0 apart, those of two people 0.1, 0.1, 0.9
    and 1.1: one of four is right."""
    method, angle = Method(Two()), torch.tensor([0., 1., .1, 1.1])
    method.intra_modal = True
    z = torch.stack([angle.cos(), angle.sin()], 1)
    assert valid_auc(method, [(z, z, torch.arange(4))], np.array(['a', 'a', 'b', 'b'])) == .25


def test_drawn_pairs_are_half_of_one_person():
    "Notices drawn pairs without a positive."
    who = np.array(['a', 'a', 'b', 'b'])
    i, j, same = draw_pairs(who, 3)
    assert same.tolist() == (who[i] == who[j]).tolist() == [True]*3 + [False]*3


# ---- batches

@pytest.fixture(scope='module')
def media(tmp_path_factory):
    """Ten videos of five people, of whom two are for validation. A clip's level says which video, clip and second it
    is; a face's red says which video, its green which frame, its blue which half is the right one."""
    root = tmp_path_factory.mktemp('noticed')/'corpus'
    for i in range(10):
        wav, faces = root/f'wav/id{i//2}/v{i}', root/f'faces/P_{i//2}/1.6/v{i}'
        wav.mkdir(parents=True)
        faces.mkdir(parents=True)
        for k in range(2):
            level = .05*i + .02*k
            soundfile.write(wav/f'{k:05}.wav', np.linspace(level, level + .01, 32000, dtype='f4'), 16000)
        for k in range(3):
            picture = np.zeros((16, 16, 3), np.uint8)
            picture[:, :] = 20*i, 80*k, 0
            picture[:, 8:, 2] = 255
            Image.fromarray(picture).save(faces/f'{k:07}.png')
    (root/'vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 ID\n' + ''.join(f'id{i}\tP_{i}\n' for i in range(5)))
    (root/'identity_splits.txt').write_text(''.join(f'P_{i} {1 if i < 3 else 2}\n' for i in range(5)))
    return scan(root, quiet=True)


def told(item): # video of the voice, its clip, where the crop begins (s), video of the face, its frame, mirrored?
    voice, face, _ = item
    level = voice[0].item() + 1e-4
    video = int(level/.05)
    clip = int((level - .05*video)/.02)
    begin = round((level - 1e-4 - .05*video - .02*clip)/.005, 1)
    red, green = face[:2, 8, 8].tolist()
    return video, clip, begin, round(red/20), round(green/80), bool(face[2, 8, 0] > 128)


def test_voice_and_face_are_of_one_video(media):
    "Notices a face of another video, of the same person or not, as the positive."
    data = PairDataset(media, seconds=1., size=16)
    for epoch in range(3):
        for row in range(6):
            item = data[epoch, row]
            assert told(item)[0] == told(item)[3] == row == item[2]


def test_a_key_of_three_takes_the_face_of_another_video(media, tmp_path):
    "Notices the face of the voice's own video, and a face that is not the one that the other video would have."
    data = PairDataset(media, seconds=1., size=16)
    for row, other in ((0, 1), (3, 3), (5, 0)):
        *item, partner = data[2, row, other]
        assert told(item)[0] == row == item[2] and told(item)[3] == other == partner
    assert told(data[2, 3, 3][:3]) == told(data[2, 3])
    paths = {m: media.table.path[media.table.modality == m] for m in ('voice', 'face')}
    vectors = {m: np.arange(len(p), dtype=np.float32)[:, None] for m, p in paths.items()}
    save_features(tmp_path/'f.npz', **vectors, voice_path=paths['voice'], face_path=paths['face'])
    pairs = FeaturePairs(media, load_features(tmp_path/'f.npz'))
    own, swapped = pairs.batch([(4, r) for r in range(6)]), pairs.batch([(4, r, 5 - r) for r in range(6)])
    assert torch.equal(own[0], swapped[0]) and torch.equal(own[1].flip(0), swapped[1])
    assert swapped[2].tolist() == list(range(6)) == swapped[3].flip(0).tolist()
    for m, n in (('voice', 2), ('face', 3)):
        mean = vectors[m][:6*n].reshape(6, n).mean(1)
        assert pairs.video_means(m)[:, 0].tolist() == pytest.approx(mean.tolist())


def test_every_choice_of_an_example_is_made_anew_in_every_epoch(media):
    "Notices an example that never changes its clip, its second or its frame, is never mirrored, or always is."
    data = PairDataset(media, seconds=1., size=16)
    seen = [told(data[epoch, row]) for epoch in range(20) for row in range(6)]
    for k, values in ((1, 2), (4, 3), (5, 2)):
        share = np.bincount([int(s[k]) for s in seen], minlength=values)/len(seen)
        assert np.abs(share - 1/values).max() < .15, (k, share)
    assert {s[2] for s in seen} >= {.1, .3, .5, .7, .9} # seconds at which a crop of one second begins, in clips of two
    assert told(PairDataset(media, seconds=1., size=16, augment=False)[7, 4]) == (4, 0, .5, 4, 1, False)


def test_every_epoch_has_its_own_order():
    "Notices one order for all epochs, one for all seeds, and a resumed epoch that begins at its beginning."
    def rows(seed, epoch, start=0):
        return [i for b in DistributedBatchSampler(12, 4, seed, epoch, start) for _, i in b]
    assert len({tuple(rows(0, e)) for e in range(6)}) == 6 == len({tuple(rows(s, 0)) for s in range(6)})
    assert rows(0, 3, 1) == rows(0, 3)[4:] and sorted(rows(0, 3)) == list(range(12))


def test_processes_share_a_batch():
    "Notices processes that all read the first part."
    one = list(DistributedBatchSampler(12, 4, 0, 1))
    assert [a + b for a, b in zip(*(DistributedBatchSampler(12, 4, 0, 1, rank=r, world=2) for r in (0, 1)))] == one


def test_few_shots_are_drawn():
    "Notices a draw that is always the first videos of a person."
    videos = pd.DataFrame({'identity': ['a']*6 + ['b']*6, 'video': range(12)})
    assert len({tuple(subsample_shots(videos, 2, seed).video) for seed in range(5)}) == 5


def test_training_validates_without_augmentation_and_records_whom_it_met(media, tmp_path, monkeypatch):
    "Notices validation on random crops, and a record without the people that the checkpoint was chosen by."
    given, batches = {}, []
    def fit(method, train, steps, cfg, run, validate, about, *rest):
        given.update(about)
        for _ in range(2): validate(method)
        return training.FitResult(training.FitState(), True, '')
    monkeypatch.setattr(training_run, 'fit', fit)
    monkeypatch.setattr(training_run, 'valid_auc', lambda method, b, who, *a: batches.append(list(b)) or 0.)
    settings = Settings(data=tmp_path, runs=tmp_path, device='cpu', workers=0)
    changes = {'corpus': str(media.root), 'data.crop_seconds': 1., 'data.face_size': 16,
               'train.batch_size': 4, 'train.total_samples': 8, 'train.lr_warmup': 4}
    recipe = recipes.load_recipe('cid-demo', changes)
    training_run.train(recipe, tmp_path/'run', settings, quiet=True)
    assert len(given['identities']) == 5
    for (voice, face, idx), in batches:
        assert [told(x) for x in zip(voice, face, idx)] == [(6 + i, 0, .5, 6 + i, 1, False) for i in range(4)]


@pytest.mark.parametrize('recipe', ['cid-demo', 'cid-oracle-demo'])
def test_a_run_trains_on_the_faces_that_its_recipe_draws(media, tmp_path, monkeypatch, recipe):
    "Notices a draw that training leaves out, and a run with labels that does not say so."
    batches = []
    def fit(method, train, *rest):
        batches.extend(train(0, 0))
        return training.FitResult(training.FitState(), True, '')
    monkeypatch.setattr(training_run, 'fit', fit)
    settings = Settings(data=tmp_path, runs=tmp_path, device='cpu', workers=0)
    changes = {'corpus': str(media.root), 'data.crop_seconds': 1., 'data.face_size': 16,
               'train.batch_size': 4, 'train.total_samples': 8, 'train.lr_warmup': 4}
    training_run.train(recipes.load_recipe(recipe, changes), tmp_path/'run', settings, quiet=True)
    (voice, face, idx, *other), = batches
    faces = other[0] if other else idx
    assert [(told(x)[0], told(x)[3]) for x in zip(voice, face, idx)] == [*zip(idx.tolist(), faces.tolist())]
    assert (idx//2 == faces//2).all() and (idx != faces).all() == (recipe == 'cid-oracle-demo')
    assert ('uses_labels' in RunFolder(tmp_path/'run').provenance.read_text()) == (recipe == 'cid-oracle-demo')


def test_cached_features_are_of_the_video_and_change_too(media, tmp_path):
    "Notices vectors of another video or corpus, and a clip or a face that stays the same in all epochs."
    def number(path): return [int(path.split('/v')[-1][0]), int(path.rsplit('/', 1)[1].split('.')[0])] # video and file
    paths = {m: media.table.path[media.table.modality == m] for m in ('voice', 'face')}
    vectors = {m: np.array(list(map(number, p)), np.float32) for m, p in paths.items()}
    save_features(tmp_path/'f.npz', **vectors, voice_path=paths['voice'], face_path=paths['face'])
    features = load_features(tmp_path/'f.npz')
    data = FeaturePairs(media, features)
    seen = {'voice': set(), 'face': set()}
    for epoch in range(12):
        voice, face, rows = data.batch([(epoch, r) for r in range(6)])
        assert voice[:, 0].tolist() == face[:, 0].tolist() == rows.tolist() == list(range(6))
        seen['voice'].add(tuple(voice[:, 1].tolist()))
        seen['face'].add(tuple(face[:, 1].tolist()))
    assert len(seen['voice']) > 8 and len(seen['face']) > 8
    voice, face, _ = FeaturePairs(media, features, augment=False).batch([(3, r) for r in range(6)])
    assert voice[:, 1].tolist() == [0]*6 and face[:, 1].tolist() == [1]*6 # the first clip, the middle face
    save_features(tmp_path/'g.npz', **vectors, voice_path=paths['voice'], face_path=paths['face'], corpus_hash='ab'*32)
    with pytest.raises(CorpusError, match=rf'^{tmp_path}/g\.npz: '):
        FeaturePairs(media, load_features(tmp_path/'g.npz'))


def test_log_mel_is_of_the_power():
    "Notices the spectrum's magnitude in place of its power: twice the amplitude is four times the power."
    x = torch.sin(torch.arange(4800)*.3)[None]
    mel = LogMel()
    close(mel.bands(2*x), 4*mel.bands(x), rtol=1e-4, atol=1e-3)
    assert mel.bands(x).max() > 1
    assert abs(mel(x).mean()) < 1e-4 and mel(x).std() == pytest.approx(1, abs=1e-3) # how loud a clip is says nothing


def test_faces_are_between_minus_one_and_one_and_mirrored_sideways():
    "Notices another scale, and faces that are turned upside down."
    x = torch.tensor([[0, 255], [0, 255]], dtype=torch.uint8).expand(2, 3, 2, 2)
    y = prepare_faces(x, torch.tensor([False, True]))
    assert y[0, 0].tolist() == [[-1., 1.]]*2 and y[1, 0].tolist() == [[1., -1.]]*2


# ---- evaluation and VoxCeleb1

def test_recall_and_mrr_of_given_ranks():
    "Notices recall below k, and a mean of ranks: first at rank 1, 2 and 5."
    one = np.ones(3, int)
    r = Ranking(np.array([1., .5, .2]), np.array([1, 2, 5]), one, 5*one, one)
    assert [r.value(m) for m in ('recall@1', 'recall@2', 'recall@5', 'mrr')] == pytest.approx([1/3, 2/3, 1, 1.7/3])


def people():
    "Media tables of eight women in eight videos; two have a nationality, of two it is unknown, of four it is missing."
    nation = ['USA', 'USA', 'unknown', 'unknown', '', '', None, None]
    t = pd.DataFrame(dict(identity=[f'id{i}' for i in range(8)], gender='f', nationality=nation, age=30.))
    t['video'] = t.identity.str.replace('id', 'v')
    return tuple(t.assign(path=[f'{m}/{i}' for i in range(8)]) for m in ('voice', 'face'))


def test_unknown_is_no_nationality():
    "Notices impostors that share an unknown nationality with the probe."
    voices, faces = people()
    t = verification(voices, faces, 'N', 100)
    assert set(t.voice) | set(t.face) == {0, 1}


def test_the_ceiling_of_a_stratum_knows_what_impostors_share():
    "Notices one oracle for all strata: this one is right in G and blind elsewhere."
    voices, faces = people()
    class Oracle:
        def __init__(self, sees): self.sees = sees
        def for_stratum(self, stratum): return Oracle(stratum == 'G')
        def pairs(self, v, f): return self.sees*(v == f).astype(float)
        def matrix(self, v, f): return self.sees*(v[:, None] == f).astype(float)
    cfg = ProtocolConfig(strata=('U', 'G'), candidates=(), replicates=100)
    table = evaluate(Oracle(True), voices, faces, cfg, Oracle(True), trained_on=[], quiet=True).table
    assert table[table.metric == 'auc'].ceiling.tolist() == [.5, 1.]


def test_tables_of_voxceleb(tmp_path, media):
    """Notices people of set `none` in a split, splits under each other's number, an utterance that is there twice, a
    video's name that two people share, and clips counted as videos."""
    def csv(name, *rows):
        lines = ['VoxCeleb1_ID,VGGFace1_ID,Gender,Nationality,Set', *(f'{i},x,f,USA,{s}' for i, s in rows)]
        (tmp_path/f'{name}.csv').write_text('\n'.join(lines))
    csv('train', ('id0', 'train'), ('id1', 'none'))
    csv('valid', ('id2', 'valid'))
    csv('test', ('id3', 'test'), ('id4', 'None'))
    used, left = read_split_tables(*(tmp_path/f'{n}.csv' for n in ('train', 'valid', 'test')))
    assert (used, left) == ({'id0': 'train', 'id2': 'valid', 'id3': 'test'}, {'id1': 'train', 'id4': 'test'})
    splits = {'id0': 'train', 'id1': 'valid', 'id2': 'seen', 'id3': 'test'}
    write_splits(tmp_path/'splits.txt', splits, media.root/'vox1_meta.csv')
    assert (tmp_path/'splits.txt').read_text().splitlines() == ['P_0 1', 'P_1 2', 'P_2 3', 'P_3 4']
    rows = [f'id{i//2}\tv{i}\t0000{k}.wav\t1800\tdev' for i in range(10) for k in range(3)]
    (tmp_path/'index.tsv').write_text('\n'.join(['\t'.join(INDEX), *rows]))
    index = read_index(tmp_path/'index.tsv')
    lacks = missing_media(media, index)
    assert lacks.loc['clips', ['published', 'there', 'missing']].tolist() == [30, 20, 10]
    index.loc[index.video == 'v2', 'video'] = 'v0'                   # of id1, and of id0
    counts = split_counts(index, {'id0': 'train', 'id1': 'train'})
    assert counts.loc['train'].tolist() == [2, 4, 12, 6.]
    (tmp_path/'index.tsv').write_text('\n'.join(['\t'.join(INDEX), rows[0], rows[0].replace('1800', '1801')]))
    with pytest.raises(CorpusError, match='line 3 repeats an utterance'): read_index(tmp_path/'index.tsv')
