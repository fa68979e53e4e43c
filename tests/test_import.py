"Public features: each form is written in small, imported, and compared; every trap of these forms has its test."
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vfassoc.cli import main
from vfassoc.core import CorpusError, RunError
from vfassoc.corpus.features import load_features
from vfassoc.corpus.vectors import VectorConfig, load_vectors, vectors_path
from vfassoc.evaluation.run_published import corpus_lists
from vfassoc.exchange.challenge_features import read_fame, read_flag
from vfassoc.exchange.feature_csv import find_list, list_rows, read_numbers, read_rows, write_numbers
from vfassoc.exchange.feature_pickles import ids_by_video
from vfassoc.exchange.imports import import_features, media_account, read_form, trial_account
from vfassoc.exchange.pickles import read_plain
from vfassoc.exchange.trial_tables import load_trials, read_trials

SHARED = Path(os.environ.get('VFASSOC_SHARED', '/nonexistent'))
RNG = np.random.default_rng(0)


def draw(n, d): return RNG.standard_normal((n, d)).astype(np.float32)


def account_is_whole(found, manifest):
    t = media_account(found, manifest)
    assert (t.loc['in the files'] == t.drop('in the files').sum()).all(), t
    return t


# ---- row-paired csv

NAMES = {'msm': (('audio_feats_train', 'face_feats_train'), ('{}_audio', '{}_face'), (192, 512)),
         'fop': (('voiceTrain', 'faceTrain'), ('voice_{}', 'face_{}'), (512, 4096)),
         'sbnet': (('voice/voiceTrain', 'face/facenetFaceTrain'), ('voice/voice_{}', 'face/facenet_face_{}'),
                   (512, 512))}
LIST = 'veriflist_test_N_unseenunheard'
LABELS = [1, 0, 0, 1, 1, 0]


