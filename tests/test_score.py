"Somebody else's embeddings: each form of the file, each wrong input in one line, and the row that reports take."
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from checkout import ROOT
from fake_run import make_grid, make_run
from safetensors.numpy import load_file
from tiny_grid import ini
from vfassoc.cli import main
from vfassoc.core import ConfigError, CorpusError, RunError, read_json
from vfassoc.corpus.manifest import Manifest
from vfassoc.evaluation.given import corpus_vectors, read_embeddings
from vfassoc.evaluation.metrics import auc
from vfassoc.evaluation.published import write_published
from vfassoc.evaluation.run_published import baseline_vectors, listed_media
from vfassoc.evaluation.score import read_pairs, score
from vfassoc.evaluation.trial_files import read_lists
from vfassoc.evaluation.trials import matching, retrieval, verification
from vfassoc.experiments.comparison import paired_differences
from vfassoc.experiments.runner import run_report
from vfassoc.experiments.tables import paper_table, read_scores, run_table

FEW = dict(replicates=100, candidates=[2], ks=[1])


def media(people=12, videos=2):
    "Voices and faces, one clip and one frame of each video."
    rows = [dict(identity=f'id{i:05d}', name=f'Name_{i}', video=f'v{i}_{v}', gender='mf'[i % 2], nationality='UK',
                 age=np.nan) for i in range(people) for v in range(videos)]
    t = pd.DataFrame(rows)
    return (t.assign(path='wav/' + t.identity + '/' + t.video + '/00001.wav'),
            t.assign(path='faces/' + t['name'] + '/1.6/' + t.video + '/0000025.jpg'))


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Vectors of twelve people with a share of their identity, their metadata, and lists over them."
    root, rng = tmp_path_factory.mktemp('given'), np.random.default_rng(0)
    V, F = media()
    who = np.repeat(rng.normal(size=(12, 8)), 2, 0)
    x = {m: (who + rng.normal(size=who.shape)).astype(np.float32) for m in ('voice', 'face')}
    np.savez(root/'theirs.npz', **x, voice_path=V.path.to_numpy(str), face_path=F.path.to_numpy(str))
    meta = V[['identity', 'name', 'gender', 'nationality']].drop_duplicates()
    meta.columns = ['VoxCeleb1 ID', 'VGGFace1 ID', 'Gender', 'Nationality']
    meta.to_csv(root/'vox1_meta.csv', sep='\t', index=False)
    (root/'lists').mkdir()
    write_published(verification(V, F, 'U', 400), root/'lists/veriflist_test_random_unseenunheard.txt', V, F)
    write_published(matching(V, F, 'f2v', 'G', 2, 100), root/'lists/matching_f2v_G.csv', V, F)
    write_published(retrieval(V, F, 'v2f'), root/'lists', V, F)
    return root, V, F, x


def rows_of(V, F, x, columns):
    "A table of rows, as .parquet and .csv have it."
    parts = [t[columns].assign(modality=m) for m, t in (('voice', V), ('face', F))]
    return pd.concat(parts, ignore_index=True), np.concatenate([x['voice'], x['face']])


def written(home, folder, form):
    "The vectors in one of the forms that are read."
    _, V, F, x = home
    if form == 'npz, identity, video, item':
        columns = {f'{m}_{c}': t[c].to_numpy(str) for m, t in (('voice', V), ('face', F))
                   for c in ('identity', 'video')}
        items = {'voice_item': ['00001']*len(V), 'face_item': ['0000025']*len(F)}
        np.savez(folder/'a.npz', **x, **columns, **items)
        return [folder/'a.npz']
    t, z = rows_of(V, F, x, ['path'])
    if form == 'parquet':
        t.assign(vector=list(z)).to_parquet(folder/'a.parquet')
        return [folder/'a.parquet']
    t = t.join(pd.DataFrame(z, columns=map(str, range(z.shape[1]))))
    if form == 'csv':
        t.to_csv(folder/'a.csv', index=False)
        return [folder/'a.csv']
    for m in x: t[t.modality == m].drop(columns='modality').to_csv(folder/f'{m}s.csv', index=False)
    return [folder/'voices.csv', folder/'faces.csv']


@pytest.mark.parametrize('form', ['npz, identity, video, item', 'parquet', 'csv', 'two csv'])
def test_every_form_gives_the_scores_of_the_npz(home, tmp_path, form):
    root, *_, x = home
    found = read_embeddings(*written(home, tmp_path, form))
    for m in x: np.testing.assert_allclose(found[m][0], x[m], rtol=1e-6)
    same, npz = (score(tmp_path/r, file, root/'lists', root/'vox1_meta.csv', changes=FEW, quiet=True)
                 for r, file in (('r', written(home, tmp_path, form)), ('s', root/'theirs.npz')))
    a, b = (r.table.set_index(['task', 'direction', 'metric']).value for r in (same, npz))
    np.testing.assert_allclose(a, b, atol=1e-9)
    assert set(npz.table.metric) >= {'auc', 'eer', 'accuracy', 'map', 'recall@1', 'mrr'} and npz.table.low.notna().all()


