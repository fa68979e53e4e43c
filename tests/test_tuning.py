"A study: what is drawn, what counts, what a death leaves, who may resume it."
import json, os, signal
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch

import tiny_grid
from clean_process import Another, command as vfassoc, run_all
from vfassoc.cli import main
from vfassoc.core import ConfigError, CorpusError, RunError, read_json, to_dict, write_json
from vfassoc.experiments import tuning
from vfassoc.experiments.tuning import (SPACE, TuneConfig, other_video_auc, search_space, study_table, trial_settings,
                                        tune)
from vfassoc.methods.base import METHODS
from vfassoc.models.fusion import FusionConfig, FusionEncoder
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training.loop import DivergedError
from vfassoc.training.recipes import RECIPES, load_recipe

CHANGES = {**tiny_grid.CHANGES, 'train.total_samples': 48, 'train.trace': False}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tuning')
    tiny_grid.ini(folder)
    write_corpus(folder/'data/tiny', SynthConfig(**tiny_grid.SYNTH), 0)
    return folder

def here(home): return tiny_grid.here(home)
def cid(**changes): return load_recipe('cid-demo', {**CHANGES, **changes})
def quiet(line): pass

@pytest.fixture
def instant(monkeypatch):
    "Trials that take no time: their score is a function of what was drawn."
    def trained(folder, trial, corpus, settings):
        return float(np.exp(-(np.log(trial.params['method.tau'] if 'method.tau' in trial.params else .1) + 2)**2)), 0
    monkeypatch.setattr(tuning, '_train_trial', trained)

def command(home, study, *more):
    changes = [x for k, v in CHANGES.items() for x in ('--set', f'{k}={json.dumps(v)}')]
    return ['--settings', str(home/'settings.ini'), 'tune', 'cid-demo', '--run', str(study), *changes, *more]


# ---- the space

def draw(recipe, rng):
    out = {}
    for field, (how, values) in search_space(recipe).items():
        low, high = values[0], values[-1]
        out[field] = (float(np.exp(rng.uniform(np.log(low), np.log(high)))) if how == 'log' else
                      rng.uniform(low, high) if how == 'uniform' else values[rng.integers(len(values))])
    return out

@pytest.mark.parametrize('name', RECIPES)
def test_whatever_is_drawn_is_a_recipe(name):
    base, rng = load_recipe(name), np.random.default_rng(0)
    for _ in range(20):
        changes = trial_settings(draw(base, rng), base, 1000)
        r = load_recipe(name, changes)
        assert r.train.total_samples <= base.train.total_samples and r.corpus == base.corpus
        for field, x in changes.items():
            if field.endswith(('num_prototypes', 'clusters')): assert max(x if isinstance(x, list) else [x]) <= 1000

def test_every_method_is_searched_and_every_row_is_a_field():
    searched = {m for m, *_ in SPACE if m}
    assert searched == {n for n in METHODS.known if n in {load_recipe(r).method.name for r in RECIPES}}
    for name, field, how, values, needs in SPACE:
        table, key = field.split('.')
        for r in (load_recipe(x) for x in RECIPES):
            if name in ('', r.method.name):
                part = r.method.config if table == 'method' else getattr(r, table)
                assert hasattr(part, key) and all(hasattr(r.method.config, k) for k in needs)

def test_a_field_that_a_recipe_does_not_use_is_not_searched():
    assert 'method.margin' not in search_space(load_recipe('faa-demo'))
    assert 'method.margin' in search_space(load_recipe('faa-demo', {'method.alignment_loss': 'contrastive'}))
    assert 'model.dim' not in search_space(load_recipe('cid-voxceleb1')) # ResNet-34 has 512
    assert 'method.num_prototypes' not in search_space(
        load_recipe('cmpc-demo', {'method.prototypes': False, 'method.recalibration': False}))


# ---- the objective

def test_other_video_auc_is_a_loop_over_pairs_of_two_videos():
    g = np.random.default_rng(0)
    who, s = g.integers(0, 4, 12), g.integers(0, 5, (12, 12)).astype(float)
    pos = [s[i, j] for i in range(12) for j in range(12) if i != j and who[i] == who[j]]
    neg = [s[i, j] for i in range(12) for j in range(12) if who[i] != who[j]]
    want = np.mean([(p > n) + .5*(p == n) for p in pos for n in neg])
    assert abs(other_video_auc(s, who) - want) < 1e-12
    s[np.diag_indices(12)] = 99 # of one video: not counted
    assert abs(other_video_auc(s, who) - want) < 1e-12