def write_list(path, labels=LABELS, end='\n'):
    who = ['Ann_Lee', 'Bo_Ek']
    lines = ['id,voice-speaker-id,face-speaker-id,label,voice-path,face-path']
    lines += [f'{i + 1},1,{2 - y},{y},Ann_Lee/vid{i}_0000001.wav,{who[1 - y]}/vid9/{i:07d}.jpg'
              for i, y in enumerate(labels)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(end.join([*lines, '']), newline='')


def write_rows(folder, form, labels=(0, 0, 1, 1), trials=6):
    (voice, face), tests, widths = NAMES[form]
    x = [draw(len(labels), w) for w in widths] + [draw(trials, w) for w in widths]
    for name, values, label in zip((voice, face, *(t.format(LIST) for t in tests)), x, (labels, labels, None, None)):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        write_numbers(folder/f'{name}.csv', values, label)
    return x


@pytest.mark.parametrize('form', NAMES)
def test_row_paired_forms(tmp_path, form, capsys):
    x = write_rows(tmp_path/'f', form)
    write_list(tmp_path/'lists'/f'{LIST}.txt', end='\r\n')
    assert main(['import', form, str(tmp_path/'f'), '-o', str(tmp_path/'c'), '--lists', str(tmp_path/'lists')]) == 0
    said = capsys.readouterr().out
    assert 'in the files' in said and 'self-supervised objectives lose their unit' in said
    m, features = load_vectors(tmp_path/'c'), load_features(vectors_path(tmp_path/'c'))
    order = m.table[m.table.modality == 'voice'].video.str[3:].astype(int)
    np.testing.assert_allclose(features.voice, x[0][order], rtol=1e-6)
    np.testing.assert_allclose(features.face, x[1][order], rtol=1e-6)
    assert set(m.table.recording) == {''} and sorted(set(m.table.identity)) == ['0', '1']
    t = load_trials(tmp_path/'c'/'trials'/f'{LIST}.npz')
    np.testing.assert_allclose(t.face, x[3], rtol=1e-6)
    assert t.label.tolist() == [bool(y) for y in LABELS] != [i % 2 == 0 for i in range(6)]
    assert t.rows.voice_identity.tolist() == ['Ann_Lee']*6 and t.rows.voice_video.tolist()[:2] == ['vid0', 'vid1']


def test_labels_are_the_lists_or_none(tmp_path):
    "No list: no labels, never by the parity of the row. A list of another length is an error."
    write_rows(tmp_path, 'fop')
    found = read_rows(tmp_path, 'fop')
    assert found.trials[0].label is None and any('no labels' in n for n in found.notes)
    write_list(tmp_path/'lists'/f'{LIST}.txt', LABELS[:5])
    with pytest.raises(CorpusError, match='5 lines .* for 6 rows'): read_rows(tmp_path, 'fop', tmp_path/'lists')
    write_list(tmp_path/'lists'/f'{LIST}.txt')
    assert find_list('veriflist_test_N_unseen_unheard', tmp_path/'lists').stem == LIST


@pytest.mark.skipif(not (SHARED/'voxceleb'/'cmpc'/'veriflist').is_dir(),
                    reason='VFASSOC_SHARED names no folder with voxceleb/cmpc')
@pytest.mark.parametrize('stratum, wrong, n', [('N', 13_076, 28_193), ('GNA', 11_139, 27_280)])
def test_two_published_lists_do_not_alternate(stratum, wrong, n):
    path = find_list(f'veriflist_test_{stratum}_unseenunheard', SHARED/'voxceleb'/'cmpc'/'veriflist')
    rows, odd = list_rows(path, n)
    assert not odd.any()
    assert ((rows.label == '1').to_numpy() != (np.arange(n) % 2 == 0)).sum() == wrong


def test_bad_rows_are_counted(tmp_path):
    "Not a number, a short line, no label, a foreign label, copies: six reasons, and the columns add up."
    v, f = draw(12, 5), draw(12, 6)
    f[3] = f[2] # one face with two voices: one video
    v[8] = v[0] # one voice under two identities
    label = ['ann', 'ann', 'ann', 'ann', 'ann', 'ann', 'ann', 'bo', 'bo', 'bo', 'bo', 'bo']
    write_numbers(tmp_path/'voiceTrain.csv', v, [*[1.0]*6, 2.0, *[2.0]*5])
    write_numbers(tmp_path/'faceTrain.csv', f, label)
    lines = (tmp_path/'faceTrain.csv').read_text().splitlines()
    lines[1] = lines[1].replace(lines[1].split(',')[0], 'x', 1)
    lines[4] = '1,2'
    lines[5] = lines[5].removesuffix('ann')
    (tmp_path/'faceTrain.csv').write_bytes('\r\n'.join(lines).encode())
    found, m = import_features('fop', tmp_path, tmp_path/'c')
    assert found.refused == {'not finite, or another number of fields': {'voice': 2, 'face': 2},
                             'no label': {'voice': 1, 'face': 1},
                             'voice and face labels disagree': {'voice': 1, 'face': 1}}
    t = account_is_whole(found, m)
    assert t.loc['repeats a vector of its video'].tolist() == [0, 1]
    assert t.loc['the same vector in several videos'].tolist() == [2, 0]
    assert t.loc['used'].tolist() == [6, 7]


def test_headers_labels_and_lengths(tmp_path):
    p = tmp_path/'faceTrain.csv'
    p.write_text('0,1,2\n.5,1,7.0\n2,3,8\n')
    x, label = read_numbers(p)
    assert x.tolist() == [[.5, 1], [2, 3]] and label.tolist() == ['7', '8']
    write_numbers(p, draw(3, 4), 'abc')
    write_numbers(tmp_path/'voiceTrain.csv', draw(2, 4), 'ab')
    with pytest.raises(CorpusError, match='2 voices, 3 faces'): read_rows(tmp_path, 'fop')
    (tmp_path/'again').mkdir()
    write_numbers(tmp_path/'again'/'faceTrain.csv', draw(2, 4), 'ab')
    with pytest.raises(CorpusError, match='2 files .*training faces'): read_rows(tmp_path, 'fop')
    with pytest.raises(CorpusError, match=f'^{tmp_path}: .*msm'): read_rows(tmp_path, 'msm')
    p.write_text('')
    with pytest.raises(CorpusError, match=f'^{p}: '): read_numbers(p)


def test_a_test_with_a_label_column(tmp_path):
    "Released code slices the first columns; a last column more is a label and not a number."
    write_rows(tmp_path, 'sbnet')
    write_numbers(tmp_path/'voice'/f'voice_{LIST}.csv', draw(6, 512), [1, 0]*3)
    assert read_rows(tmp_path, 'sbnet').trials[0].voice.shape == (6, 512)


def test_a_test_of_another_width_is_refused(tmp_path):
    write_rows(tmp_path/'f', 'fop')
    write_numbers(tmp_path/'f'/f'voice_{LIST}.csv', draw(6, 500))
    with pytest.raises(CorpusError, match='have 500 numbers, those of the training rows 512'):
        import_features('fop', tmp_path/'f', tmp_path/'c')


def test_matching_blocks(tmp_path):
    "The truth is where the identity says; voices of later rows do not matter; blocks without one truth are refused."
    v, f = draw(12, 4), draw(12, 5)
    v[1] = np.nan # never read
    write_numbers(tmp_path/'voice_matching_3.csv', v, ['ann', 'x', '', *['bo', 'x', 'x'], *['cy']*3, *['di']*3])
    write_numbers(tmp_path/'face_matching_3.csv', f, ['x', 'ann', 'y', 'bo', 'x', 'y', 'x', 'y', 'z', 'di', 'di', 'x'])
    found = read_rows(tmp_path, 'msm')
    t = found.trials[0]
    assert (t.name, t.block, len(t)) == ('matching_3', 3, 6)
    assert t.rows.face_identity.tolist() == ['x', 'ann', 'y', 'bo', 'x', 'y']
    assert found.refused_trials['matching_3'] == {'a block without a truth': 3, 'a block with several truths': 3}


def test_rows_as_videos_never_mix_identities(tmp_path):
    "Evaluation takes the videos of rows for unknown."
    from vfassoc.evaluation.other_videos import recordings
    write_rows(tmp_path, 'fop')
    _, m = import_features('fop', tmp_path, tmp_path/'c', VectorConfig(train=0, valid=0))
    assert (m.table.groupby('video').identity.nunique() == 1).all()
    codes = recordings(m.media('voice', 'test'), m.media('face', 'test'))
    assert len(codes[0]) and set(np.concatenate(codes)) == {-1}


# ---- pickles

class Call:
    "Unpickles to the result of a call."
    def __init__(self, f, *args): self.f, self.args = f, args
    def __reduce__(self): return self.f, self.args


class Many(dict): pass


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_come_back(tmp_path, protocol):
    x = {'a/1.6/v/0000025.jpg': draw(1, 5)[0], ('t', 1): [1.5, True, None, 'ü', b'raw'], 'set': {'a', 'b'}, 'n': {},
         'wide': np.asfortranarray(draw(3, 4)), 'ints': np.arange(3), 'big': np.arange(3, dtype='>f8'),
         'texts': np.array(['ab', 'c']), 'one': np.float32(2.5), 'frozen': frozenset({1}), 'zero': draw(0, 3)}
    (tmp_path/'x.pkl').write_bytes(pickle.dumps(x, protocol))
    got = read_plain(tmp_path/'x.pkl')
    assert list(got) == list(x)
    for k, v in x.items():
        if isinstance(v, np.ndarray):
            np.testing.assert_array_equal(got[k], v)
            assert got[k].dtype == v.dtype
        else: assert got[k] == v


def test_names_of_older_numpy_are_read(tmp_path):
    raw = pickle.dumps({'a': np.arange(3.)}, 2).replace(b'numpy._core', b'numpy.core')
    assert b'numpy.core.multiarray' in raw
    (tmp_path/'x.pkl').write_bytes(raw)
    assert read_plain(tmp_path/'x.pkl')['a'].tolist() == [0, 1, 2]


@pytest.mark.parametrize('evil', [
    Call(os.system, 'touch gotcha'), Call(eval, '__import__("os").system("touch gotcha")'), Call(open, 'gotcha', 'w'),
    Call(np.memmap, 'gotcha', 'u1', 'w+', 0, 3), Call(getattr, 'x', '__class__'), Call(np.save, 'gotcha', [1]),
    {'deep': [({'x': Call(os.mkdir, 'gotcha')},)]}, np.array([Call(os.system, 'touch gotcha')], object)])
def test_hostile_pickles_do_nothing(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4, 5):
        (tmp_path/'x.pkl').write_bytes(pickle.dumps(evil, protocol))
        with pytest.raises(CorpusError, match='x.pkl: not read'): read_plain(tmp_path/'x.pkl')
    assert [p.name for p in tmp_path.iterdir()] == ['x.pkl']


def nested(depth):
    x = 1
    for _ in range(depth): x = [x]
    return x


def looped():
    x = []
    x.append(x)
    return x


@pytest.mark.parametrize('x', [Many(a=1), np.dtype('f4'), np.zeros(2, [('a', 'f4')]), np.zeros(2, 'M8[s]'), 1j,
                               nested(60), looped(), pd.DataFrame({'a': [1]}), io.BytesIO, set, Path('a')])
def test_what_is_no_table_is_refused(tmp_path, x):
    (tmp_path/'x.pkl').write_bytes(pickle.dumps(x))
    with pytest.raises(CorpusError, match='x.pkl: not read'): read_plain(tmp_path/'x.pkl')


def test_a_list_within_itself_many_times_is_walked_once(tmp_path):
    x = [1]
    for _ in range(40): x = [x, x]
    (tmp_path/'x.pkl').write_bytes(pickle.dumps(x))
    assert len(read_plain(tmp_path/'x.pkl')) == 2


@pytest.mark.parametrize('raw', [
    b'', b'junk', b'\x80\x04.', b'cnumpy\ndtype\n(S"O"\ntR.', b'cnumpy\ndtype\n(S"f4"\ntR(I3\nS"<"\nS"x"\nNNttb.',
    b'cnumpy\nndarray\n)R(I1\n(I9\ntcnumpy\ndtype\n(S"f4"\ntRI00\nS"ab"\ntb.', # longer than its bytes
    b'\x82\x01.', b'P1\n.', b'\x8d\xff\xff\xff\xff\xff\xff\xff\x7f'])
def test_damaged_pickles_are_one_line(tmp_path, raw):
    (tmp_path/'x.pkl').write_bytes(raw)
    with pytest.raises(CorpusError, match='x.pkl: not read'): read_plain(tmp_path/'x.pkl')


# ---- FAME and FLAG

def write_fame(folder, version='v1', other='{}_{}_unheard_test', end='\r\n'):
    "Two people, the second renumbered; two tests of three rows; lists and truths."
    feats, lists, truth = folder/'feats'/version/'English', folder/'lists'/version, folder/'truth'/version
    for p in (feats, lists, truth): p.mkdir(parents=True)
    x = {}
    for m, w in (('voices', 8), ('faces', 16)):
        for name, n in ((f'English_{m}_train', 4), (f'English_{m}_test', 3), (other.format('Urdu', m), 3)):
            x[name] = draw(n, w)
            write_numbers(feats/f'{name}.csv', x[name], [0, 0, 63, 63] if 'train' in name else None)
    train = [f'{v}/English/{a}/00000.wav {f}/English/{b}/0000025.jpg' for v, f, a, b in
             (('id0001', 'id0001', 'va', 'vb'), ('id0001', 'id0001', 'vb', 'va'), ('id0061', 'id0067', 'vc', 'vd'),
              ('id0061', 'id0067', 'cricket-world-cup-1225942', 'vc'))]
    (lists/'English_train.txt').write_bytes(end.join([*train, '']).encode())
    for lang in ('English', 'Urdu'):
        rows = [f'k{i} voices/{lang}/{i:05d}.wav faces/{lang}/{i:05d}.jpg' for i in range(3)]
        (lists/f'{lang}_test.txt').write_bytes(end.join(rows).encode()) # no final line end
    (truth/'English_test.txt').write_bytes(b'k2 1\r\nk0 0\r\nk1 1\r\n') # by key, in another order
    (truth/'Urdu_test.txt').write_bytes(b'1\r\n0\r\n0')
    return feats, lists.parent, truth.parent, x


@pytest.mark.parametrize('other', ['{}_{}_unheard_test', '{}_{}_test'])
def test_fame(tmp_path, other):
    feats, lists, truth, x = write_fame(tmp_path, other=other)
    (tmp_path/'meta.csv').write_text('ids,name,gender\nid0001,A B,Male\nid0061,C D,Male\nid0067,E F,Female\n')
    found, m = import_features('fame', feats, tmp_path/'c', lists=lists, truth=truth, people=tmp_path/'meta.csv')
    account_is_whole(found, m)
    assert set(m.table.identity) == {'id0001', 'id0061'} # of the voice column: the face ids would be three people
    assert m.table.groupby('identity').gender.first().to_dict() == {'id0001': 'm', 'id0061': 'f'}
    assert set(m.table.language) == {'English'} and 'cricket-world-cup-1225942' in set(m.table.video)
    features = load_features(vectors_path(m.root))
    path = m.table[(m.table.modality == 'face') & (m.table.video == 'vd')].path.iloc[0]
    row = features.face_path.tolist().index(path)
    np.testing.assert_allclose(features.face[row], x['English_faces_train'][2], rtol=1e-6)
    heard, unheard = read_trials(tmp_path/'c')
    assert (heard.name, unheard.name) == ('v1_English_heard', 'v1_Urdu_unheard')
    assert heard.rows.key.tolist() == ['k0', 'k1', 'k2'] and heard.label.tolist() == [False, True, True]
    assert unheard.label.tolist() == [True, False, False] and not heard.named
    assert unheard.about['trained'] == 'English' and unheard.about['heard'] == 'unheard'
    np.testing.assert_allclose(unheard.voice, x[other.format('Urdu', 'voices')], rtol=1e-6)


def test_fame_without_lists_and_with_wrong_ones(tmp_path):
    feats, lists, truth, _ = write_fame(tmp_path)
    found = read_fame(feats)
    assert found.vectors['voice'][1].identity.tolist() == ['0', '0', '63', '63']
    assert any('no keys' in n for n in found.notes) and any('no paths' in n for n in found.notes)
    path = lists/'v1'/'English_test.txt'
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'k2', b'k0')) # a key twice: the first row has it
    found = read_fame(feats, lists)
    assert found.refused_trials['v1_English_heard'] == {'a key of an earlier row': 1}
    path.write_bytes(whole + b'\r\nk3 a b')
    with pytest.raises(CorpusError, match='3 rows, .* has 4 lines'): read_fame(feats, lists)
    path.write_bytes(whole)
    (truth/'v1'/'English_test.txt').write_text('k0 1\nk1 1\nk9 0\n')
    with pytest.raises(CorpusError, match="no label for the key 'k2'"): read_fame(feats, lists, truth)
    with pytest.raises(CorpusError, match=r'English_test\.txt: '): read_fame(feats, None, truth)
    train = lists/'v1'/'English_train.txt'
    train.write_text(train.read_text().replace('id0061', 'id0001', 1).replace('/', '\\'))
    (truth/'v1'/'English_test.txt').unlink()
    assert read_fame(feats, lists).refused == {'the label and the list disagree': {'voice': 1, 'face': 1}}


