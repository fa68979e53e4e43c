"A changed byte, a header of another form, a full disk: one line, or nothing has changed."
import errno, json, os, shutil, subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vfassoc.core import ConfigError, CorpusError, RunError, RunFolder, Settings, VfassocError
from vfassoc.corpus.features import load_features, save_features
from vfassoc.corpus.manifest import load_manifest, save_manifest, scan
from vfassoc.corpus.packed import load_pack, open_media, pack
from vfassoc.integrity import new_array, old_array, reserve
from vfassoc.methods.registry import build_method
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel
from vfassoc.synthetic.corpus import (FACE_CUE_COLUMNS, SESSION_COLUMNS, VOICE_CUE_COLUMNS, SynthConfig, draw_truth,
                                      read_truth, synthetic_seed)
from vfassoc.training.checkpoint import FitState, load_checkpoint, load_tensors, save_checkpoint, save_tensors
from vfassoc.training.config import TrainConfig
from vfassoc.training.extract import cache_features, make_features

CONFIG = TrainConfig(total_samples=16, batch_size=8, lr_warmup=0)


def one_line(error, *words):
    text = str(error.value if hasattr(error, 'value') else error)
    assert '\n' not in text and len(text) < 500 and all(str(w) in text for w in words), text


def flipped(path:Path, at:int, mask:int=255):
    raw = bytearray(path.read_bytes())
    raw[at] ^= mask
    path.write_bytes(raw)


def fuzz(path:Path, read, places:int=80, seed:int=0):
    "Change one byte at a time: `read()` gives what it gave, or one line."
    whole, rng, refused = path.read_bytes(), np.random.default_rng(seed), 0
    before = read()
    for at in rng.choice(len(whole), min(places, len(whole)), replace=False):
        flipped(path, int(at), int(rng.choice([1, 32, 128, 255])))
        try: now = read()
        except VfassocError as e:
            one_line(e)
            refused += 1
        else: assert now == before, f'{path.name}: byte {at} of {len(whole)} changed and nobody noticed'
        path.write_bytes(whole)
    assert read() == before
    return refused


# ---- checkpoints

def plain(tensors, header):
    return {k: (str(t.dtype), tuple(t.shape), t.reshape(-1).view(torch.uint8).tolist())
            for k,t in tensors.items()}, header


def model():
    return build_method({'name': 'cid'}, VoiceFaceModel(ModelConfig('linear', dim=2, projection='none', voice_dim=3,
                                                                    face_dim=2)), 8)


@pytest.fixture
def run(tmp_path):
    method, run = model(), RunFolder(tmp_path/'run')
    opt = torch.optim.Adam(method.parameters())
    sum(p.sum() for p in method.parameters()).backward()
    opt.step()
    run.checkpoints.mkdir(parents=True)
    save_checkpoint(run, method, opt, FitState(step=1, history=[dict(epoch=1, loss=float('nan'))]), CONFIG)
    return run


def resume(run):
    method = model()
    return load_checkpoint(run, method, torch.optim.Adam(method.parameters()), CONFIG)


