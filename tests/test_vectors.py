"Corpora of vectors: three forms of tables, splits, copies, bad input, and a whole run on one of them."
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vfassoc.cli import main
from vfassoc.core import ConfigError, CorpusError, RunError, Settings
from vfassoc.corpus.features import FeaturePairs, load_features
from vfassoc.corpus.manifest import assert_disjoint, corpus_kind
from vfassoc.corpus.vectors import (VectorConfig, load_vectors, read_people, read_vectors, split_identities,
                                    vectors_path, write_vectors)
from vfassoc.evaluation.run import evaluate_run
from vfassoc.evaluation.trials import verification
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import open_corpus, train

SHARED = Path(os.environ.get('VFASSOC_SHARED', '/nonexistent'))
LITTLE = {'model.dim': 8, 'train.total_samples': 320, 'train.batch_size': 16, 'train.lr_warmup': 32, 'method.tau': .1}


def drawn(people=20, videos=3, widths=(4, 6), items=2, **columns):
    "Vectors with a part that the two modalities of a person share."
    rng = np.random.default_rng(0)
    rows = [(f'p{i:02d}', f'p{i:02d}v{j}', i) for i in range(people) for j in range(videos) for _ in range(items)]
    t = pd.DataFrame(rows, columns=['identity', 'video', 'number']).assign(**columns)
    who = rng.standard_normal((people, 3))
    def vectors(width):
        x = .5*rng.standard_normal((len(t), width))
        x[:, :3] += who[t.number]
        return x.astype(np.float32)
    return {m: (vectors(w), t.drop(columns='number')) for m, w in zip(('voice', 'face'), widths)}


def changed(d, **columns): return {m: (x, t.assign(**columns)) for m, (x, t) in d.items()}


def without(d, *columns): return {m: (x, t.drop(columns=list(columns))) for m, (x, t) in d.items()}


def written(d, folder, form):
    "The tables of `d` as files of a form."
    if form == 'npz':
        arrays = {f'{m}_{c}': t[c].to_numpy(str) for m, (_, t) in d.items() for c in t}
        np.savez(folder/'all.npz', **{m: x for m, (x, _) in d.items()}, **arrays)
        return [folder/'all.npz']
    if form == 'paths':
        paths = {f'{m}_path': (t.identity + '/' + t.video + '/' + t.groupby('video').cumcount().astype(str)).to_numpy(
            str) for m, (_, t) in d.items()}
        np.savez(folder/'all.npz', **{m: x for m, (x, _) in d.items()}, **paths)
        return [folder/'all.npz']
    if form == 'parquet':
        parts = [t.assign(modality=m, vector=list(x)) for m, (x, t) in d.items()]
        pd.concat(parts).to_parquet(folder/'all.parquet')
        return [folder/'all.parquet']
    for m, (x, t) in d.items():
        pd.concat([t, pd.DataFrame(x).rename(columns=str)], axis=1).to_csv(folder/f'{m}s.csv', index=False)
    return [folder/'voices.csv', folder/'faces.csv']


@pytest.mark.parametrize('form', ['npz', 'paths', 'parquet', 'csv'])
def test_every_form_gives_one_corpus(tmp_path, form):
    d = drawn()
    read = read_vectors(*written(d, tmp_path, form))
    for m in d:
        np.testing.assert_allclose(read[m][0], d[m][0], rtol=1e-6)
        assert read[m][1].identity.tolist() == d[m][1].identity.tolist()
        assert read[m][1].video.tolist() == d[m][1].video.tolist()
    m = write_vectors(tmp_path/'c', read)
    assert corpus_kind(m.root) == 'vectors' and m.table.modality.value_counts().to_dict() == {'voice': 120, 'face': 120}
    assert {s: len(m.identities(s)) for s in ('train', 'valid', 'test')} == {'train': 14, 'valid': 2, 'test': 4}
    assert isinstance(load_features(vectors_path(m.root)).voice, np.memmap)


def test_a_row_keeps_its_vector(tmp_path):
    "However the tables are ordered, a pair has the vectors of its video."
    d = drawn(items=1)
    order = np.random.default_rng(1).permutation(len(d['face'][0]))
    d['face'] = d['face'][0][order], d['face'][1].iloc[order].reset_index(drop=True)
    m = write_vectors(tmp_path/'c', d)
    pairs = FeaturePairs(m, load_features(vectors_path(m.root)), 'train', augment=False)
    voice, face, _ = pairs.batch([(0, i) for i in range(len(pairs))])
    for x, (vectors, t) in zip((voice, face), d.values()):
        want = pd.Series(list(vectors), t.video).loc[pairs.videos.video]
        np.testing.assert_array_equal(x.numpy(), np.stack(want.to_numpy()))