def write_flag(folder):
    train, dev = folder/'train_set', folder/'dev_set'
    who, label = ['id001', 'id028', 'id028', 'id001'], [4, 61, 61, 4]
    (train/'train_set').mkdir(parents=True)
    for m, w in (('faces', 16), ('voices', 8)):
        (train/'features'/m).mkdir(parents=True)
        write_numbers(train/'features'/m/f'train_English_{m}.csv', draw(4, w), label)
        for track in ('no_gender', 'gender'):
            (dev/track/'features').mkdir(parents=True, exist_ok=True)
            for lang in ('English', 'Bangla'):
                write_numbers(dev/track/'features'/f'{lang}_test_{m}.csv', draw(2, w))
                (dev/track/f'{lang}_test.txt').write_text('a voices/0.wav faces/0.jpg\nb voices/1.wav faces/1.jpg\n')
    (train/'train_set'/'train_English.txt').write_text(''.join(
        f'k{i} 1 voices/English/{p}/{i:05d}.wav faces/English/{p}/{i:05d}.jpg {p} {n}\n'
        for i, (p, n) in enumerate(zip(who, label))))
    (folder/'meta_file_train_set.csv').write_text('id001,m\nid028,f\n')


def test_flag(tmp_path):
    write_flag(tmp_path/'flag')
    (tmp_path/'truth').mkdir()
    (tmp_path/'truth'/'Bangla_test_gender.txt').write_text('b 1\na 0\n')
    found, m = import_features('flag', tmp_path/'flag', tmp_path/'c', truth=tmp_path/'truth')
    account_is_whole(found, m)
    assert m.table.groupby('identity').gender.first().to_dict() == {'id001': 'm', 'id028': 'f'}
    assert set(m.table.language) == {'English'} and set(m.table.recording) == {''}
    tables = {t.name: t for t in read_trials(tmp_path/'c')}
    assert set(tables) == {f'v4_{x}_{t}' for x in ('English_heard', 'Bangla_unheard') for t in ('gender', 'no_gender')}
    assert tables['v4_Bangla_unheard_gender'].label.tolist() == [False, True]
    assert tables['v4_Bangla_unheard_no_gender'].label is None
    path = tmp_path/'flag'/'train_set'/'train_set'/'train_English.txt'
    path.write_text(path.read_text().replace('k0 1', 'k0 0').replace('id028 61', 'id028 28', 1))
    assert read_flag(tmp_path/'flag').refused == {'a pair of two identities': {'voice': 1, 'face': 1},
                                                  'the label and the list disagree': {'voice': 1, 'face': 1}}