WRONG = {
    'widths': (lambda x, p: dict(face=x['face'][:, :7]), 'voice vectors have 8 numbers, face vectors 7'),
    'nan': (lambda x, p: dict(voice=np.where(np.arange(24)[:, None] == 4, np.nan, x['voice'])),
            'voice vector 5 (wav/id00002/v2_0/00001.wav) is not finite'),
    'zero': (lambda x, p: dict(face=np.where(np.arange(24)[:, None] == 0, 0, x['face'])), 'face vector 1'),
    'twice': (lambda x, p: dict(voice_path=np.where(np.arange(24) == 1, p[0], p)), '1 voice names are there twice'),
    'too few names': (lambda x, p: dict(voice_path=p[:20]), 'for 20 names'),
    'no name': (lambda x, p: dict(voice_path=np.where(np.arange(24) == 3, ' ', p)), 'voice row 4 has no name'),
    'one dimension': (lambda x, p: dict(voice=x['voice'][:, 0]), 'shape (24,)'),
    'text': (lambda x, p: dict(voice=x['voice'].astype(str)), 'voice vectors have shape'),
    'names of two dimensions': (lambda x, p: dict(voice_path=p[:, None]), 'voice_path has shape'),
    'another form of one name': (lambda x, p: dict(voice_path=np.where(p == p[1], 'Name_0/v0_0_0000001.wav', p)),
                                 'another vector under another name'),
    'no media name': (lambda x, p: dict(voice_path=np.char.replace(p, '.wav', '')), 'names no voice'),
    'nobody known': (lambda x, p: dict(voice_path=np.char.replace(p, 'id000', 'xx')), 'knows nobody of its voices'),
}


@pytest.mark.parametrize('case', WRONG)
def test_each_wrong_file_is_one_line_and_writes_nothing(home, tmp_path, case):
    root, V, F, x = home
    change, said = WRONG[case]
    arrays = dict(x, voice_path=V.path.to_numpy(str), face_path=F.path.to_numpy(str))
    np.savez(tmp_path/'bad.npz', **{**arrays, **change(x, arrays['voice_path'])})
    with pytest.raises(CorpusError) as e:
        score(tmp_path/'r', tmp_path/'bad.npz', root/'lists', root/'vox1_meta.csv', changes=FEW, quiet=True)
    assert said in str(e.value) and 'bad.npz' in str(e.value) and '\n' not in str(e.value)
    assert not (tmp_path/'r').exists()


def test_other_wrong_inputs(home, tmp_path, monkeypatch):
    root, V, F, x = home
    def fails(kind, said, *a, **kw):
        with pytest.raises(kind) as e: score(tmp_path/'r', *a, quiet=True, **kw)
        assert said in str(e.value) and '\n' not in str(e.value)
    file, meta = root/'theirs.npz', root/'vox1_meta.csv'
    fails(ConfigError, 'give one of --lists', file)
    fails(ConfigError, 'give one of --lists', file, root/'lists', meta, trials='x.csv')
    fails(ConfigError, '--lists needs --meta', file, root/'lists')
    fails(ConfigError, 'strata', file, root/'lists', meta, changes=dict(strata=['U']))
    fails(CorpusError, 'none.npz', root/'none.npz', root/'lists', meta)
    fails(CorpusError, 'no face vectors', written(home, tmp_path, 'two csv')[0], root/'lists', meta)
    (tmp_path/'a.parquet').write_bytes(b'no table')
    fails(CorpusError, 'a.parquet: cannot be read', tmp_path/'a.parquet', root/'lists', meta)
    (tmp_path/'p.npz').write_bytes(b'\x80\x04K\x01.')
    fails(CorpusError, 'p.npz: cannot be read', tmp_path/'p.npz', root/'lists', meta)
    def without(*a, **kw): raise ImportError('Missing optional dependency pyarrow')
    monkeypatch.setattr(pd, 'read_parquet', without)
    fails(CorpusError, 'pyarrow', tmp_path/'a.parquet', root/'lists', meta)
    np.savez(tmp_path/'anon.npz', **x)
    fails(CorpusError, 'the voice vectors have no names', tmp_path/'anon.npz', root/'lists', meta)


