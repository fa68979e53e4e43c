"VoxCeleb1's twin: its shape, its lists and splits, what is drawn, and what happens without the index."
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vfassoc.cli import main
from vfassoc.core import ConfigError, CorpusError, RunError, Settings
from vfassoc.corpus.features import load_features
from vfassoc.corpus.manifest import save_manifest
from vfassoc.corpus.vectors import load_vectors, vectors_path
from vfassoc.evaluation.run_published import corpus_lists, evaluate_on_lists
from vfassoc.synthetic import twin as module
from vfassoc.synthetic.twin import (TwinConfig, choose_identities, read_twin_index, read_twin_truth, twin_splits,
                                    write_twin)
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import open_corpus, train

SHARED = Path(os.environ.get('VFASSOC_SHARED', '/nonexistent'))/'voxceleb'
needs_index = pytest.mark.skipif(not (SHARED/'utterances.tsv.gz').is_file(),
                                 reason='VFASSOC_SHARED names no folder with voxceleb/utterances.tsv.gz')


def index_of(folder, people=40):
    "An index in VoxCeleb1's form: four videos each, two utterances in a video, and lists that name faces."
    (folder/'cmpc'/'Splits').mkdir(parents=True)
    rows = [f'id{i:05d}\tv{i:02d}x{j}\t{u:05d}\t{4 + u}\tdev' for i in range(people) for j in range(4) for u in (1, 2)]
    (folder/'utterances.tsv').write_text('identity\tvideo\tutterance\tseconds\tpart\n' + '\n'.join(rows) + '\n')
    meta = [f'id{i:05d}\tAnn_{i}\t{"mf"[i % 2]}\t{"USA" if i % 3 else "UK"}\tdev' for i in range(people)]
    (folder/'cmpc'/'vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n' +
                                               '\n'.join(meta) + '\n')
    split = [1]*(people - 14) + [2]*4 + [4]*10
    (folder/'cmpc'/'Splits'/'identity_splits.txt').write_text(
        ''.join(f'Ann_{i} {k}\n' for i, k in enumerate(split)))
    test = range(people - 10, people)
    lines = [f'id{i:05d}/v{i}x0/00001.wav Ann_{i}/1.6/v{i}x{k}/000{k}075.jpg '
             f'Ann_{j}/1.6/v{j}x0/0000500.jpg' for i, j in zip(test, [*test][1:]) for k in (0, 1)]
    (folder/'cmpc'/'matching_v2f_U.csv').write_text('\n'.join(lines) + '\n')
    return read_twin_index(folder)


@pytest.fixture(scope='module')
def index(tmp_path_factory): return index_of(tmp_path_factory.mktemp('index')/'voxceleb')


@pytest.fixture(scope='module')
def twin(index, tmp_path_factory):
    return write_twin(tmp_path_factory.mktemp('twin')/'twin', index, TwinConfig(faces=3), quiet=True)


def test_shape(index, twin):
    t = twin.table
    voice, face = t[t.modality == 'voice'], t[t.modality == 'face']
    utterances = index.utterances
    assert voice.path.tolist() == sorted('wav/' + utterances.identity + '/' + utterances.video + '/' +
                                         utterances.utterance + '.wav')
    assert set(voice.duration) == {5., 6.} and face.groupby(['identity', 'video']).size().min() == 3
    assert t.groupby('identity').gender.first().value_counts().to_dict() == {'m': 20, 'f': 20}
    assert {s: len(twin.identities(s)) for s in ('train', 'valid', 'test')} == {'train': 26, 'valid': 4, 'test': 10}
    x = load_features(vectors_path(twin.root))
    assert (x.voice.shape, x.face.shape) == ((320, 192), (len(face), 512)) and isinstance(x.face, np.memmap)
    np.testing.assert_allclose(np.linalg.norm(x.voice.astype(float), axis=1), 1, atol=2e-3)


def test_released_lists_run_unchanged(index, twin):
    *_, account, _ = corpus_lists(index.folder/'cmpc', twin, strict=True)
    assert account[['list', 'lines', 'used']].values.tolist() == [['matching_v2f_U.csv', 18, 18]]


def test_a_face_that_no_list_names_is_not_named(twin):
    named = twin.table[twin.table.path.str.contains('0001075|0000500')]
    assert len(named) == 9 + 9 and set(named.split) == {'test'}


