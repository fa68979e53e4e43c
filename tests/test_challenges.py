"Trial tables scored, heard and unheard languages, submissions: written, scored as the organizers do, and refused."
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from vfassoc.cli import main
from vfassoc.core import ConfigError, CorpusError, RunError, Settings
from vfassoc.corpus.vectors import VectorConfig, read_people, read_vectors, write_vectors
from vfassoc.evaluation.metrics import ScoreError, auc, eer
from vfassoc.evaluation.protocol import ProtocolConfig, evaluate
from vfassoc.evaluation.scorers import CosineScorer, Embeddings
from vfassoc.evaluation.trials import Verification
from vfassoc.exchange.feature_csv import write_numbers
from vfassoc.exchange.languages import evaluate_languages, language_cell, language_table, missing_face
from vfassoc.exchange.row_trials import RowScores, media_tables, score_table, trials_of
from vfassoc.exchange.submissions import (challenge_eer, check_submission, distances, join_submissions, read_scores,
                                          score_name, score_text, write_submission)
from vfassoc.exchange.trial_tables import TrialTable, load_trials, save_trials
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import train

FAST = ProtocolConfig(replicates=100)
SHARED = Path(os.environ.get('VFASSOC_SHARED', '/nonexistent'))


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
    about = dict(form=form, version='v1', language='Urdu', heard='unheard', trained='English') | about
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
    with pytest.raises(RunError, match=r'^evaluation: 1 of \d+ .*\(3\)'):
        score_table(RowScores(s), t, FAST, trained_on=['3'])


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
    with pytest.raises(CorpusError, match=f'trial table {t.name}: '):
        score_table(RowScores(s), replace(t, rows=t.rows.drop(columns='label')), FAST)
    with pytest.raises(ScoreError, match='^row scores: '): RowScores(s).pairs(np.arange(2), np.arange(2)[::-1])


def test_a_damaged_table_is_noticed(tmp_path):
    path = save_trials(tmp_path, table()[0])
    raw = path.read_bytes()
    for damage in (raw[:-30], raw.replace('k7'.encode('utf-32-le'), 'k8'.encode('utf-32-le'), 1), b'PK'):
        path.write_bytes(damage)
        with pytest.raises(CorpusError, match=r'v1_Urdu_unheard\.npz'): load_trials(path)
    with pytest.raises(CorpusError, match=r'x\.npz: '): load_trials(tmp_path/'x.npz')


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
    assert score_name(t) == 'sub_score_v1_English_unheard.txt' # by the trained language, of trials in Urdu
    flag, _ = table(form='flag', version='v4', language='Bangla', track='no_gender')
    assert score_name(flag) == 'no_gender/sub_score_v4_Bangla_unheard.txt'
    for change, why in ((dict(form='list'), 'no challenge'), (dict(version=''), 'version')):
        with pytest.raises(CorpusError, match=why): score_name(replace(t, about=t.about | change))
    with pytest.raises(CorpusError, match=f'trial table {t.name}: '):
        score_name(replace(t, rows=t.rows.drop(columns='key')))


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
    with zipfile.ZipFile(path) as z: lines = z.read('sub_score_v1_English_unheard.txt').decode().splitlines()
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
    with pytest.raises(RunError, match='above 50 % with its interval: higher seems to mean the same'):
        check_submission(submitted(tmp_path/'s.zip', t, score_text(t, distances(-s))), [t], FAST)
    chance = np.random.default_rng(3).random(60) # a poor model is no mistake
    e = [challenge_eer(t.label, np.round(d, 6)) for d in (chance, 1 - chance)]
    bad = submitted(tmp_path/'s.zip', t, score_text(t, chance if e[0] > .5 else 1 - chance))
    assert check_submission(bad, [t], FAST).eer[0] == max(e) > .5


