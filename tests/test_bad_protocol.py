"Impossible settings of `evaluate`: each is one error line before any embedding, and none avoids the leakage check."
import os, shutil

import numpy as np
import pandas as pd
import pytest
import soundfile

from test_bad_media import stranger
from test_corpus_bad_input import one_line
from tiny_grid import SYNTH, here, ini, page
from vfassoc.cli import main
from vfassoc.core import ConfigError, RunError, load_settings, open_run, read_json
from vfassoc.corpus.manifest import scan
from vfassoc.evaluation.protocol import ProtocolConfig, assert_candidates
from vfassoc.evaluation.run import evaluate_run, split_of, unheard
from vfassoc.evaluation.run_published import OF_LISTS, lists_protocol
from vfassoc.experiments.tables import read_scores
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training.extract import make_features
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import asked_recipe, run_path, train

SMALL = dict(replicates=100, verification_trials=200, matching_trials=100, candidates=[2])

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "24 drawn people and a run that has hardly learnt."
    home = tmp_path_factory.mktemp('protocol')
    write_corpus(home/'data/tiny', SynthConfig(**{**SYNTH, 'videos_per_identity': 2}), 1)
    train(load_recipe('cid-demo', {'corpus': 'tiny', 'data.crop_seconds': 1., 'data.face_size': 32, 'model.dim': 8,
                                   'train.total_samples': 16, 'train.batch_size': 8, 'train.lr_warmup': 8}),
          home/'runs/cid-demo', here(home), quiet=True)
    return home

@pytest.fixture
def corpus(home, tmp_path):
    "A copy whose splits a test may rewrite."
    shutil.copytree(home/'data/tiny', tmp_path/'data/tiny')
    return tmp_path/'data/tiny'

def moved(corpus, old, new):
    "Mark the people of one split as those of another; the people."
    lines = [line.rsplit(' ', 1) for line in (corpus/'identity_splits.txt').read_text().splitlines()]
    (corpus/'identity_splits.txt').write_text(''.join(f'{name} {new if n == old else n}\n' for name, n in lines))
    return [name for name, n in lines if n == old]

def score(home, corpus, **changes):
    return evaluate_run(home/'runs/cid-demo', here(home), {**SMALL, **changes}, corpus=str(corpus))

def test_seen_without_a_seen_split_is_an_error(home, capsys):
    "The command of the defect: it scored the unseen split and called it seen-heard."
    assert main(['--settings', str(ini(home)), 'evaluate', str(home/'runs/cid-demo'), '--set', 'protocol=seen']) == 2
    line, = capsys.readouterr().err.strip().splitlines()[-1:]
    assert f'{home/"data/tiny"}: no video of the seen split' in line and 'mark people with 3' in line
    assert not (home/'runs/cid-demo/metrics.json').exists()

def test_seen_scores_the_seen_split_and_marks_it(home, corpus):
    people = moved(corpus, '1', '3') # those whom the run was trained on
    r = score(home, corpus, protocol='seen')
    assert f'seen-heard protocol: {len(people)} of {len(people)} identities were trained on' in r.notes
    assert r.protocol['identities'] == len(people) and read_json(home/'runs/cid-demo/provenance.json')['evaluated'][
        'split'] == 'seen'
    assert set(read_scores([home/'runs/cid-demo']).method) == {'CID, seen-heard'}
    unseen = score(home, corpus) # the test people of the same corpus: nobody of them was trained on
    assert not any('seen-heard' in n
                   for n in unseen.notes) and set(read_scores([home/'runs/cid-demo']).method) == {'CID'}

@pytest.mark.parametrize('old', ['1', '2'])
def test_no_other_case_is_let_through(home, corpus, old):
    moved(corpus, '4', '3')
    moved(corpus, old, '4')
    with pytest.raises(RunError, match=r'^evaluation: [1-9]\d* of \d+ ') as e: score(home, corpus)
    one_line(e)

@pytest.mark.parametrize('protocol, split', [('seen', 'test'), ('seen', 'train'), ('seen', 'valid'),
                                             ('unseen', 'seen')])
def test_protocol_and_split_go_together(protocol, split):
    assert split_of('unseen') == 'test' and split_of('seen') == 'seen' and split_of('unseen', 'valid') == 'valid'
    with pytest.raises(ConfigError, match=f"split = '{split}'"): split_of(protocol, split)

# ---- more candidates than people

@pytest.mark.parametrize('candidates', [[100_000], [2, 11]])
def test_more_candidates_than_people_are_refused_at_once(home, monkeypatch, candidates):
    def never(*a, **kw): raise AssertionError('embedded first')
    monkeypatch.setattr('vfassoc.evaluation.run.embed', never)
    with pytest.raises(ConfigError) as e: score(home, home/'data/tiny', candidates=candidates)
    assert f'candidates = {candidates[-1]}; allowed: 2 to 8' in one_line(e)