def test_a_checkpoint_is_resumed_from(run):
    state = resume(run)
    assert state.step == 1 and state.history[0]['epoch'] == 1 and np.isnan(state.history[0]['loss'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_of_every_type_keep_their_bits(tmp_path, dtype):
    t = {'x': torch.arange(6).reshape(2, 3).to(dtype), 'empty': torch.zeros(0, 4, dtype=dtype),
         'one': torch.tensor(1).to(dtype)}
    save_tensors(tmp_path/'t', t, {'a': [1, (2, 3)], 'nan': float('nan')})
    back, header = load_tensors(tmp_path/'t')
    assert all(torch.equal(t[k], back[k]) and t[k].dtype == back[k].dtype
               for k in t) and header['a'] == [1, [2, 3]] and set(header) == {'a', 'nan'}


def test_a_changed_byte_in_a_checkpoint_is_said(run):
    path = run.checkpoints/'last.safetensors'
    whole = path.read_bytes()
    for at in (len(whole) - 1, len(whole)//2, whole.index(b'\\"step\\": 1') + len(b'\\"step\\": ')):
        flipped(path, at, 1)
        with pytest.raises(RunError) as e: resume(run)
        one_line(e, path, 'delete')
        path.write_bytes(whole)
    resume(run)


def test_no_changed_byte_of_a_checkpoint_passes(tmp_path):
    save_tensors(tmp_path/'x', {'a': torch.arange(20.), 'b': torch.arange(7)},
                 dict(state=dict(step=3), method={}, name='ä'))
    assert fuzz(tmp_path/'x', lambda: plain(*load_tensors(tmp_path/'x')), 200) > 150


def test_a_checkpoint_without_a_digest_opens(run):
    path = run.checkpoints/'last.safetensors'
    tensors, header = load_tensors(path)
    save_file(tensors, path, {'plain': json.dumps(header)}) # as earlier versions wrote it
    assert resume(run).step == 1
    flipped(path, path.stat().st_size - 1, 1)
    resume(run)


@pytest.mark.parametrize('change, words', [
    (dict(state=dict(step=-5)), 'state.step = \'-5\''), (dict(state=dict(step='3')), 'state.step'),
    (dict(state=dict(step=True)), 'state.step'), (dict(state=dict(loss_sum=float('inf'))), 'state.loss_sum'),
    (dict(state=dict(steps=3)), 'state.steps'), (dict(state=[]), 'state'), (dict(state=None), 'state'),
    (dict(state=dict(history=[3])), 'state.history.0'), (dict(state=dict(history={})), 'state.history'),
    (dict(train=[]), 'train'), (dict(method=3), 'method'), (dict(processes=0), 'processes'),
    (dict(processes='1'), 'processes'), (dict(random=None), 'random'),
    (dict(random=dict(python=[3, [1], None])), 'random.numpy'),
    (dict(random=dict(python=[3, [1], None], numpy=['MT19937', 0, 0, 0.])), 'cannot be resumed from')])
def test_a_header_of_another_form_is_one_line(run, change, words):
    path = run.checkpoints/'last.safetensors'
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, {**header, **change})
    with pytest.raises(RunError) as e: resume(run)
    one_line(e, path, words)


@pytest.mark.parametrize('key', ['state', 'train', 'method', 'random', 'processes'])
def test_a_header_without_a_key_is_one_line(run, key):
    path = run.checkpoints/'last.safetensors'
    tensors, header = load_tensors(path)
    del header[key]
    save_tensors(path, tensors, header)
    with pytest.raises(RunError) as e: resume(run)
    one_line(e, path, f'{key}:')


@pytest.mark.parametrize('gone', ['random0/cpu', 'random0/numpy', 'optim/0.step', 'method/model.voice.0.weight'])
def test_a_checkpoint_without_a_tensor_is_one_line(run, gone):
    path = run.checkpoints/'last.safetensors'
    tensors, header = load_tensors(path)
    gone = gone if gone in tensors else next(k for k in tensors if k.startswith(gone.split('/')[0] + '/'))
    del tensors[gone]
    save_tensors(path, tensors, header)
    with pytest.raises(RunError) as e: resume(run)
    one_line(e, path)


@pytest.mark.parametrize('header', ['[]', 'null', '3', '"x"', '{', '['*100_000])
def test_a_header_that_is_no_table_is_one_line(tmp_path, header):
    save_file({'a': torch.zeros(2)}, tmp_path/'x', {'plain': header})
    with pytest.raises(RunError) as e: load_tensors(tmp_path/'x')
    one_line(e, tmp_path/'x')


# ---- files of features

def features_file(path, **about):
    g = np.random.default_rng(0)
    save_features(path, g.normal(size=(4, 3)).astype('f4'), g.normal(size=(5, 2)).astype('f2'),
                  [f'wav/{i}.wav' for i in range(4)], [f'faces/{i}.jpg' for i in range(5)],
                  **{**dict(corpus_hash='a'*8, encoder='by hand', identities=['id1', 'id2']), **about})
    return path


def all_of(path):
    f = load_features(path)
    return f.voice.tolist(), f.face.tolist(), f.voice_path.tolist(), f.face_path.tolist(), f.about


def test_a_changed_byte_in_features_is_said(tmp_path):
    path = features_file(tmp_path/'f.npz')
    about, raw = load_features(path).about, path.read_bytes()
    assert about == dict(corpus_hash='a'*8, encoder='by hand', identities=['id1', 'id2'])
    for x in (load_features(path).voice, load_features(path).face):
        flipped(path, raw.index(x.tobytes()) + 1, 1) # a low bit: the number stays finite
        with pytest.raises(CorpusError) as e: load_features(path)
        one_line(e, path, 'make it again')
        path.write_bytes(raw)


def test_no_changed_byte_of_features_passes(tmp_path):
    path = features_file(tmp_path/'f.npz')
    assert fuzz(path, lambda: all_of(path), 250) > 60


def test_features_without_a_digest_open(tmp_path):
    path = features_file(tmp_path/'f.npz')
    with np.load(path) as z: arrays = {k: z[k] for k in z if k != 'about'}
    for about in ({}, dict(about=np.array(json.dumps(dict(corpus_hash='b', encoder='earlier'))))):
        np.savez(path, **arrays, **about)
        f = load_features(path)
        assert isinstance(f.voice, np.memmap) and f.voice.tolist() == arrays['voice'].tolist()
        flipped(path, path.read_bytes().index(arrays['voice'].tobytes()) + 1, 1)
        load_features(path)


@pytest.mark.parametrize('change, words', [
    (dict(voice_path=np.array([['a', 'b'], ['c', 'd']])), 'voice_path'), (dict(face_path=np.array('a')), 'face_path'),
    (dict(voice_path=np.arange(4)), 'voice_path'), (dict(voice=np.zeros(4, 'f4')), 'voice'),
    (dict(voice=np.array(1., 'f4')), 'voice'), (dict(about=np.array('[]')), ''), (dict(about=np.array('null')), ''),
    (dict(about=np.array(3)), ''), (dict(about=np.array(['{}'])), ''), (dict(about=np.array('[' * 100_000)), ''),
    (dict(about=np.array('{"identities": 3}')), 'about.identities'),
    (dict(about=np.array('{"identities": [1]}')), 'about.identities'),
    (dict(about=np.array('{"identities": {"a": 1}}')), 'about.identities'),
    (dict(about=np.array('{"corpus_hash": 7}')), 'about.corpus_hash')])
def test_features_of_another_form_are_one_line(tmp_path, change, words):
    path = features_file(tmp_path/'f.npz')
    with np.load(path) as z: arrays = {**{k: z[k] for k in z if k != 'about'}, **change}
    np.savez(path, **arrays)
    with pytest.raises(CorpusError) as e: load_features(path)
    one_line(e, path, words)


@pytest.mark.parametrize('options, words', [({'seconds': 'abc'}, "seconds = 'abc'"), ({'size': 1.5}, 'size = 1.5'),
                                            ({'seconds': 1e9}, 'seconds = 1000000000.0'),
                                            ({'voice_weights': 3}, 'voice_weights = 3'), ({'name': 1}, "'name'"),
                                            ({'quiet': True}, "'quiet'")])
@pytest.mark.parametrize('encoder', ['faa', 'a-run'])
def test_options_of_features_are_checked_whichever_encoder(tmp_path, encoder, options, words):
    with pytest.raises(ConfigError) as e:
        make_features(encoder, 'nowhere', tmp_path/'x.npz', Settings(runs=tmp_path), options=options)
    one_line(e, words)


# ---- a full disk

@pytest.fixture
def small_disk(tmp_path):
    "1 MB of tmpfs; only root can mount."
    there = tmp_path/'disk'
    there.mkdir()
    r = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(there)], capture_output=True,
                       text=True) if os.geteuid() == 0 and shutil.which('mount') else None
    if r is None or r.returncode:
        pytest.skip(f'no small disk to be had: {r.stderr.strip() if r else "only root can mount one"}')
    yield there
    subprocess.run(['umount', '-l', str(there)], check=True) # lazily: the traceback of a failed pass holds its maps