def test_what_the_file_lacks_is_counted_and_named(home, tmp_path):
    root, V, F, x = home
    arrays = dict(voice=x['voice'][2:], voice_path=V.path.to_numpy(str)[2:], face=x['face'],
                  face_path=F.path.to_numpy(str))
    np.savez(tmp_path/'part.npz', **arrays)
    args = tmp_path/'part.npz', root/'lists', root/'vox1_meta.csv'
    r = score(tmp_path/'r', *args, changes=FEW, quiet=True)
    assert r.notes[0] == ('2 of 24 voices of the lists are not in part.npz (wav/id00000/v0_0/00001.wav, '
                          'wav/id00000/v0_1/00001.wav)')
    account = {a['list']: a for a in read_json(tmp_path/'r/lists.json')['account']}
    assert 0 < account['veriflist_test_random_unseenunheard.txt']['used'] < account[
        'veriflist_test_random_unseenunheard.txt']['lines']
    with pytest.raises(CorpusError, match=r'line [0-9]+: '):
        score(tmp_path/'s', *args, changes=FEW, strict=True, quiet=True)


def test_a_corpus_by_its_paths_and_by_the_meaning_of_names(home):
    root, V, F, x = home
    t = pd.concat([V.assign(modality='voice'), F.assign(modality='face')], ignore_index=True).assign(split='test')
    found = read_embeddings(root/'theirs.npz')
    emb, notes = corpus_vectors('theirs.npz', found, Manifest(root, t, {}, ''), 'test')
    np.testing.assert_array_equal(emb.voice, x['voice'])
    other = {m: (z, p.assign(path=[f'{n}/{v}_0000001.wav' if m == 'voice' else f'{i}/{v}/0000025.jpg' for n, v, i in
                                   zip(V['name'], V.video, V.identity)])) for m, (z, p) in found.items()}
    order = np.random.default_rng(1).permutation(24)
    other = {m: (z[order], p.iloc[order].reset_index(drop=True)) for m, (z, p) in other.items()}
    again, _ = corpus_vectors('x', other, Manifest(root, t, {}, ''), 'test')
    np.testing.assert_array_equal(again.voice, emb.voice)
    np.testing.assert_array_equal(again.face, emb.face)
    assert not notes
    nobody = {m: (z, p.assign(path=p.path.str.replace('id0|Name', 'zz', regex=True))) for m, (z, p) in found.items()}
    with pytest.raises(CorpusError, match='24 of 24 voices of the test split are not in x'):
        corpus_vectors('x', nobody, Manifest(root, t, {}, ''), 'test')


def test_pairs_with_and_without_identities(home, tmp_path):
    root, V, F, x = home
    rng = np.random.default_rng(2)
    i, j = rng.integers(24, size=(2, 300))
    d = pd.DataFrame({'voice': V.path.to_numpy()[i], 'face': F.path.to_numpy()[j]})
    d['label'] = (V.identity.to_numpy()[i] == F.identity.to_numpy()[j]).astype(int)
    d['stratum'] = np.where(np.arange(300) % 3, 'U', 'Urdu')
    i, j, d = i[k := ~d.duplicated().to_numpy()], j[k], d[k]
    d.to_csv(tmp_path/'pairs.csv', index=False)
    d.to_parquet(tmp_path/'pairs.parquet')
    pair = (read_pairs(tmp_path/f'pairs.{end}').reset_index(drop=True) for end in ('csv', 'parquet'))
    pd.testing.assert_frame_equal(*pair)
    r = score(tmp_path/'r', root/'theirs.npz', trials=tmp_path/'pairs.csv', changes=FEW, quiet=True)
    unit = {m: z/np.linalg.norm(z, axis=1, keepdims=True) for m, z in x.items()}
    s = np.einsum('nd,nd->n', unit['voice'][i], unit['face'][j])
    got = r.table[r.table.metric == 'auc'].set_index('stratum')
    for k in ('U', 'Urdu'):
        assert got.value[k] == pytest.approx(auc(d.label[d.stratum == k], s[(d.stratum == k).to_numpy()]), abs=1e-9)
    assert got.low.isna().all() and 'no identities, so no intervals' in ' '.join(r.notes)
    named = d.assign(voice_identity=V.identity.to_numpy()[i], face_identity=F.identity.to_numpy()[j])
    named.to_csv(tmp_path/'named.csv', index=False)
    for kw in (dict(trials=tmp_path/'named.csv'), dict(trials=tmp_path/'pairs.csv', metadata=root/'vox1_meta.csv')):
        r = score(tmp_path/'r', root/'theirs.npz', changes=FEW, quiet=True, **kw)
        assert r.table.low.notna().all() and (r.table.low <= r.table.value).all()
    with pytest.raises(RunError, match='cid: '):
        score(tmp_path/'s', root/'theirs.npz', trials=tmp_path/'pairs.csv', changes=FEW, quiet=True)
        run_table([tmp_path/'r', make_run(tmp_path/'cid', tmp_path/'corpus')])