# ---- POLYSIM, CAFNet

def write_tree(folder, backslash=False):
    "Two people, two languages; the second face of a video repeats the first, one voice stands under both languages."
    paths = {'voice': [], 'face': []}
    for m, d in (('voice', 4), ('face', 6)):
        for who in ('id0001', 'id0002'):
            for lang, video in (('English', 'vA'), ('Urdu', 'vB')):
                for k in range(2):
                    p = f'feats/{m}feats/v1/{m}s/{who}/{lang}/{who}{video}/{k:05d}.npy'
                    (folder/p).parent.mkdir(parents=True, exist_ok=True)
                    np.save(folder/p, draw(1, d)[0])
                    paths[m].append(p)
    copy = folder/paths['face'][0], folder/paths['face'][1]
    copy[1].write_bytes(copy[0].read_bytes())
    (folder/paths['voice'][2]).write_bytes((folder/paths['voice'][0]).read_bytes()) # English and Urdu
    t = pd.DataFrame({'audio_path': 'x.wav', 'identity': 'id0001', 'face_feats_path': paths['face'], 'label': '0.0',
                      'voice_feats_path': paths['voice']})
    if backslash: t = t.map(lambda x: x.replace('/', '\\'))
    t.to_csv(folder/'train.csv', index=False)
    (folder/'val.csv').write_text('key,voices,faces\nk1,val/v1/voices/English/0.npy,val/v1/faces/English/0.npy\n'*2)
    return paths


