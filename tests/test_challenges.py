"Trial tables scored, heard and unheard languages, submissions: written, scored as the organizers do, and refused."
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from vfassoc.cli import main
from vfassoc.core import CorpusError, RunError
from vfassoc.evaluation.metrics import ScoreError, auc, eer
from vfassoc.evaluation.protocol import ProtocolConfig, evaluate
from vfassoc.evaluation.trials import Verification
from vfassoc.exchange.feature_csv import write_numbers
from vfassoc.exchange.row_trials import RowScores, media_tables, score_table, trials_of
from vfassoc.exchange.submissions import (challenge_eer, check_submission, distances, join_submissions, read_scores,
                                          score_name, score_text, write_submission)
from vfassoc.exchange.trial_tables import TrialTable, load_trials, save_trials

FAST = ProtocolConfig(replicates=100)


def table(n=60, seed=0, named=False, form='fame', **about):
    "Rows with keys and labels; the score of a row is drawn with them."
    rng = np.random.default_rng(seed)
    label = rng.random(n) < .5
    rows = pd.DataFrame(dict(key=[f'k{i}' for i in range(n)], label=np.where(label, '1', '0')))
    if named:
        who = rng.integers(0, 8, n)
        other = np.where(label, who, (who + rng.integers(1, 8, n)) % 8)
        rows['voice_identity'], rows['face_identity'] = who.astype(str), other.astype(str)
    x = rng.standard_normal((n, 3)).astype(np.float32)
    about = dict(form=form, version='v1', language='Urdu', heard='unheard') | about
    return TrialTable('v1_Urdu_unheard', x, x + 1, rows, about=about), label + rng.standard_normal(n)


# ---- scores

def test_named_tables_are_scored_by_the_evaluation(tmp_path):
    t, s = table(named=True)
    got = score_table(RowScores(s), t, FAST, trained_on=['nobody']).scores
    at = np.arange(len(t))
    want = evaluate(RowScores(s), *media_tables(t), FAST, None, ['nobody'], [Verification('U', at, at, t.label)],
                    quiet=True).scores
    assert [(x['metric'], x['value'], x['low'], x['high'], x['identities']) for x in got] == [
        (x['metric'], x['value'], x['low'], x['high'], x['identities']) for x in want]
    with pytest.raises(RunError, match='were trained on'): score_table(RowScores(s), t, FAST, trained_on=['3'])


def test_anonymous_tables_draw_rows():
    t, s = table(400)
    r = score_table(RowScores(s), t, ProtocolConfig(replicates=500))
    a, e = r.scores
    assert a['value'] == auc(t.label, s) and e['value'] == eer(t.label, s)
    assert a['identities'] is None and 'too narrow' in r.notes[0]
    rng = np.random.default_rng(0)
    def again():
        w = rng.integers(0, 400, 400)
        return auc(t.label[w], s[w])
    low, high = np.quantile([again() for _ in range(500)], [.025, .975])
    assert abs(a['low'] - low) < .01 and abs(a['high'] - high) < .01


def test_rows_that_share_a_vector_are_drawn_together():
    "Ten trials of one voice, whose scores have a part in common, are not ten independent trials."
    t, s = table(200)
    shared = replace(t, voice=np.tile(t.voice[:20], (10, 1)))
    s = s + 3*np.tile(np.random.default_rng(1).standard_normal(20), 10)
    label = np.where(np.arange(200) % 20 < 10, '1', '0')
    t, shared = (replace(x, rows=x.rows.assign(label=label)) for x in (t, shared))
    together, apart = (score_table(RowScores(s), x, ProtocolConfig(replicates=500)).scores[0] for x in (shared, t))
    assert together['value'] == apart['value']
    assert together['high'] - together['low'] > 1.5*(apart['high'] - apart['low'])


def test_a_block_is_right_if_its_own_identity_wins():
    rows = pd.DataFrame(dict(voice_identity=['a', 'x', 'b', 'x'], face_identity=['c', 'a', 'b', 'd']))
    x = np.eye(4, dtype=np.float32)
    t = TrialTable('matching_2', x, x, rows, block=2)
    m = trials_of(t)
    assert m.probe.tolist() == [0, 2] and m.candidates.tolist() == [[1, 0], [2, 3]]

    class Scorer:
        "Scores that depend on both rows."
        def pairs(self, voice, face):
            return np.array([[0, 1, 0, 0], [9, 9, 9, 9], [0, 0, 1, 2], [9, 9, 9, 9]])[voice, face]
    found = score_table(Scorer(), t, FAST).scores
    assert [(s['metric'], s['value'], s['candidates'], s['trials']) for s in found] == [('accuracy', .5, 2, 2)]


def test_tables_without_labels_are_not_scored():
    t, s = table()
    with pytest.raises(CorpusError, match='no labels'):
        score_table(RowScores(s), replace(t, rows=t.rows.drop(columns='label')), FAST)
    with pytest.raises(ScoreError, match='pairs of a row'): RowScores(s).pairs(np.arange(2), np.arange(2)[::-1])