class FakeSource:
    "Two kinds of vectors, made as they are asked for."
    def __init__(self, rows, root):
        self.manifest, self.features, self.data, self.rows = self, None, type(
            'Data', (), dict(crop_seconds=1., face_size=32)), rows
        self.root, self.hash = root, 'f'*8

    def media(self, kind, split=None, *a, start=0, **kw):
        if split is None and not a and not kw:
            return type('Table', (), dict(path=[f'{kind}/{i}' for i in range(self.rows)],
                                          __len__=lambda t: len(t.path)))()


def fake_encoder(monkeypatch, rows, dim=64):
    import vfassoc.training.extract as cache
    def encode(source, f, kind, split, device, start=0):
        for i in range(start, rows, 100):
            yield torch.arange(i, min(i + 100, rows)), torch.full((min(100, rows - i), dim), float(i + 1))
    monkeypatch.setattr(cache, 'encode_media', encode)
    model = torch.nn.Linear(1, 1)
    model.extract = None
    return model


def test_features_on_a_disk_with_room(tmp_path, monkeypatch):
    model = fake_encoder(monkeypatch, 250)
    f = load_features(cache_features(model, FakeSource(250, tmp_path), tmp_path/'x.npz', True))
    assert f.voice.shape == (250, 64) and f.voice[249, 0] == 201 and sorted(p.name for p in tmp_path.iterdir()) == [
        'x.npz']