@pytest.mark.parametrize('table, backslash', [(None, False), ('train.csv', False), ('train.csv', True)])
def test_polysim(tmp_path, table, backslash):
    write_tree(tmp_path/'t', backslash)
    found, m = import_features('polysim', tmp_path/'t', tmp_path/'c', lists=table and tmp_path/'t'/table)
    t = account_is_whole(found, m)
    assert t.loc['repeats a vector of its video'].tolist() == [0, 1]
    assert t.loc['the same vector in several videos'].tolist() == [2, 0]
    assert m.table.groupby('identity').language.unique().map(sorted).to_dict() == {
        'id0001': ['English', 'Urdu'], 'id0002': ['English', 'Urdu']}
    urdu = import_features('polysim', tmp_path/'t', tmp_path/'u', VectorConfig(languages=('Urdu',)))[1]
    assert set(urdu.table.language) == {'Urdu'}


def test_bad_files_of_a_tree(tmp_path):
    paths = write_tree(tmp_path/'t')
    folder, faces = tmp_path/'t', paths['face']
    np.save(folder/faces[2], np.full(6, np.inf))
    np.save(folder/faces[3], np.zeros(5))
    np.save(folder/faces[4], np.zeros((2, 3)))
    (folder/faces[5]).write_bytes(pickle.dumps(Call(os.system, 'touch gotcha')))
    np.save(folder/faces[6], np.array([{}], object), allow_pickle=True)
    (folder/faces[7]).unlink()
    found = read_form('polysim', folder, folder/'train.csv')
    assert {why: n['face'] for why, n in found.refused.items()} == {
        'not finite': 1, 'another width than most': 1, 'not one vector': 1, 'not an array of numbers': 2,
        'no such file, or not readable': 1}
    (folder/'out.csv').write_text('a,b\n../x/voices/i/l/v/0.npy,f/faces/i/l/v/0.npy\n')
    with pytest.raises(CorpusError, match=r"'\.\./x/voices/i/l/v/0\.npy'"):
        read_form('polysim', folder, folder/'out.csv')
    with pytest.raises(CorpusError, match='no columns of .npy paths'): read_form('polysim', folder, folder/'val.csv')
    assert not Path('gotcha').exists()