def test_a_damaged_table_is_noticed(tmp_path):
    path = save_trials(tmp_path, table()[0])
    raw = path.read_bytes()
    for damage in (raw[:-30], raw.replace('k7'.encode('utf-32-le'), 'k8'.encode('utf-32-le'), 1), b'PK'):
        path.write_bytes(damage)
        with pytest.raises(CorpusError, match=r'v1_Urdu_unheard\.npz'): load_trials(path)
    with pytest.raises(CorpusError, match='no such trial table'): load_trials(tmp_path/'x.npz')


# ---- the organizers' rule

def test_their_eer(seeds=20):
    for seed in range(seeds):
        t, s = table(101, seed)
        d = np.round(3 - s, 1 if seed % 2 else 6) # ties
        fpr, tpr, _ = roc_curve(t.label, -d)
        assert challenge_eer(t.label, d) == brentq(lambda x: 1. - x - interp1d(fpr, tpr)(x), 0., 1.)
        assert challenge_eer(t.label, d) == pytest.approx(eer(t.label, -d), abs=1e-6)
    with pytest.raises(ScoreError): challenge_eer([1, 1], [0, 1])
    with pytest.raises(ScoreError): challenge_eer([1, 0], [0, np.nan])


def test_distances_keep_the_order():
    s = np.random.default_rng(0).uniform(-1, 1, 50)
    for d in (distances(s, True), distances(100*s)):
        assert (d >= 0).all() and (np.argsort(d) == np.argsort(-s)).all()
    assert distances([1.0000001], True).tolist() == [0] # rounding beyond one


def test_names():
    t, _ = table()
    assert score_name(t) == 'sub_score_v1_Urdu_unheard.txt'
    flag, _ = table(form='flag', version='v4', language='Bangla', track='no_gender')
    assert score_name(flag) == 'no_gender/sub_score_v4_Bangla_unheard.txt'
    for change, why in ((dict(form='list'), 'no challenge'), (dict(version=''), 'version')):
        with pytest.raises(CorpusError, match=why): score_name(replace(t, about=t.about | change))
    with pytest.raises(CorpusError, match='no keys'): score_name(replace(t, rows=t.rows.drop(columns='key')))


def submitted(path, t, text):
    write_submission(path, {score_name(t): text})
    return path


def test_a_good_submission(tmp_path):
    t, s = table()
    d = distances(s)
    path = submitted(tmp_path/'s.zip', t, score_text(t, d))
    found = check_submission(path, [t], FAST)
    assert found.eer.tolist() == [challenge_eer(t.label, np.round(d, 6))] and (found.low < found.high).all()
    first = path.read_bytes()
    assert submitted(path, t, score_text(t, d)).read_bytes() == first
    with zipfile.ZipFile(path) as z: lines = z.read('sub_score_v1_Urdu_unheard.txt').decode().splitlines()
    assert lines[3] == f'k3 {d[3]:.6f}' and len(lines) == 60
    blind = replace(t, rows=t.rows.drop(columns='label'))
    assert check_submission(path, [blind], FAST).eer.isna().all()
    with zipfile.ZipFile(path) as z: z.extractall(tmp_path/'folder')
    assert check_submission(tmp_path/'folder', [t], FAST).trials.tolist() == [60]


BAD = {
    'keys are missing': lambda x: x.split('\n', 1)[1],
    "'k1' is there twice": lambda x: x.replace('k0 ', 'k1 ', 1),
    'keys are not of the test': lambda x: x + 'other 1.0\n',
    'line 1 is not a key, one blank': lambda x: x.replace(' ', '  ', 1),
    'line 2 is not a key, one blank': lambda x: x.replace('k1 ', 'k1\t', 1),
    'line 61 is not a key': lambda x: x + '\n',
    "'nan' is no finite number": lambda x: 'k0 nan\n' + x.split('\n', 1)[1],
    "'inf' is no finite number": lambda x: 'k0 inf\n' + x.split('\n', 1)[1],
    "'0,5' is no finite number": lambda x: 'k0 0,5\n' + x.split('\n', 1)[1],
    'scores are below 0': lambda x: x.replace(' ', ' -'),
    'all scores are equal': lambda x: ''.join(f'k{i} 0.5\n' for i in range(60))}


@pytest.mark.parametrize('why', BAD)
def test_what_would_be_misread_is_refused(tmp_path, why):
    t, s = table()
    path = submitted(tmp_path/'s.zip', t, BAD[why](score_text(t, distances(s) + .5)))
    with pytest.raises(RunError, match=why): check_submission(path, [t], FAST)


def test_a_sign_the_wrong_way_round_is_refused(tmp_path):
    t, s = table()
    with pytest.raises(RunError, match='above 50 %: higher seems to mean the same'):
        check_submission(submitted(tmp_path/'s.zip', t, score_text(t, distances(-s))), [t], FAST)


