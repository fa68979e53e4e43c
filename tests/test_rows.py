"The rows of the papers' tables that learn from labels: each is registered, has recipes, trains and is evaluated."
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from test_vectors import LITTLE, drawn
from tiny_grid import here
from vfassoc.core import ConfigError, read_json
from vfassoc.corpus.vectors import write_vectors
from vfassoc.evaluation.run import evaluate_run
from vfassoc.losses.classification import identity_loss
from vfassoc.methods.base import METHODS
from vfassoc.methods.classifier import DIMNet, DIMNetConfig, DIMNetGConfig
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel
from vfassoc.training.recipes import RECIPES, load_recipe
from vfassoc.training.run import train

close = torch.testing.assert_close
PROTOCOL = dict(replicates=100, verification_trials=200, matching_trials=100, candidates=[2], shortlists=[])
ROWS = {'dimnet-i': 'dimnet-i', 'dimnet-g': 'dimnet-g', 'dimnet-ig': 'dimnet-ig', 'dimnet-ign': 'dimnet'} # recipe: method


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A corpus of vectors in which voice and face of a person share a part."
    folder = tmp_path_factory.mktemp('rows')
    d = drawn(people=60, videos=4, gender=lambda t: np.where(t.number % 2, 'm', 'f'),
              nationality=lambda t: np.where(t.number % 3, 'UK', 'USA'))
    write_vectors(here(folder).data/'mine', d)
    return folder


def little(name, **more):
    return load_recipe(name, {**{k: v for k, v in LITTLE.items() if k != 'method.tau'}, 'corpus': 'mine',
                              'model.voice_dim': 4, 'model.face_dim': 6, 'train.peak_lr': .01,
                              'train.total_samples': 3200, 'method.tau': .1, **more})


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
    for weight, target in ((m.weight, [1, 0, 0, 1]), (m.weight_gender, [1, 1, None, 0]), (m.weight_age, [None, 0, 1, 0])):
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
    (DIMNetGConfig(), {}, '0 values of gender for 4'), (DIMNetGConfig(), dict(gender=['m']*4), '1 different values of gender'),
    (DIMNetConfig(covariates=('nationality',)), dict(nationality=['unknown']*4), '0 different values of nationality')])
def test_a_covariate_that_nobody_has_is_one_line(cfg, covariates, word):
    with pytest.raises(ConfigError, match=word) as e: dimnet(cfg, **covariates)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('covariates', [[], ['gender', 'gender'], ['hair']])
def test_impossible_covariates(covariates):
    with pytest.raises(ConfigError, match='covariates'): load_recipe('dimnet-ign-demo', {'method.covariates': covariates})