def test_cafnet(tmp_path):
    "An identity with an underscore in its name, a foreign row, a missing number; feature_10 after feature_2."
    for folder, d in (('audio', 11), ('face', 3)):
        (tmp_path/'f'/folder).mkdir(parents=True)
        for who in ('id1', 'id1_2'):
            x = draw(3, d)
            names = [f'{who}_0000{k}.x' for k in range(3)]
            if folder == 'face' and who == 'id1': names[1] = 'id9_1.x'
            t = pd.DataFrame(x, columns=[f'feature_{k + 1}' for k in range(d)]).iloc[:, ::-1]
            t.insert(0, 'label', names)
            if who == 'id1_2': t.iloc[2, 1] = np.nan
            t.to_csv(tmp_path/'f'/folder/f'{who}.csv', index=False)
            if (folder, who) == ('audio', 'id1'): want = x
    (tmp_path/'f'/'pairs.csv').write_text('pair_id,audio_filename,face_filename\n')
    found, m = import_features('cafnet', tmp_path/'f', tmp_path/'c')
    account_is_whole(found, m)
    assert found.refused == {'not finite': {'voice': 1, 'face': 1},
                             'a label that does not begin with the name of its file': {'face': 1}}
    np.testing.assert_allclose(found.vectors['voice'][0][:3], want, rtol=1e-6)
    assert found.vectors['voice'][1].item.tolist()[-2:] == ['00000.x', '00001.x']
    assert any('lose their unit' in n for n in found.notes) and any('pairs.csv' in n for n in found.notes)


# ---- Self-Lifting, vfal-eva, EFT

PEOPLE = {'Ann_Lee': 'id10001', 'Bo_Ek': 'id10002', 'Cy_Oh': 'id10003', 'Di_Po': 'id10004'}


def dump(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(x, 2))


def write_sl(folder, named=False):
    "Four people of two videos; the lists of both projects; vfal-eva's keys if `named`."
    who = {n: n if named else i for n, i in PEOPLE.items()}
    top = '' if named else '1.6/'
    voice = {f'{who[n]}/{n[:2]}v{j}/0000{k}.wav': draw(1, 5)[0] for n in PEOPLE for j in range(2) for k in (1, 2)}
    face = {f'{n}/{top}{n[:2]}v{j}/{25*k:07d}.jpg': draw(1, 4)[0] for n in PEOPLE for j in range(2) for k in (1, 2)}
    dump(folder/'voice_input.pkl', voice)
    dump(folder/'face_input.pkl', face)
    v, f = list(voice), list(face)
    evals = folder/('evals' if named else 'eval')
    pairs = {'wav_set': set(v), 'jpg_set': set(f)}
    rows = [[v[8], f[8], 1], [v[8], f[12], 0], [v[13], f[10], 0], [v[13], f[12], 1]]
    dump(evals/'test_verification.pkl', pairs | {'list': rows, 'script': 'text'})
    dump(evals/'valid_verification.pkl', pairs | {'list': [[v[4], f[4], 1], [v[5], f[6], 1]]})
    dump(evals/'test_matching.pkl', pairs | {'match_list': [('Cy_Oh', v[8], f[9], 'Di_Po', v[12], f[13])]})
    dump(evals/'test_matching_10.pkl', pairs | {'match_list': [[[v[8], v[12]], [f[9], f[13]]]]})
    dump(evals/'test_retrieval.pkl', {'retrieval_lists': [[(v[i], f[i], 'x') for i in range(8, 16)]]*3})
    return voice, face