def test_one_video_an_identity_is_an_error():
    with pytest.raises(CorpusError, match='3 videos'): other_video_auc(np.eye(3), np.array(['a', 'b', 'c']))

class Given(torch.nn.Module):
    "Encoders that return their input."
    def encode_voice(self, x): return x
    def encode_face(self, x): return x

def scored(monkeypatch, recipe, v, f, who, scorer=None):
    "The validation score of a run whose embeddings are given; the batches come in another order."
    def pairs(split, augment):
        assert (split, augment) == ('valid', False)
        return Pairs()
    class Pairs:
        videos = pd.DataFrame({'identity': who})
        def __len__(self): return len(who)
    order = np.random.default_rng(1).permutation(len(who))
    parts = [torch.from_numpy(x) for x in np.array_split(order, 3)]
    source = SimpleNamespace(pairs=pairs, batches=lambda data, plan: [(v[i], f[i], i) for i in parts])
    monkeypatch.setattr(tuning, 'open_source', lambda *a: source)
    run = SimpleNamespace(recipe=recipe, model=Given(), pair_scorer=scorer)
    return tuning.validation_score(run, None, SimpleNamespace(torch_device=torch.device('cpu')))

def test_a_run_is_scored_as_it_compares(monkeypatch):
    "Cosine, the fusion transformer's log-odds, or each modality alone: on validation videos, by other videos."
    torch.manual_seed(0)
    who = np.array(list('aabbccddee'))
    v, f = (torch.nn.functional.normalize(torch.randn(10, 8), dim=1) for _ in range(2))
    def close(got, scores): assert abs(got - other_video_auc(scores.numpy(), who)) < 1e-12
    close(scored(monkeypatch, load_recipe('cid-demo'), v, f, who), v @ f.T)
    fusion = FusionEncoder(FusionConfig(dim=8, layers=1, heads=2, inner=8)).eval()
    with torch.no_grad(): odds = torch.stack([fusion.log_odds(x.expand(10, -1), f) for x in v])
    close(scored(monkeypatch, load_recipe('faa-demo'), v, f, who, fusion), odds)
    alone = [other_video_auc((z @ z.T).numpy(), who) for z in (v, f)]
    got = scored(monkeypatch, load_recipe('pretrain-demo'), v, f, who)
    assert abs(got - np.mean(alone)) < 1e-12


# ---- budget and resuming

def test_a_study_resumes_and_counts_what_is_finished(home, tmp_path, instant):
    for n, sampler in ((3, 'random'), (7, 'random'), (7, 'random')):
        t = tune(cid(), tmp_path/'a', here(home), TuneConfig(trials=n, sampler=sampler), say=quiet)
        assert (t.state == 'complete').sum() == n == len(t)
    once = tune(cid(), tmp_path/'b', here(home), TuneConfig(trials=7, sampler='random'), say=quiet)
    assert once.drop(columns='seconds').equals(t.drop(columns='seconds')) # the same draws, interrupted or not
    assert t['method.tau'].nunique() == 7
    other = tune(cid(), tmp_path/'c', here(home), TuneConfig(trials=7, sampler='random', seed=1), say=quiet)
    assert set(other['method.tau']).isdisjoint(t['method.tau'])

def test_tpe_finds_the_good_end_of_the_range(home, tmp_path, instant):
    t = tune(cid(), tmp_path/'a', here(home), TuneConfig(trials=40), say=quiet)
    away = abs(np.log(t['method.tau']) + 2)
    assert away[-15:].mean() < away[:10].mean()
    best = load_recipe(tmp_path/'a/best.json')
    assert best.method.config.tau == t['method.tau'][t.auc.idxmax()] and best.name == 'CID, tuned'

def dying(home, study):
    "Tune, with SIGKILL after the training of the second trial, before it is scored."
    score, seen = tuning.validation_score, []
    def deadly(*a):
        seen.append(1)
        if len(seen) == 2: os.kill(os.getpid(), signal.SIGKILL)
        return score(*a)
    tuning.validation_score = deadly
    tune(cid(), study, here(home), TuneConfig(trials=3, sampler='random'), say=quiet)

