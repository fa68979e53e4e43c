"The rows of the papers' tables that learn from labels: each is registered, has recipes, trains and is evaluated."
import re

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from checkout import ROOT
from test_vectors import LITTLE, SHARED, drawn
from tiny_grid import here
from vfassoc.core import ConfigError, read_json
from vfassoc.corpus.vectors import write_vectors
from vfassoc.evaluation.run import evaluate_run
from vfassoc.evaluation.scorers import Embeddings, FusedScorer
from vfassoc.experiments.tables import PRINTED, published_scores
from vfassoc.losses.center import center_loss, move_centers
from vfassoc.losses.classification import identity_loss
from vfassoc.losses.identity_weights import admit_identities, note_losses
from vfassoc.losses.infonce import cid_loss
from vfassoc.losses.n_pair import n_pair_loss
from vfassoc.losses.n_way import n_way_loss
from vfassoc.losses.orthogonal import orthogonal_projection_loss
from vfassoc.losses.ranking import hard_ranking_loss
from vfassoc.methods.base import METHODS
from vfassoc.methods.classifier import DIMNet, DIMNetConfig, DIMNetGConfig
from vfassoc.methods.registry import build_method
from vfassoc.models.all_pairs import score_all
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel
from vfassoc.training.recipes import RECIPES, load_recipe
from vfassoc.training.run import train

close = torch.testing.assert_close
LITTLE = {k: v for k, v in LITTLE.items() if k != 'method.tau'}
PROTOCOL = dict(replicates=100, verification_trials=200, matching_trials=100, candidates=[2], shortlists=[])
# recipe: its method
ROWS = {'dimnet-i': 'dimnet-i', 'dimnet-g': 'dimnet-g', 'dimnet-ig': 'dimnet-ig', 'dimnet-ign': 'dimnet',
        'n-pair': 'n-pair', 'ssnet': 'ssnet', 'fop': 'fop', 'wang': 'wang', 'wen': 'wen', 'svhf': 'svhf'}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A corpus of vectors in which voice and face of a person share a part."
    folder = tmp_path_factory.mktemp('rows')
    d = drawn(people=60, videos=4, gender=lambda t: np.where(t.number % 2, 'm', 'f'),
              nationality=lambda t: np.where(t.number % 3, 'UK', 'USA'))
    write_vectors(here(folder).data/'mine', d)
    return folder


def little(name, **more):
    tau = {'method.tau': .1} if hasattr(load_recipe(name).method.config, 'tau') else {}
    return load_recipe(name, {**LITTLE, 'corpus': 'mine', 'model.voice_dim': 4, 'model.face_dim': 6,
                              'train.peak_lr': .01, 'train.total_samples': 3200, **tau, **more})


@pytest.mark.parametrize('row', ROWS)
def test_a_row_has_recipes_for_each_corpus(row):
    assert {f'{row}-{c}' for c in ('demo', 'twin', 'voxceleb1')} <= set(RECIPES)
    for corpus in ('demo', 'twin', 'voxceleb1'):
        recipe, base = load_recipe(f'{row}-{corpus}'), load_recipe(f'cid-{corpus}')
        assert recipe.method.name == ROWS[row] and recipe.uses_labels
        assert recipe.corpus == base.corpus and recipe.train == base.train # the same budget
    assert METHODS.find(ROWS[row], 'method').supervised


@pytest.mark.parametrize('row', ROWS)
def test_a_row_trains_and_is_evaluated(home, row):
    s, run = here(home), home/'runs'/row
    result = train(little(f'{row}-twin'), run, s, quiet=True)
    assert result.finished and result.state.history[-1]['loss'] < result.state.history[0]['loss']
    assert read_json(run/'provenance.json')['uses_labels'] is True
    table = evaluate_run(run, s, PROTOCOL).table
    auc = table[(table.task == 'verification') & (table.metric == 'auc') & (table.stratum == 'U')].value.iloc[0]
    assert row == 'dimnet-g' or auc > .6 # the drawn gender is in no vector
    assert {'matching', 'retrieval', 'verification'} == set(table.task)


# ---- DIMNet

def dimnet(cfg, **covariates):
    torch.manual_seed(0)
    model = VoiceFaceModel(ModelConfig('linear', dim=4, voice_dim=3, face_dim=3, projection='none'))
    return DIMNet(model, cfg, 4, identity=list('abab'), covariates=covariates)

def unit(n, d, seed=0): return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)