@pytest.mark.parametrize('form', ['sl', 'vfal-eva'])
def test_input_pickles(tmp_path, form):
    voice, face = write_sl(tmp_path/'f', form == 'vfal-eva')
    if form == 'sl': dump(tmp_path/'f'/'cluster'/'train_movie_list.pkl', ['Anv0', 'Anv1'])
    else:
        dump(tmp_path/'f'/'info'/'train_valid_test_names.pkl',
             {'train': ['Ann_Lee'], 'valid': ['Bo_Ek'], 'test': ['Cy_Oh', 'Di_Po']})
        dump(tmp_path/'f'/'info'/'name2gender.pkl', dict(zip(PEOPLE, 'fmfm')))
    found, m = import_features(form, tmp_path/'f', tmp_path/'c')
    account_is_whole(found, m)
    people = list(PEOPLE.values()) if form == 'sl' else list(PEOPLE)
    assert {s: m.identities(s) for s in ('train', 'valid', 'test')} == {
        'train': people[:1], 'valid': people[1:2], 'test': people[2:]}
    assert m.table.groupby('identity')['name'].first().tolist() == list(PEOPLE)
    features, first = load_features(vectors_path(m.root)), next(iter(voice.values()))
    row = features.voice_path.tolist().index(f'wav/{people[0]}/Anv0/00001.wav')
    np.testing.assert_allclose(features.voice[row], first/np.linalg.norm(first), rtol=1e-6)
    assert 'faces/Ann_Lee/1.6/Anv0/0000025.jpg' in features.face_path
    lists, voices, faces, account, other = corpus_lists(tmp_path/'c'/'lists'/'test', m, strict=True)
    assert {(x.name, x.lines, x.used) for x in lists} == {
        ('verification_U.csv', 4, 4), ('matching_v2f_U.txt', 1, 1), ('matching_f2v_U.txt', 1, 1)}
    got = next(x.trials for x in lists if x.name == 'verification_U.csv')
    assert got.label.tolist() == [True, False, False, True]
    assert faces.path.iloc[got.face[0]] == 'faces/Cy_Oh/1.6/Cyv0/0000025.jpg'
    galleries, *_ = corpus_lists(tmp_path/'c'/'lists'/'test_retrieval_2', m, strict=True)
    assert [x.used for x in galleries] == [8, 8]
    wide, *_ = corpus_lists(tmp_path/'c'/'lists'/'test_1N', m, strict=True)
    assert {x.trials.direction for x in wide} == {'v2f', 'f2v'}


def test_a_face_is_of_the_person_with_most_of_its_videos():
    "A video under two identities does not join them; two names of one ID are both left out."
    def table(rows): return pd.DataFrame([r.split('/') for r in rows], columns=['person', 'video'])
    voices = table(['id1/a', 'id1/b', 'id2/c', 'id2/a', 'id3/d', 'id3/e'])
    faces = table(['Ann/a', 'Ann/b', 'Bo/c', 'Cy/d', 'Di/e', 'Ed/x'])
    assert ids_by_video(voices, faces) == {'Ann': 'id1', 'Bo': 'id2'}


def test_names_and_ids_of_pickles(tmp_path):
    "By a table of people, by videos, and refused if neither joins; damaged entries are counted."
    voice, face = write_sl(tmp_path/'f')
    for p in (tmp_path/'f'/'eval').glob('*'): p.unlink()
    voice = {k.replace('/Anv', '/x'): x for k, x in voice.items()} # Ann's videos have other names: no join by videos
    voice |= {'id10002/Bov0/00009.wav': np.zeros(5), 'id10002/Bov0/00010.wav': np.ones(6), 'notes': np.ones(5)}
    dump(tmp_path/'f'/'voice_input.pkl', voice)
    found = read_form('sl', tmp_path/'f')
    assert found.refused == {'not finite, or zero': {'voice': 1}, 'another width than most': {'voice': 1},
                             'a key that is no path of a medium': {'voice': 1},
                             'a person without the other modality': {'voice': 4, 'face': 4}}
    head = 'VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\n'
    (tmp_path/'meta.csv').write_text(head + ''.join(f'{i}\t{n}\tf\tUK\n' for n, i in PEOPLE.items()))
    found, m = import_features('sl', tmp_path/'f', tmp_path/'c', people=tmp_path/'meta.csv')
    assert len(set(m.table.identity)) == 4 and set(m.table.gender) == {'f'}
    dump(tmp_path/'f'/'voice_input.pkl', Call(os.system, 'touch gotcha'))
    with pytest.raises(CorpusError, match='voice_input.pkl: not read'): read_form('sl', tmp_path/'f')
    dump(tmp_path/'f'/'voice_input.pkl', {'a/b/1.wav': [1, 2]})
    with pytest.raises(CorpusError, match='^voice vectors '): read_form('sl', tmp_path/'f')