@pytest.mark.parametrize('rows', [5_000, 1_500, 1_200]) # no room for the first part; for both; for the archive
def test_features_on_a_full_disk_are_one_line(small_disk, monkeypatch, rows):
    model = fake_encoder(monkeypatch, rows)
    with pytest.raises(RunError) as e: cache_features(model, FakeSource(rows, small_disk), small_disk/'x.npz', True)
    one_line(e, small_disk, 'bytes', 'free')
    assert not (small_disk/'x.npz').exists()


def test_features_on_a_full_disk_are_one_line_simulated(tmp_path, monkeypatch):
    "The disk says that there is room, and then that there is none."
    def full(fd, at, n): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    model = fake_encoder(monkeypatch, 250)
    with pytest.raises(RunError) as e: cache_features(model, FakeSource(250, tmp_path), tmp_path/'x.npz', True)
    one_line(e, tmp_path, 'No space left on device', f'{250*64*4 + 128:,} bytes', 'free')
    assert not list(tmp_path.glob('*.npy')) and not list(tmp_path.glob('.*.npy'))


@pytest.mark.parametrize('call', ['missing', 'not supported'])
def test_without_fallocate_the_free_space_is_compared(tmp_path, monkeypatch, call):
    def no(fd, at, n): raise OSError(errno.EOPNOTSUPP, 'not supported')
    monkeypatch.delattr(os, 'posix_fallocate') if call == 'missing' else monkeypatch.setattr(os, 'posix_fallocate', no)
    x = new_array(tmp_path/'x.npy', np.float32, (10, 4))
    x[:] = 7
    assert np.load(tmp_path/'x.npy').sum() == 280
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: usage._replace(free=100))
    with pytest.raises(RunError) as e: new_array(tmp_path/'y.npy', np.float32, (1000, 4))
    one_line(e, tmp_path/'y.npy', '100 are free')
    assert not (tmp_path/'y.npy').exists()