def test_names_in_the_zip_file(tmp_path):
    t, s = table()
    text = score_text(t, distances(s))
    right = 'sub_score_v1_English_unheard.txt'
    for name in ('sub_score_v1_Urdu_unheard.txt', f'x/{right}', f'../{right}'):
        write_submission(tmp_path/'s.zip', {name: text})
        with pytest.raises(RunError, match=f'no such file is asked for .*; {right}: is missing'):
            check_submission(tmp_path/'s.zip', [t], FAST)
    (tmp_path/'s.zip').write_bytes(b'junk')
    with pytest.raises(CorpusError, match=r's\.zip: '): check_submission(tmp_path/'s.zip', [t], FAST)
    with pytest.raises(CorpusError, match=r'gone\.zip: '): check_submission(tmp_path/'gone.zip', [t], FAST)
    with pytest.raises(RunError, match='submission: a '): join_submissions([{'a': ''}, {'a': ''}])


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
    for seed, (trained, other) in enumerate((('English', 'Urdu'), ('Urdu', 'English'))):
        truths = write_world(tmp_path/'f'/'v1'/trained, trained, other, shared, seed)
        for lang, y in truths.items():
            for kind in ('lists', 'truth'): (tmp_path/kind/'v1').mkdir(parents=True, exist_ok=True)
            (tmp_path/'lists'/'v1'/f'{lang}_test.txt').write_text(
                '\r\n'.join(f'{lang}{i} v{i}.wav f{i}.jpg' for i in range(80)))
            (tmp_path/'truth'/'v1'/f'{lang}_test.txt').write_text(
                ''.join(f'{lang}{i} {int(v)}\n' for i, v in enumerate(y)))
        assert main(['import', 'fame', f'f/v1/{trained}', '-o', trained, '--lists', 'lists', '--truth', 'truth',
                     '--set', 'train=0.75', '--set', 'valid=0.25']) == 0
        sets = {'model.encoder': 'linear', 'model.dim': 8, 'model.voice_dim': 8, 'model.face_dim': 8,
                'train.total_samples': 3200, 'train.batch_size': 32, 'train.lr_warmup': 320, 'train.peak_lr': .01,
                'method.tau': .1}
        words = [w for k, v in sets.items() for w in ('--set', f'{k}={v}')]
        assert main(['train', 'cid-twin', '--corpus', trained, '--run', trained, *words]) == 0
    capsys.readouterr()
    assert main(['evaluate', 'English', '--lists', 'English', '--set', 'replicates=100']) == 0
    said = capsys.readouterr().out
    assert 'v1_English_heard' in said and 'v1_Urdu_unheard' in said and 'too narrow' in said
    assert main(['submit', 'English', 'Urdu', '-o', 'sub.zip']) == 0
    with zipfile.ZipFile('sub.zip') as z:
        assert z.namelist() == [f'sub_score_v1_{x}.txt' for x in ('English_heard', 'English_unheard', 'Urdu_heard',
                                                                  'Urdu_unheard')]
        keys = {n: z.read(n).decode().split()[0] for n in z.namelist()} # a file is named by the trained language
    assert keys == {'sub_score_v1_English_heard.txt': 'English0', 'sub_score_v1_English_unheard.txt': 'Urdu0',
                    'sub_score_v1_Urdu_heard.txt': 'Urdu0', 'sub_score_v1_Urdu_unheard.txt': 'English0'}
    capsys.readouterr()
    assert main(['check-submission', 'sub.zip', '--corpus', 'English', 'Urdu']) == 0
    said = capsys.readouterr().out
    mean = float(said.split('as the challenge ranks: ')[1].split(' %')[0])
    assert mean < 25
    assert main(['check-submission', 'sub.zip', '--corpus', 'English']) == 2 # two files more than are asked for
    assert main(['submit', 'English', 'English', '-o', 'twice.zip']) == 2
    assert not (tmp_path/'twice.zip').exists()


# ---- languages and missing faces

def bilingual(people=12, videos=4, loss=.3, seed=0):
    "Vectors of two languages, two videos of each, whose voices are worse in Urdu; a table of rows for both modalities."
    rng = np.random.default_rng(seed)
    rows = [(f'p{i:02d}', f'p{i:02d}v{j}', ('English', 'Urdu')[j % 2], i) for i in range(people) for j in range(videos)
            for _ in range(2)]
    t = pd.DataFrame(rows, columns=['identity', 'video', 'language', 'number'])
    who = 2*rng.standard_normal((people, 6))[t.number]
    weight = np.where(t.language == 'Urdu', 1 - loss, 1)[:, None]
    x = [w*who + rng.standard_normal(who.shape) for w in (weight, 1)]
    return [v.astype(np.float32) for v in x], t.drop(columns='number')


def embedded(**kw):
    (v, f), t = bilingual(**kw)
    v, f = (x/np.linalg.norm(x, axis=1, keepdims=True) for x in (v, f))
    t = t.assign(path=[str(i) for i in range(len(t))], gender='unknown', nationality='unknown', age=np.nan)
    return Embeddings(v, f, t, t)


def test_the_mean_of_cells_has_its_own_interval():
    cells = []
    for seed, trained in enumerate(('English', 'Urdu')):
        emb = embedded(seed=seed)
        for tested in ('English', 'Urdu'):
            keep = (emb.voices.language == tested).to_numpy()
            part = emb.voices[keep].reset_index(drop=True)
            part = Embeddings(emb.voice[keep], emb.face[keep], part, part)
            cell = language_cell(CosineScorer(part), part, sorted(set(emb.voices.identity)), cfg=FAST)
            cells.append(dict(cell, trained=trained, tested=tested, heard=trained == tested, stratum='U'))
    t = language_table(cells).set_index(['trained', 'tested'])
    assert t.eer['mean', 'all'] == pytest.approx(np.mean([c['eer'] for c in cells]))
    assert t.challenge_eer['mean', 'all'] == pytest.approx(t.eer['mean', 'all'], abs=1e-4)
    assert t.eer['mean', 'heard'] == pytest.approx((t.eer['English', 'English'] + t.eer['Urdu', 'Urdu'])/2)
    low, high = np.quantile(np.mean([c['draws'][1] for c in cells], 0), [.025, .975])
    assert (t.eer_low['mean', 'all'], t.eer_high['mean', 'all']) == pytest.approx((low, high))
    for c in cells: assert c['identities'] == 12 and c['trials'] > 50