def test_names_in_the_zip_file(tmp_path):
    t, s = table()
    text = score_text(t, distances(s))
    for name in ('sub_score_v1_Urdu_heard.txt', 'x/sub_score_v1_Urdu_unheard.txt', '../sub_score_v1_Urdu_unheard.txt'):
        write_submission(tmp_path/'s.zip', {name: text})
        with pytest.raises(RunError, match='no such file is asked for .*; sub_score_v1_Urdu_unheard.txt: is missing'):
            check_submission(tmp_path/'s.zip', [t], FAST)
    (tmp_path/'s.zip').write_bytes(b'junk')
    with pytest.raises(CorpusError, match='not a zip file'): check_submission(tmp_path/'s.zip', [t], FAST)
    with pytest.raises(CorpusError, match='cannot be read'): check_submission(tmp_path/'gone.zip', [t], FAST)
    with pytest.raises(RunError, match='answered by two runs'): join_submissions([{'a': ''}, {'a': ''}])


def test_line_ends_of_windows_are_read():
    assert read_scores('a 0.5\r\nb 1\r\n') == ({'a': .5, 'b': 1.}, [])


# ---- from features to a zip file

def write_world(folder, trained, other, shared, seed=0):
    "Training features of a language, and two tests, of people whose voice and face share a part."
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    def both(who, spoken):
        noise = rng.standard_normal((len(who), 8)), rng.standard_normal((len(who), 8))
        shift = np.where(np.arange(8) < 2, spoken, 0)
        return [x + 3*np.pad(shared[w], ((0, 0), (0, 4))) + shift for x, w in zip(noise, (who[:, 0], who[:, 1]))]
    people = np.repeat(np.arange(24), 6)
    for m, x in zip(('voices', 'faces'), both(np.column_stack([people]*2), 0)):
        write_numbers(folder/f'{trained}_{m}_train.csv', x, people)
    truths = {}
    for lang, part, spoken in ((trained, 'test', 0), (other, 'unheard_test', 1)):
        y = np.arange(80) % 3 == 0
        a = rng.integers(24, 40, 80)
        who = np.column_stack([a, np.where(y, a, 24 + (a - 23) % 16)])
        for m, x in zip(('voices', 'faces'), both(who, spoken)): write_numbers(folder/f'{lang}_{m}_{part}.csv', x)
        truths[lang] = y
    return truths


def test_two_runs_answer_four_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shared = np.random.default_rng(7).standard_normal((40, 4))
    for trained, other in (('English', 'Urdu'), ('Urdu', 'English')):
        truths = write_world(tmp_path/'f'/'v1'/trained, trained, other, shared)
        for lang, y in truths.items():
            for kind in ('lists', 'truth'): (tmp_path/kind/'v1').mkdir(parents=True, exist_ok=True)
            (tmp_path/'lists'/'v1'/f'{lang}_test.txt').write_text(
                '\r\n'.join(f'k{i} v{i}.wav f{i}.jpg' for i in range(80)))
            (tmp_path/'truth'/'v1'/f'{lang}_test.txt').write_text(
                ''.join(f'k{i} {int(v)}\n' for i, v in enumerate(y)))
        assert main(['import', 'fame', f'f/v1/{trained}', '-o', trained, '--lists', 'lists', '--truth', 'truth',
                     '--set', 'train=0.75', '--set', 'valid=0.25']) == 0
        sets = {'model.encoder': 'linear', 'model.dim': 8, 'model.voice_dim': 8, 'model.face_dim': 8,
                'train.total_samples': 6400, 'train.batch_size': 32, 'train.lr_warmup': 320, 'train.peak_lr': .01}
        words = [w for k, v in sets.items() for w in ('--set', f'{k}={v}')]
        assert main(['train', 'dimnet-i-demo', '--corpus', trained, '--run', trained, *words]) == 0
    capsys.readouterr()
    assert main(['evaluate', 'English', '--lists', 'English', '--set', 'replicates=100']) == 0
    said = capsys.readouterr().out
    assert 'v1_English_heard' in said and 'v1_Urdu_unheard' in said and 'too narrow' in said
    assert main(['submit', 'English', 'Urdu', '-o', 'sub.zip']) == 0
    with zipfile.ZipFile('sub.zip') as z:
        assert z.namelist() == [f'sub_score_v1_{x}.txt' for x in ('English_heard', 'English_unheard', 'Urdu_heard',
                                                                  'Urdu_unheard')]
    capsys.readouterr()
    assert main(['check-submission', 'sub.zip', '--corpus', 'English', 'Urdu']) == 0
    said = capsys.readouterr().out
    mean = float(said.split('as the challenge ranks: ')[1].split(' %')[0])
    assert mean < 40
    assert main(['check-submission', 'sub.zip', '--corpus', 'English']) == 2 # two files more than are asked for
    assert main(['submit', 'English', 'English', '-o', 'twice.zip']) == 2
    assert not (tmp_path/'twice.zip').exists()