def test_each_covariate_adds_the_loss_of_its_classifier_and_an_unknown_value_adds_none():
    m = dimnet(DIMNetConfig(covariates=('identity', 'gender', 'age')), gender=['m', 'f', 'unknown', 'm'],
               age=[31., 39., 40., float('nan')])
    v, f, idx = unit(4, 4), unit(4, 4, 1), torch.tensor([3, 0, 2, 1])
    want = torch.zeros(4)
    parts = ((m.weight, [1, 0, 0, 1]), (m.weight_gender, [1, 1, None, 0]), (m.weight_age, [None, 0, 1, 0]))
    for weight, target in parts:
        for k, y in enumerate(target):
            if y is not None:
                for z in (v, f): want[k] += identity_loss(z[k:k + 1], weight, torch.tensor([y]), m.cfg.tau)[0]
    close(m.loss(v, f, idx)[0], want)

def test_years_are_the_width_of_a_class_of_ages():
    ages = dict(age=[31., 39., 40., 58.])
    assert dimnet(DIMNetConfig(covariates=('age',)), **ages).target_age.tolist() == [0, 0, 1, 2]
    assert dimnet(DIMNetConfig(covariates=('age',), years=20), **ages).target_age.tolist() == [0, 0, 1, 1]

def test_imprinting_leaves_unknown_values_out():
    m = dimnet(DIMNetConfig(covariates=('gender',), imprint=True), gender=['m', 'f', 'unknown', 'unknown'])
    v = unit(3, 4)
    m.loss(v, v, torch.tensor([0, 2, 3]))
    close(m.weight_gender[1].detach(), v[0])
    assert m.met_gender.tolist() == [False, True]

@pytest.mark.parametrize('cfg, covariates, word', [
    (DIMNetGConfig(), {}, '0 values of gender for 4'),
    (DIMNetGConfig(), dict(gender=['m']*4), '1 different values of gender'),
    (DIMNetConfig(covariates=('nationality',)), dict(nationality=['unknown']*4), '0 different values of nationality')])
def test_a_covariate_that_nobody_has_is_one_line(cfg, covariates, word):
    with pytest.raises(ConfigError, match=word) as e: dimnet(cfg, **covariates)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('covariates', [[], ['gender', 'gender'], ['hair']])
def test_impossible_covariates(covariates):
    with pytest.raises(ConfigError, match='covariates'):
        load_recipe('dimnet-ign-demo', {'method.covariates': covariates})


# ---- the losses of the other rows

def vectors(b=6, d=4, seed=0):
    v, f = F.normalize(torch.randn(2, b, d, generator=torch.Generator().manual_seed(seed)), dim=2)
    return v, f, torch.tensor([0, 1, 2, 1, 3, 0])[:b]

def build(name, identity='abcbda', **cfg):
    torch.manual_seed(0)
    model = VoiceFaceModel(ModelConfig('linear', dim=4, voice_dim=3, face_dim=3, projection='none'))
    return build_method({'name': name, **cfg}, model, len(identity), '', list(identity))

def test_a_row_of_the_same_identity_is_no_negative():
    "Notices an N-pair loss with false negatives, and one in one direction."
    v, f, y = vectors()
    for one in range(6):
        keep = [j for j in range(6) if j == one or y[j] != y[one]]
        at = keep.index(one)
        close(n_pair_loss(v, f, y, .2)[one], cid_loss(v[keep], f[keep], .2)[at])
    close(build('n-pair', tau=.2).loss(v, f, torch.arange(6))[0], n_pair_loss(v, f, y, .2))

def test_centers_move_by_their_own_rows_alone_and_the_loss_is_half_the_square():
    z, c, y = torch.randn(5, 3), torch.randn(3, 3), torch.tensor([1, 1, 0, 1, 0])
    close(center_loss(z, c, y), .5*((z - c[y])**2).sum(1))
    moved = c.clone()
    move_centers(moved, z, y, .8)
    for k, rows in enumerate(([2, 4], [0, 1, 3], [])):
        close(moved[k], c[k] - .8*sum((c[k] - z[i] for i in rows), torch.zeros(3))/(1 + len(rows)))

def test_the_mean_over_rows_is_the_orthogonal_projection_loss():
    "Notices a sign that is lost, a row paired with itself, and another weight of two identities."
    x, _, y = vectors()
    s, same = x @ x.T, (y[:, None] == y[None]) & ~torch.eye(6, dtype=torch.bool)
    want = 1 - s[same].mean() + .4*s[y[:, None] != y[None]].abs().mean()
    close(orthogonal_projection_loss(3*x, y, .4).mean(), want)

def test_the_ranking_is_against_the_nearest_of_another_identity():
    v, f, y = vectors()
    for i in range(6):
        d = (v[i] - f).square().sum(1), (f[i] - v).square().sum(1)
        want = sum((x[i] - x[y != y[i]].min() + .7).clamp_min(0) for x in d)
        close(hard_ranking_loss(v, f, y, .7)[i], want)