def test_vectors_are_those_of_their_video(index, tmp_path):
    "Without noise all utterances of a video are equal, those of two videos differ."
    m = write_twin(tmp_path/'still', index, TwinConfig(faces=3, noise=0, deviates=0), quiet=True)
    x = load_features(vectors_path(m.root))
    for modality in ('voice', 'face'):
        t, z = m.media(modality), getattr(x, modality)
        first = t.groupby(['identity', 'video']).ngroup().to_numpy()
        assert len(np.unique(z, axis=0)) == first.max() + 1 == 160
        assert all(len(np.unique(z[first == k], axis=0)) == 1 for k in range(0, 160, 40))
    truth, voice, face = read_twin_truth(m.root)
    assert truth[['identity', 'video']].values.tolist() == m.videos()[['identity', 'video']].values.tolist()
    own = m.media('voice').groupby(['identity', 'video']).ngroup().to_numpy()
    far = np.linalg.norm(voice[:, None] - voice[None], axis=2)
    z = x.voice[np.unique(own, return_index=True)[1]].astype(float)
    assert np.corrcoef(far[np.triu_indices(160, 1)], (z@z.T)[np.triu_indices(160, 1)])[0, 1] < -.5


def test_the_same_seed_draws_the_same_bytes(index, twin, tmp_path):
    again = write_twin(tmp_path/'again', index, TwinConfig(faces=3), quiet=True)
    other = write_twin(tmp_path/'other', index, TwinConfig(faces=3, seed=1), quiet=True)
    assert again.hash == twin.hash != other.hash
    for name in ('features.npz', 'twin.parquet'):
        assert (again.root/name).read_bytes() == (twin.root/name).read_bytes()


def test_session_moves_voice_and_face_together(index, tmp_path):
    "With a coupled session, what a video adds to the voice predicts what it adds to the face; without, it does not."
    found = {}
    for coupling in (0., 1.):
        m = write_twin(tmp_path/f'{coupling}', index, TwinConfig(faces=1, session=3., session_coupling=coupling,
                                                                 deviates=0), quiet=True)
        truth, voice, face = read_twin_truth(m.root)
        inside = [x - pd.DataFrame(x).groupby(truth.identity).transform('mean').to_numpy() for x in (voice, face)]
        u = [np.linalg.svd(x[:, -10:], full_matrices=False)[0][:, :4] for x in inside]
        found[coupling] = np.linalg.svd(u[0].T@u[1])[1][0]
    assert found[0.] < .4 < .8 < found[1.]


def test_deviates_are_planted(index, tmp_path):
    m = write_twin(tmp_path/'t', index, TwinConfig(faces=1, deviates=.5, noise=0), quiet=True)
    clean = write_twin(tmp_path/'clean', index, TwinConfig(faces=1, deviates=0, noise=0), quiet=True)
    (t, voice, face), (_, voice0, face0) = read_twin_truth(m.root), read_twin_truth(clean.root)
    assert t.deviate.value_counts().to_dict() == {'none': 80, 'offscreen': 40, 'noise': 20, 'occluded': 20}
    kinds = {k: ((voice != voice0).any(1)[t.deviate == k].mean(), (face != face0).any(1)[t.deviate == k].mean())
             for k in t.deviate.unique()}
    assert kinds == {'none': (0, 0), 'offscreen': (1, 0), 'noise': (1, 0), 'occluded': (0, 1)}
    other = t[t.deviate == 'offscreen']
    split = t.groupby('identity').split.first()
    assert (other.heard != other.identity).all() and (split[other.heard].to_numpy() == other.split).all()


def test_smaller_twins_have_the_same_people(index):
    some = choose_identities(index, TwinConfig(identities=20))
    assert pd.Series(some).value_counts().to_dict() == {'train': 13, 'test': 5, 'valid': 2}
    assert choose_identities(index, TwinConfig(identities=20, coupling=.1, session=2.)) == some
    assert choose_identities(index, TwinConfig(identities=20, seed=1)) != some
    with pytest.raises(ConfigError, match='identities = 41'): choose_identities(index, TwinConfig(identities=41))