def test_a_person_in_training_and_test(tmp_path):
    write_sl(tmp_path/'f')
    dump(tmp_path/'f'/'cluster'/'train_movie_list.pkl', ['Cyv0'])
    with pytest.raises(CorpusError, match='1 identities are both in train and in test .id10003'):
        read_form('sl', tmp_path/'f')
    dump(tmp_path/'f'/'eval'/'test_verification.pkl', {'list': [['id10001/v/00001.wav', 'x', 2]]})
    with pytest.raises(CorpusError, match='test_verification.pkl: not an evaluation list'):
        read_form('sl', tmp_path/'f')


def test_eft(tmp_path):
    "A track is a clip; a damaged one, one of a wrong width and one without an expert are refused."
    f, info = tmp_path/'f'/'features', tmp_path/'f'/'info'
    def track(**more):
        return {'v_ecapa_4': draw(1, 4)[0], 'f_swin_3': draw(1, 3)[0], 'f_mobile_2': draw(1, 2)[0]} | more
    tracks = {(n, f'{n[:2]}v{j}', k): track() for n in PEOPLE for j in range(2) for k in (1, 12)}
    for (n, video, clip), x in tracks.items(): dump(f/n/video/str(clip)/'compact.pkl', x)
    dump(f/'Ann_Lee'/'Anv0'/'3'/'compact.pkl', track(v_ecapa_4=draw(1, 5)[0]))
    dump(f/'Ann_Lee'/'Anv0'/'4'/'compact.pkl', {k: x for k, x in track().items() if k != 'f_swin_3'})
    dump(f/'Ann_Lee'/'Anv0'/'5'/'compact.pkl', Call(os.system, 'touch gotcha'))
    (f/'Moon_Bloodgood'/'JBhcgwl2pO0'/'2').mkdir(parents=True)
    (f/'Moon_Bloodgood'/'JBhcgwl2pO0'/'2'/'compact.pkl').write_bytes(b'\x80\x04broken')
    dump(info/'train_valid_test_names.pkl', {'train': ['Ann_Lee'], 'valid': ['Bo_Ek'], 'test': ['Cy_Oh', 'Di_Po']})
    rows = [['Cy_Oh/Cyv0/00012.wav', 'Cy_Oh/1.6/Cyv1/12', 1], ['Cy_Oh/Cyv0/00012.wav', 'Di_Po/1.6/Div1/1', 0]]
    dump(tmp_path/'f'/'evals'/'test_verification_gn.pkl', {'list': rows})
    found, m = import_features('eft', tmp_path/'f', tmp_path/'c')
    account_is_whole(found, m)
    assert found.refused == {'a track that cannot be read': {'voice': 3, 'face': 3},
                             'a track without all experts, or without NAME/VIDEO/CLIP': {'face': 1}}
    features = load_features(vectors_path(m.root))
    x = tracks['Cy_Oh', 'Cyv1', 12]
    row = features.face_path.tolist().index('faces/Cy_Oh/1.6/Cyv1/0000012.jpg')
    np.testing.assert_array_equal(features.face[row], np.concatenate([x['f_mobile_2'], x['f_swin_3']]))
    lists, *_ = corpus_lists(tmp_path/'c'/'lists'/'test', m, strict=True)
    assert [(x.name, x.trials.stratum, x.used) for x in lists] == [('verification_GN.csv', 'GN', 2)]
    assert not Path('gotcha').exists()


# ---- the command

def test_nothing_half_written(tmp_path):
    write_rows(tmp_path/'f', 'fop')
    import_features('fop', tmp_path/'f', tmp_path/'c')
    with pytest.raises(RunError, match='c: exists'): import_features('fop', tmp_path/'f', tmp_path/'c')
    for p in (tmp_path/'f').glob('*Train.csv'): p.unlink()
    found, m = import_features('fop', tmp_path/'f', tmp_path/'trials-only')
    assert m is None and [p.name for p in (tmp_path/'trials-only').iterdir()] == ['trials']
    assert trial_account(found).used.tolist() == [6]
    for p in (tmp_path/'f').glob('*.csv'): p.write_text('a,b\n')
    assert main(['import', 'fop', str(tmp_path/'f'), '-o', str(tmp_path/'x')]) == 2
    assert main(['import', 'pop', str(tmp_path/'f'), '-o', str(tmp_path/'x')]) == 2
    assert main(['import', 'fop', str(tmp_path/'gone'), '-o', str(tmp_path/'x')]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ['c', 'f', 'trials-only']