def test_a_few_too_many_are_left_out_with_a_note(home):
    r = score(home, home/'data/tiny', candidates=[2, 9, 10])
    assert 'matching: 1:9 1:10 left out: there are 8 identities' in r.notes and set(r.table.candidates.dropna()) == {2}
    assert assert_candidates(ProtocolConfig(), 10) == assert_candidates(ProtocolConfig(candidates=(2, 50)), 50) == ()

# ---- what lists decide

@pytest.mark.parametrize('key, value', [('protocol', 'seen'), ('strata', ['U']), ('same_video', 'exclude'),
                                        ('gallery', 100), ('verification_trials', 9)])
def test_what_published_lists_decide_cannot_be_set(key, value):
    with pytest.raises(ConfigError, match=key) as e: lists_protocol({key: value})
    assert '--lists' in one_line(e)
    assert lists_protocol({k: getattr(ProtocolConfig(), k) for k in OF_LISTS}) == ProtocolConfig()

# ---- long recordings

def test_what_of_long_recordings_is_not_heard(home, corpus, capsys):
    path = corpus/scan(corpus, quiet=True).media('voice', 'test').path[0]
    x, rate = soundfile.read(path)
    soundfile.write(path, np.resize(x, 90*rate), rate)
    r = score(home, corpus)
    said, = (n for n in r.notes if 'longer than 60 s' in n)
    assert '1 of ' in said and '90 s' in said and 'middle 1 s' in said and said in capsys.readouterr().err
    assert said in read_json(home/'runs/cid-demo/metrics.json')['notes']
    assert not any('longer than' in n for n in score(home, home/'data/tiny').notes)
    assert 'a few seconds' in unheard(pd.DataFrame({'duration': [90.]}),
                                      None)[0] and unheard(pd.DataFrame({'duration': [60.]}), 1.) == []

# ---- commands beside a run that is there

def test_the_report_goes_on_from_the_run_that_is_there(home, monkeypatch):
    "`report train -p recipe=demo` beside runs/cid-demo, which was trained with changes: the report runs, no error."
    monkeypatch.setenv('VFASSOC_SETTINGS', str(ini(home)))
    before = (home/'runs/cid-demo/config.json').read_text()
    _, text, figures = page('train', home, recipe='cid-demo', evaluate=False)
    assert 'demo: ' in text and '"tiny"' in text and figures and (
        home/'runs/cid-demo/config.json').read_text() == before

def test_which_recipe_is_asked_for(home):
    s, run = here(home), home/'runs/cid-demo'
    assert asked_recipe('cid-demo', run, {}, s).corpus == asked_recipe('cid-demo', run, None, s).corpus == 'tiny'
    assert asked_recipe('cid-demo', run, {'train.seed': 3}, s) == load_recipe('cid-demo', {'train.seed': 3})
    assert asked_recipe('cid-demo', home/'runs/new', {}, s) == load_recipe('cid-demo', {'train.seed': s.seed})

def test_another_recipe_needs_another_run(home):
    with pytest.raises(RunError, match=rf'{home}/runs/cid-demo: .* = .*asked for ') as e:
        train(load_recipe('cid-demo', {'corpus': 'tiny'}), home/'runs/cid-demo', here(home), quiet=True)
    assert str(home/'runs/cid-demo') in one_line(e)

def test_features_that_are_there_are_refused_at_once(home, monkeypatch):
    def never(*a, **kw): raise AssertionError('loaded an encoder first')
    monkeypatch.setattr('vfassoc.training.extract.find_encoder', never)
    (home/'data/f.npz').write_bytes(b'')
    with pytest.raises(RunError, match='exists') as e: make_features('cid-demo', 'tiny', 'f.npz', here(home))
    assert str(home/'data/f.npz') in one_line(e)

# ---- what may not be read

@pytest.fixture
def closed(tmp_path):
    for p in (tmp_path, *tmp_path.parents):
        if p.stat().st_uid == os.geteuid() and p.stat().st_mode & 0o077 == 0: p.chmod(0o711)
    (tmp_path/'there').mkdir()
    yield tmp_path/'there'
    (tmp_path/'there').chmod(0o755)

def test_settings_that_may_not_be_read(closed, monkeypatch):
    path = ini(closed)
    path.chmod(0)
    monkeypatch.chdir(closed)
    monkeypatch.delenv('VFASSOC_SETTINGS', raising=False)
    for given in (None, path):
        with stranger(), pytest.raises(ConfigError) as e: load_settings(given)
        assert f'{path}: cannot be read' in one_line(e)

def test_a_run_that_may_not_be_read(closed):
    (closed/'config.json').write_text('{}')
    closed.chmod(0)
    with stranger():
        assert run_path(str(closed), here(closed)) == closed
        with pytest.raises(RunError) as e: open_run(closed)
    assert f'{closed}: cannot be read' in one_line(e)