def test_train_and_evaluate_as_on_any_corpus(tmp_path, monkeypatch, capsys):
    "The commands alone, with linear and with MLP towers; the shared part is learnt."
    monkeypatch.chdir(tmp_path)
    files = [str(p) for p in written(drawn(people=40, videos=4), tmp_path, 'csv')]
    assert main(['vectors', *files, '-o', 'mine', '--set', 'valid=0.2', '--set', 'train=0.6']) in (0, None)
    assert 'identities are split by seed 0' in capsys.readouterr().out
    sets = [w for k, v in {**LITTLE, 'model.voice_dim': 4, 'model.face_dim': 6, 'train.peak_lr': .01,
                           'train.total_samples': 3200}.items() for w in ('--set', f'{k}={v}')]
    for encoder in ('linear', 'mlp'):
        words = ['train', 'cid-twin', '--corpus', 'mine', '--run', encoder, *sets, '--set', f'model.encoder={encoder}']
        assert main(words) in (0, None) and main(['evaluate', encoder]) in (0, None)
        capsys.readouterr()
    s = Settings(data=tmp_path/'data', runs=tmp_path/'runs', device='cpu')
    table = evaluate_run(tmp_path/'runs'/'mlp', s, {'replicates': 100}).table
    auc = table[(table.task == 'verification') & (table.metric == 'auc') & (table.stratum == 'U')].value.iloc[0]
    assert auc > .7


def test_splits(tmp_path):
    folds = [split_identities([f'p{i}' for i in range(50)], VectorConfig(fold=k)) for k in range(5)]
    tested = [i for f in folds for i, s in f.items() if s == 'test']
    assert len(tested) == 50 == len(set(tested))
    assert split_identities('cba') == split_identities('abc') != split_identities('abc', VectorConfig(seed=3))
    given = write_vectors(tmp_path/'given', changed(drawn(), split=['train']*60 + ['valid']*30 + ['test']*30))
    assert {s: len(given.identities(s)) for s in ('train', 'valid', 'test')} == {'train': 10, 'valid': 5, 'test': 5}
    with pytest.raises(CorpusError, match='two splits: p00'):
        write_vectors(tmp_path/'both', changed(drawn(), split=['train', 'test']*60))
    with pytest.raises(CorpusError, match="split 'dev'"):
        write_vectors(tmp_path/'dev', changed(drawn(), split='dev'))
    with pytest.raises(ConfigError, match='fold = 5'): split_identities(list('abcdefghij'), VectorConfig(fold=5))


def test_copies_are_counted_and_never_on_both_sides(tmp_path):
    d = drawn()
    for x, _ in d.values():
        x[1] = x[0] # within p00v0
        x[2] = x[6] # p00v1 and p01v0
        x[20] = x[22] = x[23] # p03v1 and, twice, p03v2
    m = write_vectors(tmp_path/'c', d)
    assert {k: len(v) for k, v in m.report['excluded'].items()} == {
        'repeats a vector of its video': 2, 'the same vector in several videos': 10}
    features = load_features(vectors_path(m.root))
    for x in (features.voice, features.face): assert len(np.unique(x, axis=0)) == len(x) == 120 - 6
    voices, faces = (m.media(k) for k in ('voice', 'face'))
    t = verification(voices, faces, trials=1000, same_video='exclude')
    assert (voices.video.to_numpy()[t.voice] != faces.video.to_numpy()[t.face]).all()


def test_what_a_table_may_lack_is_said(tmp_path):
    m = write_vectors(tmp_path/'none', without(drawn(), 'video'))
    assert [n for n in m.report['notes'] if 'no column video' in n] and len(m.videos()) == 20
    m = write_vectors(tmp_path/'one', drawn(videos=1))
    assert 'every identity has one video: no positives from other videos' in m.report['notes']
    voices, faces = (m.media(k, 'test') for k in ('voice', 'face'))
    t = verification(voices, faces, same_video='exclude')
    assert len(t) == 0 and t.notes


def test_languages(tmp_path):
    d = changed(drawn(), language=['English', 'English', 'Urdu', 'Urdu', '', '']*20)
    both, urdu = write_vectors(tmp_path/'both', d), write_vectors(tmp_path/'urdu', d, VectorConfig(languages=('Urdu',)))
    assert len(both.report['rows of unknown language']) == 80
    assert set(both.table.language) == {'English', 'Urdu', 'unknown'}
    assert set(urdu.table.language) == {'Urdu'} and len(urdu.table) == 80
    assert urdu.identities('test') == both.identities('test') # so that languages can be crossed
    with pytest.raises(ConfigError, match='languages = Greek'):
        write_vectors(tmp_path/'x', d, VectorConfig(languages=('Greek',)))


def test_people(tmp_path):
    (tmp_path/'people.csv').write_text('identity,group\n' + ''.join(f'p{i:02d},{"ab"[i % 2]}\n' for i in range(19)))
    m = write_vectors(tmp_path/'c', drawn(), people=read_people(tmp_path/'people.csv'))
    assert m.report['identities of unknown gender'] == ['p19']
    assert m.table.groupby('identity').gender.first().value_counts().to_dict() == {'a': 10, 'b': 9, 'unknown': 1}
    (tmp_path/'people.csv').write_text('identity,gender\na,f\na,m\n')
    with pytest.raises(CorpusError, match=r'people\.csv: a '): read_people(tmp_path/'people.csv')