def test_a_missing_face_adds_nothing():
    "One of two videos of a language is enrolled; an orthogonal face changes what is named, unless it is missing."
    emb = embedded()
    t = missing_face(emb, 'English', FAST).set_index(['tested', 'modalities'])
    assert t.trials.to_dict() == {('English', m): 24 for m in ('voice and face', 'voice alone')} | {
        ('Urdu', m): 48 for m in ('voice and face', 'voice alone')}
    turned = replace(emb, face=np.where((emb.faces.video.str[-1] != '0').to_numpy()[:, None], -emb.face, emb.face))
    other = missing_face(turned, 'English', FAST).set_index(['tested', 'modalities'])
    for lang in ('English', 'Urdu'):
        assert other.accuracy[lang, 'voice alone'] == t.accuracy[lang, 'voice alone'] > 1/12
        assert other.accuracy[lang, 'voice and face'] < t.accuracy[lang, 'voice and face']
    with pytest.raises(CorpusError, match='^missing face: .*Greek'): missing_face(emb, 'Greek', FAST)


def run_on(corpus, settings, **changes):
    sets = {'corpus': corpus, 'train.total_samples': 3200, 'train.batch_size': 32, 'train.lr_warmup': 320,
            'train.peak_lr': .01, 'model.dim': 8, 'model.voice_dim': 6, 'model.face_dim': 6, 'method.tau': .1}
    train(load_recipe('cid-twin', sets | changes), settings.runs/corpus, settings, quiet=True)
    return settings.runs/corpus


def test_runs_on_each_language(tmp_path, monkeypatch, capsys):
    x, t = bilingual(people=40)
    vectors = {m: (v, t) for m, v in zip(('voice', 'face'), x)}
    s = Settings(data=tmp_path/'data', runs=tmp_path/'runs', device='cpu', workers=0)
    for name, languages in (('both', ()), ('english', ('English',)), ('urdu', ('Urdu',))):
        write_vectors(s.data/name, vectors, VectorConfig(languages=languages, train=.5))
    paths = [run_on(name, s) for name in ('english', 'urdu')]
    table, named = evaluate_languages(paths, 'both', s, {'replicates': 100})
    cells = table[(table.stratum == 'U') & (table.trained != 'mean')]
    assert list(zip(cells.trained, cells.tested)) == [(a, b) for a in ('English', 'Urdu') for b in ('English', 'Urdu')]
    assert (cells.eer < .45).all() and (cells.eer_low < cells.eer_high).all() and set(table.stratum) == {'U'}
    assert list(zip(named.enrolled, named.tested)).count(('Urdu', 'English')) == 2
    monkeypatch.chdir(tmp_path)
    assert main(['evaluate', 'english', 'urdu', '--corpus', 'both', '--languages', '--set', 'replicates=100']) == 0
    assert 'challenge_EER' in capsys.readouterr().out and (paths[0]/'languages.json').is_file()
    assert main(['evaluate', 'english', '--languages']) == 2
    with pytest.raises(ConfigError, match=f'{paths[0]}: .*English'): evaluate_languages(paths[:1]*2, 'both', s)
    both = run_on('both', s)
    with pytest.raises(ConfigError, match='trained on 2 languages'): evaluate_languages([both], 'both', s)


@pytest.mark.skipif(not (SHARED/'corpora'/'mavceleb-v1'/'features.npz').is_file(),
                    reason='VFASSOC_SHARED names no folder with corpora/mavceleb-v1')
def test_real_languages(tmp_path):
    "CID on the vectors of MAV-Celeb: English and Urdu, heard and unheard, ten test people. Both are above chance."
    source = SHARED/'corpora'/'mavceleb-v1'
    read, people = read_vectors(source/'features.npz'), read_people(source/'people.csv')
    s = Settings(data=tmp_path, runs=tmp_path/'runs', device='cpu', workers=0)
    for name, languages in (('both', ()), ('English', ('English',)), ('Urdu', ('Urdu',))):
        write_vectors(tmp_path/name, read, VectorConfig(languages=languages), people)
    sets = {'model.dim': 128, 'model.voice_dim': 256, 'model.face_dim': 512, 'train.peak_lr': 1e-3,
            'train.total_samples': 6400, 'train.lr_warmup': 640, 'train.batch_size': 64}
    table, named = evaluate_languages([run_on(x, s, **sets) for x in ('English', 'Urdu')], 'both', s,
                                      {'replicates': 200})
    t = table[table.trained == 'mean'].set_index(['stratum', 'tested'])
    assert set(table.stratum) == {'U', 'G'} and len(table) == 14
    assert .2 < t.eer['U', 'all'] < .45 and t.eer['G', 'all'] > t.eer['U', 'all']
    alone = named[named.modalities == 'voice alone']
    assert (alone.accuracy > alone.chance).all()