def test_a_sparse_part_of_an_earlier_version_is_filled(tmp_path):
    np.lib.format.open_memmap(tmp_path/'x.npy', 'w+', np.float32, (1 << 16, 4))[:2] = 3
    before = (tmp_path/'x.npy').stat()
    x = old_array(tmp_path/'x.npy', np.float32, (1 << 16, None))
    after = (tmp_path/'x.npy').stat()
    assert before.st_blocks < after.st_blocks and after.st_blocks*512 >= after.st_size == before.st_size and x[
        1, 3] == 3 and not x[2:].any()
    assert old_array(tmp_path/'x.npy', np.float32, (5, None)) is None and old_array(tmp_path/'none.npy', np.float32,
                                                                                    (5, None)) is None
    (tmp_path/'x.npy').write_bytes(b'damaged')
    assert old_array(tmp_path/'x.npy', np.float32, (1 << 16, None)) is None


def test_a_file_that_grows_is_put_back(tmp_path):
    (tmp_path/'x').write_bytes(b'abc')
    reserve(tmp_path/'x', 10_000)
    assert (tmp_path/'x').read_bytes() == b'abc' + bytes(9_997)


# ---- packed corpora and manifests

@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root, g = tmp_path_factory.mktemp('tree')/'tree', np.random.default_rng(0)
    for who, name in (('id1', 'Ann'), ('id2', 'Bob')):
        wav, face = root/'wav'/who/f'{who}v', root/'faces'/name/'1.6'/f'{who}v'
        wav.mkdir(parents=True)
        face.mkdir(parents=True)
        soundfile.write(wav/'00001.wav', g.normal(size=16000*5)*.1, 16000, subtype='PCM_16') # 160 kB: three pieces
        Image.fromarray(g.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(face/'0000001.png')
    (root/'identity_splits.txt').write_text('id1 1\nid2 4\n')
    (root/'vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 '
                                      'ID\tGender\tNationality\nid1\tAnn\tf\tUK\nid2\tBob\tm\tUK\n')
    return scan(root, 0, quiet=True)


@pytest.fixture
def packed(tree, tmp_path): return pack(tree, tmp_path/'packed', workers=0, quiet=True)


def media_of(root):
    m = load_pack(root)
    x = open_media(m, m.table)
    return [x.waveform(i).tolist() if k == 'voice' else x.face(i, 16).tolist()
            for i, k in enumerate(m.table.modality)], m.hash


def test_a_changed_byte_in_a_shard_is_said_when_it_is_read(packed):
    m = load_pack(packed)
    voice = int(np.flatnonzero((m.table.modality == 'voice').to_numpy())[0])
    flipped(packed/'voice-0000.bin', 150_000) # the third piece of the first clip
    m = load_pack(packed) # opening reads no shard
    x = open_media(m, m.table)
    assert len(x.slice(voice, 'voice', 0, 1000)) == 1000 # a piece that is whole
    with pytest.raises(CorpusError) as e: x.waveform(voice)
    one_line(e, packed/'voice-0000.bin', '131,072', m.table.path[voice])


def test_an_inverted_shard_is_said(packed):
    for name in ('voice-0000.bin', 'face-0000.bin'):
        whole = (packed/name).read_bytes()
        (packed/name).write_bytes(bytes(255 - b for b in whole))
        with pytest.raises(CorpusError) as e: media_of(packed)
        one_line(e, packed/name)
        (packed/name).write_bytes(whole)


@pytest.mark.parametrize('name, places', [('index.npz', 40), ('pack.json', 40), ('manifest.parquet', 40),
                                          ('face-0000.bin', 40)])
def test_no_changed_byte_of_a_pack_passes(packed, name, places):
    assert fuzz(packed/name, lambda: media_of(packed), places) >= places - 2


def test_a_pack_of_another_schema_is_refused_and_an_older_one_opens(packed):
    now, about = media_of(packed), json.loads((packed/'pack.json').read_text())
    (packed/'pack.json').write_text(json.dumps({**about, 'schema': 99}))
    with pytest.raises(CorpusError) as e: load_pack(packed)
    one_line(e, packed/'pack.json', 'schema 99')
    earlier = {k: x for k, x in about.items() if k not in ('digest', 'xxh3_128', 'contents')} | {'schema': 1}
    (packed/'pack.json').write_text(json.dumps(earlier))
    with np.load(packed/'index.npz') as z: old = {k: z[k] for k in ('shard', 'offset', 'length', 'kind')}
    np.savez(packed/'index.npz', **old)
    assert media_of(packed) == now


def test_no_changed_byte_of_a_manifest_passes(tree, tmp_path):
    path = tmp_path/'m.parquet'
    save_manifest(tree, path)
    def read():
        m = load_manifest(path)
        return m.table.to_csv(), m.report, m.hash, m.root
    assert fuzz(path, read, 150) > 75


def test_a_manifest_without_a_column_or_a_digest(tree, tmp_path):
    import pyarrow.parquet as pq
    path = tmp_path/'m.parquet'
    save_manifest(tree, path)
    t = pq.read_table(path)
    pq.write_table(t.drop_columns(['split']), path)
    with pytest.raises(CorpusError) as e: load_manifest(path)
    one_line(e, path, "'split'")
    extra = {k: x for k, x in json.loads(t.schema.metadata[b'vfassoc']).items() if k not in ('digest', 'xxh3_128')}
    pq.write_table(t.replace_schema_metadata({**t.schema.metadata, b'vfassoc': json.dumps(extra).encode()}), path)
    pd.testing.assert_frame_equal(load_manifest(path).table, tree.table)


# ---- small files of a run and of a corpus

@pytest.mark.parametrize('damage', ['null', '[]', '3', '{"features": []}', '{'])
def test_a_provenance_of_another_form_is_one_line(tmp_path, damage):
    from vfassoc.training.run import same_features
    (tmp_path/'provenance.json').write_text(damage)
    with pytest.raises(RunError) as e: same_features(RunFolder(tmp_path), type('Source', (), dict(features=None)))
    one_line(e, tmp_path/'provenance.json')
    if damage == '{"features": []}': return
    with pytest.raises(RunError) as e: RunFolder(tmp_path).stamp(seed=1)
    one_line(e, tmp_path/'provenance.json')


@pytest.mark.parametrize('damage', ['null', '[]', '3'])
def test_a_synth_json_of_another_form_is_one_line(tmp_path, damage):
    (tmp_path/'synth.json').write_text(damage)
    with pytest.raises(VfassocError) as e: synthetic_seed(tmp_path)
    one_line(e, tmp_path/'synth.json')


def test_a_truth_without_a_column_is_one_line(tmp_path):
    truth = draw_truth(SynthConfig(identities=8, videos_per_identity=2))
    more = (*SESSION_COLUMNS, *VOICE_CUE_COLUMNS, *FACE_CUE_COLUMNS) # `write_corpus` adds them
    truth = truth.assign(**dict.fromkeys(more, 0.))
    truth.to_csv(tmp_path/'truth.csv', index=False)
    assert len(read_truth(tmp_path)) == 16
    for k in ('video', 'coupling', 'deviate', truth.columns[-1]):
        truth.drop(columns=k).to_csv(tmp_path/'truth.csv', index=False)
        if k not in ('video', 'coupling', 'deviate'): continue
        with pytest.raises(CorpusError) as e: read_truth(tmp_path)
        one_line(e, tmp_path/'truth.csv', k)
    truth[:0].to_csv(tmp_path/'truth.csv', index=False)
    with pytest.raises(CorpusError) as e: read_truth(tmp_path)
    one_line(e, tmp_path/'truth.csv')