def test_an_interrupted_twin_leaves_nothing_and_starts_again(index, tmp_path, monkeypatch):
    def stop(*a, **kw): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(module, 'finish_vectors', stop)
        with pytest.raises(KeyboardInterrupt): write_twin(tmp_path/'t', index, TwinConfig(faces=1), quiet=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path/'.t.unfinished').mkdir() # of a process that was killed
    (tmp_path/'.t.unfinished'/'voice.npy').write_bytes(b'half')
    m = write_twin(tmp_path/'t', index, TwinConfig(faces=1), quiet=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['t'] and not (m.root/'voice.npy').exists()
    with pytest.raises(RunError, match='t: exists'): write_twin(tmp_path/'t', index, TwinConfig(faces=1), quiet=True)


def test_the_commands(index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['twin', '-o', 't']) not in (0, None)
    said = capsys.readouterr().err
    assert 'utterances.tsv.gz' in said and said.count('\n') == 1 and not list((tmp_path/'data').glob('t*'))
    words = ['twin', '-o', 't', '--index', str(index.folder), '--set', 'faces=2', '--set', 'session=1']
    assert main(words) in (0, None) and 'a simulation' in capsys.readouterr().out
    sets = ['--set', 'train.total_samples=640', '--set', 'train.lr_warmup=64', '--set', 'train.batch_size=32']
    assert main(['train', 'cid-twin', '--corpus', 't', '--run', 'cid', *sets]) in (0, None)
    assert main(['evaluate', 'cid', '--lists', str(index.folder/'cmpc')]) in (0, None)
    assert main(['train', 'cmpc-twin', '--corpus', 't', '--run', 'cmpc', *sets, '--set', 'method.cid_samples=128',
                 '--set', 'method.num_prototypes=[5,9]']) in (0, None)
    assert (tmp_path/'runs'/'cid'/'lists.json').is_file()


@pytest.mark.parametrize('gone, value', [('utterances.tsv', 'no utterances.tsv.gz'),
                                         ('cmpc/vox1_meta.csv', 'no vox1_meta.csv')])
def test_without_the_index_one_line_says_what_to_get(tmp_path, gone, value):
    index_of(tmp_path/'v')
    (tmp_path/'v'/gone).unlink()
    with pytest.raises(CorpusError, match=value) as e: read_twin_index(tmp_path/'v')
    assert 'github.com/Cocoxili/CMPC' in str(e.value) and '\n' not in str(e.value)


def test_a_split_that_is_not_there(tmp_path):
    index = index_of(tmp_path/'v')
    with pytest.raises(CorpusError, match='vox1_train.csv'): twin_splits(index, 'faa')
    (tmp_path/'v'/'cmpc'/'Splits'/'identity_splits.txt').unlink()
    with pytest.raises(CorpusError, match='identity_splits.txt'): twin_splits(index, 'cmpc')
    assert pd.Series(twin_splits(index, 'random')).value_counts().to_dict() == {'train': 28, 'test': 8, 'valid': 4}
    with pytest.raises(ConfigError, match="split = 'other'"): TwinConfig(split='other')


def test_an_edited_twin_is_noticed(index, tmp_path):
    m = write_twin(tmp_path/'t', index, TwinConfig(faces=1), quiet=True)
    m.table.loc[0, 'split'] = 'test'
    save_manifest(type(m)(m.root, m.table, m.report, 'a'*64), m.root/'manifest.parquet')
    with pytest.raises(CorpusError, match=rf'^{m.root}: .*vectors\.json'): load_vectors(m.root)


@needs_index
def test_true_size(tmp_path):
    "All of VoxCeleb1: counts, both papers' splits, every line of the released lists, and a short run scored on them."
    index = read_twin_index(SHARED)
    m = write_twin(tmp_path/'twin', index, quiet=True)
    voices, faces = (m.table[m.table.modality == k] for k in ('voice', 'face'))
    assert (len(m.identities()), len(m.videos()), len(voices)) == (1251, 22_496, 153_516)
    assert {s: len(m.identities(s)) for s in ('train', 'valid', 'test')} == {'train': 901, 'valid': 100, 'test': 250}
    assert faces.groupby(['identity', 'video']).size().min() == 10
    faa = pd.Series(twin_splits(index, 'faa'))
    assert faa.value_counts().to_dict() == {'train': 924, 'test': 189, 'valid': 112}
    s = Settings(data=tmp_path, runs=tmp_path, device='cpu', workers=0)
    train(load_recipe('cid-twin', {'train.total_samples': 12_800, 'train.lr_warmup': 1280}), tmp_path/'cid', s,
          quiet=True)
    r = evaluate_on_lists(tmp_path/'cid', SHARED/'cmpc', s, {'replicates': 100}, strict=False)
    t = r.table
    auc = t[(t.task == 'verification') & (t.metric == 'auc')].groupby('stratum').value.first()
    assert auc.U > .7 and auc.G > .53
    *_, account, _ = corpus_lists(SHARED/'cmpc', open_corpus('twin', s))
    assert account.used.sum()/account.lines.sum() > .999