def bad_rows(kind):
    d = drawn()
    x, t = d['face']
    if kind == 'not finite': x[7, 2] = np.nan
    if kind == 'shape': d['face'] = x[:-1], t
    if kind == 'no column identity': d['face'] = x, t.drop(columns='identity')
    if kind == 'no identity': d['face'] = x, t.assign(identity=['', *t.identity[1:]])
    if kind == 'no video has both': d['face'] = x, t.assign(video=t.video + 'x')
    return d


@pytest.mark.parametrize('kind, where', [
    ('not finite', 'row 8'), ('shape', r'\(119, 6\)'), ('no column identity', 'face'), ('no identity', 'row 1'),
    ('no video has both', 'c')])
def test_bad_rows_leave_nothing(tmp_path, kind, where):
    with pytest.raises(CorpusError, match=where): write_vectors(tmp_path/'c', bad_rows(kind))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name, text, value', [
    ('a.txt', '', 'a.txt'), ('voices.csv', 'identity,video\na,b\n', 'voices.csv: no vectors'),
    ('table.csv', 'identity,video,0\na,b,1\n', "table.csv: modality ''"),
    ('voices.csv', 'identity,video,0\na,b,1\n', 'no face vectors'), ('a.npz', 'PK', 'a.npz'),
    ('a.parquet', 'PAR1', 'a.parquet')])
def test_bad_tables(tmp_path, name, text, value):
    (tmp_path/name).write_text(text)
    with pytest.raises(CorpusError, match=value): read_vectors(tmp_path/name)


def test_another_width_is_one_line(tmp_path):
    write_vectors(tmp_path/'c', drawn())
    s = Settings(data=tmp_path, runs=tmp_path, device='cpu')
    with pytest.raises(ConfigError, match=r'voice vectors have 4 numbers, model.voice_dim = 192'):
        train(load_recipe('cid-twin', {**LITTLE, 'corpus': 'c'}), tmp_path/'r', s, quiet=True)
    with pytest.raises(ConfigError, match="model.encoder = 'small' on .*c, a corpus of vectors"):
        train(load_recipe('cid-demo', {'corpus': 'c'}), tmp_path/'r', s, quiet=True)
    assert not (tmp_path/'r'/'config.json').exists()


def test_damage_is_noticed(tmp_path):
    m = write_vectors(tmp_path/'c', drawn())
    s = Settings(data=tmp_path, runs=tmp_path)
    assert open_corpus('c', s).hash == m.hash == load_vectors(tmp_path/'c').hash
    with pytest.raises(RunError, match='c: exists'): write_vectors(tmp_path/'c', drawn())
    for name, damage in (('vectors.json', lambda b: b.replace(b'"schema": 1', b'"schema": 2')),
                         ('manifest.parquet', lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:])):
        old = (tmp_path/'c'/name).read_bytes()
        (tmp_path/'c'/name).write_bytes(damage(old))
        with pytest.raises(CorpusError, match=name): open_corpus('c', s)
        (tmp_path/'c'/name).write_bytes(old)
    (tmp_path/'c'/'features.npz').unlink()
    with pytest.raises(CorpusError, match='features.npz: missing'): open_corpus('c', s)


@pytest.mark.skipif(not (SHARED/'corpora'/'mavceleb-v1'/'features.npz').is_file(),
                    reason='VFASSOC_SHARED names no folder with corpora/mavceleb-v1')
def test_real_people(tmp_path):
    "CID on the vectors of MAV-Celeb: five folds, near what was measured before (68.0 / 61.5 at a temperature of 0.1)."
    source = SHARED/'corpora'/'mavceleb-v1'
    read, people = read_vectors(source/'features.npz'), read_people(source/'people.csv')
    s, found = Settings(data=tmp_path, runs=tmp_path, device='cpu', workers=0), []
    for fold in range(5):
        m = write_vectors(tmp_path/f'm{fold}', read, VectorConfig(fold=fold), people)
        assert_disjoint(m)
        recipe = load_recipe('cid-twin', {
            'corpus': f'm{fold}', 'model.voice_dim': 256, 'method.tau': .1, 'train.total_samples': 19_200,
            'train.lr_warmup': 1280, 'train.peak_lr': 1e-3, 'train.batch_size': 64})
        train(recipe, tmp_path/f'r{fold}', s, quiet=True)
        t = evaluate_run(tmp_path/f'r{fold}', s, {'replicates': 100, 'candidates': []}).table
        found.append(t[(t.task == 'verification') & (t.metric == 'auc')].groupby('stratum').value.first())
    assert {k: len(v) for k, v in m.report['excluded'].items()} == {
        'repeats a vector of its video': 4409, 'the same vector in several videos': 160}
    mean = pd.DataFrame(found).mean()
    assert .62 < mean.U < .78 and .54 < mean.G < .68