def test_identities_are_admitted_from_easy_to_hard_and_the_hardest_never():
    mean, w = torch.tensor([5., 1., 4., 2., 3., 9., 8., 7., 6., 10.]), torch.zeros(10)
    order = []
    for _ in range(9):
        after = admit_identities(w, mean, .2, .1, .9, .5)
        order.append(sorted((after == 1).nonzero()[:, 0].tolist())) if (after != w).any() else None
        w = after
    assert order[0] == [1, 3] and order[1:] == [[4], [2], [0], [8], [7], [6], [5]] and w[9] == 0
    assert w[5] == 1 and w[6] == .5 and w[1] == .5**7

def test_the_running_mean_moves_for_the_identities_of_the_batch():
    mean = torch.tensor([1., 2., 3.])
    note_losses(mean, torch.tensor([4., 6., 1.]), torch.tensor([1, 1, 0]), .5)
    close(mean, torch.tensor([1., 3.5, 3.]))

def test_the_own_item_is_chosen_among_rivals_without_replacement():
    "Notices rivals of the same identity, a row drawn twice and one direction alone."
    v, f, y = vectors()
    def s(v, f): return (v*f).sum(-1)
    all_rivals = n_way_loss(s, v, f, y, torch.rand(2, 6, 6), 7)
    close(all_rivals, n_pair_loss(v, f, y, 1.))
    u = torch.zeros(2, 6, 6)
    u[0, :, 1], u[1, :, 2] = 1, 1 # which rival each row draws, where it may
    two = n_way_loss(s, v, f, y, u, 2)
    close(two[0], F.softplus(v[0] @ (f[1] - f[0])) + F.softplus(f[0] @ (v[2] - v[0])))


# ---- the methods

def test_wen_weights_rows_by_the_admitted_identities():
    "Notices weights before the first admission, and an admission that is never due."
    m = build('wen', admit_every=6, tau=.5)
    v, f, _ = vectors()
    idx = torch.arange(6)
    assert m.row_weights(m.target).tolist() == [1.]*6
    w = m.loss(v, f, idx)[1]
    assert m.seen == 6 and (w > 0).sum() < 6 and m.identity_weight.sum() == 2 # of 4 identities
    hard = m.mean_loss.argsort()[2:]
    assert (w == 0).tolist() == [bool((hard == y).any()) for y in m.target.tolist()]
    m.eval()
    again = m.loss(v, f, idx)
    assert m.seen == 6
    close(again[0], identity_loss(v, m.weight, m.target, .5) + identity_loss(f, m.weight, m.target, .5)
          + cid_loss(v, f, .5)/2)

def test_the_parts_of_wang_ssnet_and_fop_have_their_weights():
    v, f, y = vectors()
    idx = torch.arange(6)
    def classified(m): return identity_loss(v, m.weight, y, .2) + identity_loss(f, m.weight, y, .2)
    m = build('wang', tau=.2, identity_weight=2., center_weight=3., margin=.5).eval()
    m.centers.normal_()
    centers = center_loss(v, m.centers, y) + center_loss(f, m.centers, y)
    close(m.loss(v, f, idx)[0], hard_ranking_loss(v, f, y, .5) + 2*classified(m) + 3*centers)
    m = build('ssnet', tau=.2, center_weight=3.).eval()
    m.centers.normal_()
    centers = center_loss(v, m.centers, y) + center_loss(f, m.centers, y)
    close(m.loss(v, f, idx)[0], classified(m) + 3*centers)
    m = build('fop', tau=.2, alpha=3., gamma=.1).eval()
    x = F.normalize(m.gated(v, f), dim=1)
    close(m.loss(v, f, idx)[0], identity_loss(x, m.weight, y, .2) + 3*orthogonal_projection_loss(x, y, .1))

def test_an_open_gate_is_the_face():
    m, (v, f, _) = build('fop').eval(), vectors()
    with torch.no_grad(): m.gated.gate[3].bias.fill_(50.)
    close(m.gated(v, f), torch.tanh(f))

@pytest.mark.parametrize('name', ['wang', 'ssnet'])
def test_centers_move_in_training_by_both_modalities(name):
    m, (v, f, y) = build(name), vectors()
    m.loss(v, f, torch.arange(6))
    want = torch.zeros(4, 4)
    move_centers(want, torch.cat([v, f]), torch.cat([y, y]))
    close(m.centers, want)