def test_a_killed_trial_is_failed_and_its_settings_run_again(home, tmp_path):
    (code,), (said,) = run_all([(dying, (home, tmp_path/'s'), {})], tmp_path/'said')
    assert code == -9, said[-400:]
    history = (tmp_path/'s/trial0001/history.csv').read_bytes()
    t = tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=3, sampler='random'), say=quiet)
    assert t.state.tolist() == ['complete', 'interrupted', 'complete', 'complete']
    fields = [c for c in t if '.' in c]
    assert t.loc[1, fields].equals(t.loc[2, fields]) and not t.loc[3, fields].equals(t.loc[2, fields])
    assert (tmp_path/'s/trial0001/history.csv').read_bytes() == history # not trained again
    assert not (tmp_path/'s/trial0002').exists() and not list((tmp_path/'s').rglob('*.safetensors'))
    whole = tune(cid(), tmp_path/'w', here(home), TuneConfig(trials=3, sampler='random'), say=quiet)
    left = t[t.state == 'complete'].drop(columns=['number', 'seconds']).reset_index(drop=True)
    assert whole.drop(columns=['number', 'seconds']).equals(left)

def test_two_commands_work_on_one_study(home, tmp_path):
    both = [Another(tmp_path, vfassoc, *command(home, tmp_path/'s', '--trials', '4')) for _ in range(2)]
    assert [p.end(300) for p in both] == [0, 0], [p.said for p in both]
    t = study_table(tmp_path/'s')
    assert t.state.tolist() == ['complete']*4 and t['train.peak_lr'].nunique() == 4
    assert 'best of 4 trials' in ''.join(p.said for p in both)

def test_workers_share_a_study_and_a_failed_trial_ends_none(study, home):
    (study/'trial0001').mkdir()
    (study/'trial0001/letter.txt').write_text('dear') # this trial cannot be written
    t = tune(cid(), study, here(home), TuneConfig(trials=4), jobs=2, say=quiet)
    assert t.state.tolist() == ['complete', 'failed', 'complete', 'complete'] and 'letter.txt' in t.reason[1]

def test_dask_workers_share_a_study(home, tmp_path):
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        t = tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=3), jobs=2, scheduler=cluster.scheduler_address,
                 say=quiet)
    assert t.state.tolist() == ['complete']*3

def test_what_diverges_counts(home, tmp_path, monkeypatch):
    def diverging(recipe, *a, **kw): raise DivergedError('the loss is not finite at step 3')
    monkeypatch.setattr(tuning, 'train', diverging)
    t = tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=2), say=quiet)
    assert t.state.tolist() == ['diverged']*2 and not (tmp_path/'s/best.json').exists()

def test_a_trial_that_fails_is_recorded_and_the_others_go_on(home, tmp_path, monkeypatch):
    faults = [RunError('x: the disk is full'), ValueError('two\nlines'), CorpusError('y: gone')]
    def trained(folder, trial, *a):
        if trial.number < 3: raise faults[trial.number]
        return .5, 0
    monkeypatch.setattr(tuning, '_train_trial', trained)
    lines = []
    t = tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=4), say=lines.append)
    reasons = ['x: the disk is full', 'ValueError: two lines', 'y: gone', '']
    assert t.state.tolist() == ['failed']*3 + ['complete'] and t.reason.tolist() == reasons
    assert len(lines) == 4 and all(r in line and '\n' not in line for r, line in zip(reasons, lines))
    assert pd.read_csv(tmp_path/'s/trials.csv').reason.fillna('').tolist() == reasons
    t = tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=4), say=quiet) # others in their place
    assert t.state.tolist() == ['failed']*3 + ['complete']*4

def test_a_wrong_setting_ends_the_study_at_once(home, tmp_path, monkeypatch):
    def refused(*a): raise ConfigError('recipe x: tau = 0; allowed: above 0')
    monkeypatch.setattr(tuning, '_train_trial', refused)
    with pytest.raises(ConfigError, match='tau = 0'):
        tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=3), say=quiet)
    assert study_table(tmp_path/'s').state.tolist() == ['failed']