# ---- a row of the tables

@pytest.fixture(scope='module')
def beside(tmp_path_factory):
    "A sweep of two methods with three seeds, its corpus, and the vectors of one of them as somebody else's."
    home = tmp_path_factory.mktemp('beside')
    grid = make_grid(home/'runs'/'g', home/'data'/'fake', {'CID': 3, 'CMPC': 3})
    people = range(8)
    (home/'data/fake/vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\n' + ''.join(
        f'id{p:05d}\tPerson_{p}\t{"mf"[p % 2]}\tUK\n' for p in people))
    (home/'data/fake/identity_splits.txt').write_text(''.join(f'Person_{p} 4\n' for p in people))
    for seed in range(3):
        run = grid/'v1'/f'seed{seed}'
        vectors, t = load_file(run/'embeddings.safetensors'), pd.read_parquet(run/'embeddings.parquet')
        names = {f'{m}_path': t.path[t.modality == m].to_numpy(str) for m in vectors}
        np.savez(home/f'theirs{seed}.npz', **vectors, **names)
    return home, grid


def test_the_row_is_that_of_a_run_and_is_compared_by_seed(beside, capsys):
    home, grid = beside
    rows, few = [], [w for k, x in FEW.items() for w in ('--set', f'{k}={json.dumps(x)}')]
    for seed in range(3):
        words = ['score', str(home/f'theirs{seed}.npz'), '--corpus', 'fake', '--run', f'theirs{seed}',
                 '--name', 'Theirs', '--seed', str(seed), *few]
        assert main(['--settings', str(ini(home)), *words]) == 0, capsys.readouterr().err
        rows.append(home/'runs'/f'theirs{seed}')
        stamp = read_json(rows[-1]/'provenance.json')
        stamp['evaluated']['corpus_hash'] = 'c0ffee' # that of the fake runs
        (rows[-1]/'provenance.json').write_text(json.dumps(stamp))
    out = capsys.readouterr().out
    assert 'Theirs' in out and 'leakage not checked' in out and str(rows[-1]) in out
    runs = [*(grid/f'v0/seed{s}' for s in range(3)), *rows]
    t = paper_table(read_scores(runs))
    assert 'Theirs (3 seeds)' in t.index and 'CID (3 seeds)' in t.index
    d = paired_differences(read_scores(runs), 'CID')
    assert set(d.method) == {'Theirs'} and (d.seeds == 3).any()
    _, html = run_report(ROOT/'nbs/reports/compare.ipynb', home/'compare', dict(
        grid=str(grid), runs=[str(r) for r in rows], figures=str(home/'figures')), quiet=True)
    assert 'Theirs (3 seeds)' in html.read_text()
    with pytest.raises(RunError, match='seed0: '):
        score(grid/'v0/seed0', home/'theirs0.npz', corpus=str(home/'data/fake'))


def test_the_command_refuses_in_one_line(home, capsys):
    root, *_ = home
    for words, said in (((root/'theirs.npz',), 'give one of --lists'),
                        ((root/'theirs.npz', '--corpus', 'none', '--meta', 'x'), '--meta belongs'),
                        ((root/'theirs.json', '--trials', root/'vox1_meta.csv'), '.npz, .parquet or .csv')):
        assert main(['--settings', str(ini(root)), 'score', *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count('\n') == 1


@pytest.mark.skipif(not os.environ.get('VFASSOC_SHARED'), reason='VFASSOC_SHARED names no folder with published lists')
def test_the_released_lists_from_a_file(tmp_path):
    folder = Path(os.environ['VFASSOC_SHARED'])/'voxceleb'/'cmpc'
    named, _ = read_lists(folder/'veriflist'/'veriflist_test_G_unseenunheard.txt')
    V, F = listed_media(named, folder/'vox1_meta.csv')
    x = {f'{m}': baseline_vectors('gender', t, 16, 0, m) for m, t in (('voice', V), ('face', F))}
    np.savez(tmp_path/'g.npz', **x, voice_path=V.path.to_numpy(str), face_path=F.path.to_numpy(str))
    r = score(tmp_path/'r', tmp_path/'g.npz', folder/'veriflist'/'veriflist_test_G_unseenunheard.txt',
              folder/'vox1_meta.csv', changes=dict(replicates=100), quiet=True)
    row = r.table[r.table.metric == 'auc'].iloc[0]
    assert row.trials == 30_496 and .49 < row.value < .53 and row.low < row.value < row.high