def test_a_stream_is_one_head_that_stays():
    model = VoiceFaceModel(ModelConfig('linear', dim=4, voice_dim=3, face_dim=3, projection='stream'))
    x = torch.randn(5, 3)
    close(model.train().encode_face(x), model.eval().encode_face(x))
    close(model.encode_face(x), F.normalize(model.heads[0](model.face(x)), dim=1))

def test_a_scorer_of_concatenated_features_scores_pairs_blocks_and_galleries_alike():
    scorer = build('svhf', hidden=7).scorer.eval()
    v, f = torch.randn(9, 4), torch.randn(5, 4)
    want = torch.tensor([[scorer(a, b).item() for b in f] for a in v])
    for pairs in (1, 7, 0):
        close(torch.from_numpy(score_all(scorer, v, f, pairs=pairs, quiet=True, log_odds=True)), want)
    media = (pd.DataFrame({'path': list(x)}) for x in ('abcdefghi', 'abcde'))
    emb = Embeddings(F.normalize(v, dim=1).numpy(), F.normalize(f, dim=1).numpy(), *media)
    for table in (1 << 26, 1):
        fused = FusedScorer(scorer, emb, table, quiet=True)
        block = fused.matrix(np.arange(9), np.arange(5))
        pairs = fused.pairs(np.arange(9).repeat(5), np.tile(np.arange(5), 9))
        np.testing.assert_allclose(pairs, block.ravel(), rtol=1e-5)

def test_every_batch_of_svhf_draws_and_a_resumed_run_draws_the_same():
    m, (v, f, _) = build('svhf', ways=2), vectors()
    idx = torch.arange(6)
    first, second = m.loss(v, f, idx)[0], m.loss(v, f, idx)[0]
    assert not torch.equal(first, second)
    other = build('svhf', ways=2)
    other.load_extra_state({'batches': 1})
    close(other.loss(v, f, idx)[0], second)


# ---- what the page of rows says

PAPERS = {'CMPC, Table 1': 'CMPC 1', 'CMPC, Table 2': 'CMPC 2', 'FAA, Table 2': 'FAA 2'}

def rows_page():
    lines = [l for l in (ROOT/'notes/rows.md').read_text(encoding='utf-8').splitlines() if l.startswith('| ')][1:]
    return [[c.strip() for c in l.strip('|').split(' | ')] for l in lines]

def test_the_page_of_rows_has_every_method_and_its_recipes():
    page = rows_page()
    assert {len(r) for r in page} == {7}
    ours = {name for name, x in METHODS.known.items() if x.__module__.startswith('vfassoc.')} # others: of other tests
    assert {r[2].strip('`') for r in page} == {'–', *ours}
    for row, _, method, recipe, corpora, *_ in page:
        names = [f'{recipe.strip("`")}-{c}' for c in corpora.split(', ')] if recipe != '–' else []
        for name in names: assert load_recipe(name).method.name == method.strip('`'), row
        assert (method == '–') == (not names)

@pytest.mark.parametrize('table', PAPERS)
def test_the_page_of_rows_has_every_printed_row(table):
    printed = {m.removesuffix(PRINTED) for m in published_scores(table).method}
    said = {name for r in rows_page() if PAPERS[table] in r[1].split(', ') for name in
            (r[0].split(' and ') if 'low-shot' in r[0] else r[0].split(', '))}
    if table == 'FAA, Table 2': said.discard('DIMNet-I') # FAA writes DIMNet
    else: said.discard('DIMNet')
    assert said == printed

@pytest.mark.skipif(not (SHARED/'papers'/'cmpc.txt').is_file(), reason='VFASSOC_SHARED names no folder with papers')
@pytest.mark.parametrize('table', PAPERS)
def test_every_number_of_a_table_is_held_and_no_other(table):
    "The rows of a paper's table, read from its text, against printed.csv: as many times each number."
    lines = (SHARED/'papers'/f'{table.split(",")[0].lower()}.txt').read_text(encoding='utf-8').splitlines()
    caption = next(k for k, l in enumerate(lines) if re.match(table.split(', ')[1] + r'[.:]', l))
    step = -1 if table[0] == 'C' else 1 # CMPC's captions stand below
    first = next(k for k in range(caption, len(lines)*(step > 0) - (step < 0), step) if lines[k].count('\t') > 6)
    body = []
    while '\t' in lines[first]:
        body.append(re.sub('<[^>]*>', '', lines[first]).split('\t'))
        first += step
    rows = [[x for x in r[2:] if re.fullmatch(r'[\d.]+', x)] for r in body if re.search('upervised|sup|shot', r[1])]
    if table == 'CMPC, Table 1': rows = [r[:8] for r in rows] # the last column is a mean
    held = published_scores(table)
    assert sorted(float(x) for r in rows for x in r) == sorted((100*held.value).round(2))