def test_a_study_without_a_score_says_why(home, tmp_path, monkeypatch, capsys):
    def broken(*a): raise RunError('x: the disk is full')
    monkeypatch.setattr(tuning, '_train_trial', broken)
    assert main(command(home, tmp_path/'s', '--trials', '2')) == 2
    assert 'no trial was scored (the last: x: the disk is full)' in capsys.readouterr().err

def test_ctrl_c_leaves_a_trial_that_goes_on(home, tmp_path, monkeypatch):
    def stopped(*a): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(tuning, '_train_trial', stopped)
        with pytest.raises(KeyboardInterrupt): tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=1), say=quiet)
    monkeypatch.setattr(tuning, '_train_trial', lambda *a: (.5, 0))
    t = tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=1), say=quiet)
    assert t.state.tolist() == ['interrupted', 'complete'] and t['method.tau'].nunique() == 1


# ---- bad input

@pytest.fixture
def study(home, tmp_path, instant):
    tune(cid(), tmp_path/'s', here(home), TuneConfig(trials=1), say=quiet)
    return tmp_path/'s'

@pytest.mark.parametrize('asked, words', [
    (lambda: (load_recipe('kim-demo', CHANGES), TuneConfig()), r"method\.name = 'cid', asked for 'kim'"),
    (lambda: (cid(**{'train.batch_size': 4}), TuneConfig()), r'train\.batch_size = 8, asked for 4'),
    (lambda: (cid(), TuneConfig(sampler='random')), "sampler = 'tpe', asked for 'random'"),
    (lambda: (cid(), TuneConfig(seed=3)), 'seed = 0, asked for 3')])
def test_a_study_of_something_else_is_refused(home, study, asked, words):
    recipe, cfg = asked()
    before = {p: p.read_bytes() for p in study.rglob('*') if p.is_file()}
    with pytest.raises(RunError, match=words): tune(recipe, study, here(home), cfg, say=quiet)
    assert before == {p: p.read_bytes() for p in study.rglob('*') if p.is_file()}

def test_a_study_of_another_corpus_under_the_same_name_is_refused(home, study):
    about = read_json(study/'study.json')
    write_json(study/'study.json', {**about, 'corpus_hash': 'f'*16})
    with pytest.raises(RunError, match="corpus_hash = 'ffff"): tune(cid(), study, here(home), TuneConfig(), say=quiet)

@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2] + b'garbage\n' + b[len(b)//2:], lambda b: b'\0\1\n' + b,
                                    lambda b: b'[]\n', lambda b: b'{"op_code": 77}\n'])
def test_a_damaged_journal_is_one_line(home, study, damage):
    journal = study/'journal.log'
    journal.write_bytes(damage(journal.read_bytes()))
    with pytest.raises(RunError, match='journal.log') as e: tune(cid(), study, here(home), TuneConfig(), say=quiet)
    assert '\n' not in str(e.value) and len(str(e.value)) < 400

def test_a_folder_that_holds_something_else_is_refused(home, tmp_path):
    (tmp_path/'x').mkdir()
    (tmp_path/'x/letter.txt').write_text('dear')
    with pytest.raises(RunError, match='letter.txt'): tune(cid(), tmp_path/'x', here(home), TuneConfig(), say=quiet)

@pytest.mark.parametrize('trials', ['0', '-3'])
def test_a_budget_of_nothing_is_one_line(home, tmp_path, capsys, trials):
    assert main(command(home, tmp_path/'s', '--trials', trials)) == 2
    err = capsys.readouterr().err
    assert f'trials = {trials}' in err and err.count('\n') == 1 and not (tmp_path/'s').exists()

@pytest.mark.parametrize('more, words', [(('--sampler', 'grid'), "sampler = 'grid'"), (('--jobs', '0'), 'jobs = 0'),
                                         (('--corpus', 'nowhere'), 'nowhere')])
def test_other_wrong_options_are_one_line(home, tmp_path, capsys, more, words):
    assert main(command(home, tmp_path/'s', *more)) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1

def test_the_best_settings_are_a_recipe_that_train_takes(home, study, capsys):
    assert main(['--settings', str(home/'settings.ini'), 'train', str(study/'best.json'), '--show']) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == to_dict(load_recipe(study/'best.json')) and shown['corpus'] == 'tiny'
