"The synthetic corpus where it does not teach: kills, conflicts, disks that refuse, bad parameters, extremes."
import csv, errno, hashlib, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.metrics import roc_auc_score

from vfassoc.core import VfassocError
from vfassoc.corpus.manifest import scan
from vfassoc.synthetic import corpus as synthetic
from vfassoc.synthetic.corpus import (SynthConfig, draw_truth, make_media, oracle_scores, read_truth,
                                      write_corpus)
from vfassoc.synthetic.face import FACE, draw_pose, draw_scene, face_of
from vfassoc.synthetic.render import render
from vfassoc.synthetic.voice import VOICE, draw_room, record, speak, voice_of

TINY = SynthConfig(identities=10, videos_per_identity=2, clips=2, seconds=.5, frames=2, size=32, train=.6, valid=.2,
                   offscreen=.2, buried=.1, occluded=.1, turned=.1)

def digests(root):
    files = [p for p in sorted(Path(root).rglob('*')) if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

def one_line(f, *words):
    with pytest.raises(VfassocError) as e: f()
    text = str(e.value)
    assert '\n' not in text and all(w in text for w in words), text
    return text

@pytest.fixture(scope='module')
def corpus(tmp_path_factory): return write_corpus(tmp_path_factory.mktemp('synth')/'corpus', TINY, workers=0)

@pytest.mark.parametrize('workers', [1, 3])
def test_workers_do_not_change_a_byte(corpus, tmp_path, workers):
    assert digests(write_corpus(tmp_path/'c', TINY, workers)) == digests(corpus)

def test_seed_changes_media(corpus, tmp_path):
    other = digests(write_corpus(tmp_path/'c', SynthConfig(**{**vars(TINY), 'seed': 1}), 0))
    assert not set(other.values()) & {v for k, v in digests(corpus).items() if k.endswith(('wav', 'jpg'))}

def _children(pid):
    return [int(p) for task in Path(f'/proc/{pid}/task').glob('*/children') for p in task.read_text().split()]

def _running(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False

@pytest.mark.skipif(not Path('/proc').is_dir(), reason='reads /proc')
def test_killed_in_the_middle_and_run_again(tmp_path):
    cfg = SynthConfig(identities=30, videos_per_identity=2, seconds=1., frames=2, size=64)
    code = f'from vfassoc.synthetic.corpus import *; write_corpus({str(tmp_path/"c")!r}, {cfg!r}, 2)'
    run = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    start, done = time.time(), lambda: len(list((tmp_path/'c'/'faces').glob('*/1.6/*')))
    while done() < 5 and run.poll() is None and time.time() - start < 120: time.sleep(.02)
    workers = _children(run.pid)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert 0 < done() < 60 and not (tmp_path/'c'/'synth.json').exists() and workers
    one_line(lambda: read_truth(tmp_path/'c'), 'only a finished synthetic corpus has a truth')
    one_line(lambda: write_corpus(tmp_path/'c', TINY, 0), 'identities = 30, not 10')
    while any(map(_running, workers)) and time.time() - start < 150: time.sleep(.1)
    assert not any(map(_running, workers)), 'workers outlive the run'
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'c'/'faces').rglob('*.jpg')}
    write_corpus(tmp_path/'c', cfg, 2)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items()), 'finished videos were drawn again'
    assert digests(tmp_path/'c') == digests(write_corpus(tmp_path/'fresh', cfg, 2))

def test_killed_between_sound_and_pictures(corpus, tmp_path):
    root = shutil.copytree(corpus, tmp_path/'c')
    (root/'.unfinished').mkdir()
    (root/'synth.json').rename(root/'.unfinished'/'synth.json')
    shutil.rmtree(next((root/'faces').glob('*/1.6/*')))
    (root/'truth.csv').unlink()
    assert digests(write_corpus(root, TINY, 0)) == digests(corpus)

def test_finished_corpus_returns_at_once(corpus, monkeypatch):
    monkeypatch.setattr(synthetic, 'draw_truth', lambda cfg: pytest.fail('a finished corpus was drawn again'))
    assert write_corpus(corpus, TINY, 2) == corpus

def test_other_configuration_is_refused(corpus):
    before = digests(corpus)
    other = SynthConfig(**{**vars(TINY), 'coupling': .1})
    one_line(lambda: write_corpus(corpus, other, 0), str(corpus), 'coupling = 0.75, not 0.1', 'another folder')
    assert digests(corpus) == before

@pytest.mark.parametrize('name', ['wav', 'faces', 'unzippedFaces', 'vox1_meta.csv', 'identity_splits.txt'])
def test_foreign_corpus_is_refused(tmp_path, name):
    (tmp_path/name).mkdir() if '.' not in name else (tmp_path/name).write_text('mine')
    one_line(lambda: write_corpus(tmp_path, TINY, 0), 'not empty', name)
    assert [p.name for p in tmp_path.iterdir()] == [name]

def test_read_only_folder(tmp_path, monkeypatch):
    folder = tmp_path/'locked'
    folder.mkdir()
    if os.geteuid(): folder.chmod(0o500)
    else: # root may write anywhere: refuse as a read-only file system does
        def refuse(*a, **k): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        monkeypatch.setattr('pathlib.Path.mkdir', refuse)
    one_line(lambda: write_corpus(folder/'c', TINY, 0), str(folder/'c'), 'cannot be written', 'choose another folder')
    monkeypatch.undo()
    assert not list(folder.iterdir())

def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path/'c').write_text('')
    one_line(lambda: write_corpus(tmp_path/'c', TINY, 0), 'cannot be written')

@pytest.mark.parametrize('workers', [0, 2])
def test_full_disk_in_the_middle(corpus, tmp_path, monkeypatch, workers):
    write = soundfile.write
    def full(path, *a, **k):
        if len(list((tmp_path/'c').glob('wav/*/*'))) >= 4: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *a, **k)
    monkeypatch.setattr(soundfile, 'write', full)
    one_line(lambda: write_corpus(tmp_path/'c', TINY, workers), 'No space left', 'finished videos are kept')
    kept = list((tmp_path/'c').glob('faces/*/1.6/*'))
    assert kept and all(len(list(p.glob('*.jpg'))) == TINY.frames for p in kept)
    monkeypatch.undo()
    assert digests(write_corpus(tmp_path/'c', TINY, 0)) == digests(corpus)

def test_a_worker_that_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, 'make_media', lambda *a: os._exit(9))
    one_line(lambda: write_corpus(tmp_path/'c', TINY, 2), 'was killed', 'fewer workers')

@pytest.mark.parametrize('field, value', [
    ('identities', 0), ('identities', 2.), ('identities', True), ('identities', '3'),
    ('videos_per_identity', 0), ('clips', 0), ('seconds', .4), ('seconds', float('nan')),
    ('frames', 0), ('size', 8), ('size', 5000), ('coupling', -.1), ('coupling', 1.1), ('coupling', None),
    ('session', -1), ('offscreen', 1.5), ('noise', -1),
    ('train', 1.2), ('seed', -1), ('seed', 2**32), ('seed', .5)])
def test_bad_parameters(field, value):
    one_line(lambda: SynthConfig(**{field: value}), field, 'allowed')

def test_bad_sums_and_workers(tmp_path):
    one_line(lambda: SynthConfig(offscreen=.5, turned=.6), 'at most 1')
    one_line(lambda: SynthConfig(train=.8, valid=.3), 'train + valid')
    one_line(lambda: write_corpus(tmp_path/'c', TINY, -1), 'workers')
    assert not (tmp_path/'c').exists()

def test_metadata_and_media_are_ordinary(corpus):
    with open(corpus/'vox1_meta.csv', newline='') as f: meta = list(csv.reader(f, delimiter='\t'))
    assert meta[0] == ['VoxCeleb1 ID', 'VGGFace1 ID', 'Gender', 'Nationality', 'Set', 'Age'] and len(meta) == 11
    splits = dict(line.split() for line in (corpus/'identity_splits.txt').read_text().splitlines())
    assert sorted(splits.values()) == ['1']*6 + ['2']*2 + ['4']*2 and set(splits) == {m[1] for m in meta[1:]}
    for p in corpus.glob('wav/*/*/*'):
        info = soundfile.info(p)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, 'PCM_16', 8000)
    for p in corpus.glob('faces/*/1.6/*/*'):
        with Image.open(p) as im: assert (im.size, im.mode, im.format) == ((32, 32), 'RGB', 'JPEG')
    assert all(len(p.name) == 11 for p in corpus.glob('wav/*/*')) and not (corpus/'.unfinished').exists()

def test_manifest_takes_every_file(corpus):
    m = scan(corpus, workers=0, check='full')
    assert len(m.table) == 20*(2 + 2)
    assert not any(v for k in ('excluded', 'repaired') for v in m.report[k].values())
    truth = read_truth(corpus)
    videos = m.videos().set_index('video')
    for column in ('identity', 'name', 'gender', 'nationality', 'age', 'split'):
        assert videos[column].to_dict() == truth.set_index('video')[column].to_dict(), column

def test_truth_survives_the_disk(corpus):
    assert read_truth(corpus).equals(draw_truth(TINY))
    truth = read_truth(corpus)
    planted = {'none': 10, 'offscreen': 4, 'noise': 2, 'occluded': 2, 'turned': 2}
    assert truth.deviate.value_counts().to_dict() == planted
    assert ((truth.heard != truth.identity) == (truth.deviate == 'offscreen')).all()
    one_line(lambda: oracle_scores(truth, ['nosuchvideo'], truth.video[:1]), 'nosuchvideo')

def test_damaged_truth_is_one_line(corpus, tmp_path):
    (tmp_path/'truth.csv').write_bytes(b'identity,video\n"\xff\xfe')
    one_line(lambda: read_truth(tmp_path), 'truth.csv')

def test_alone_in_a_split_nobody_else_is_heard():
    truth = draw_truth(SynthConfig(identities=1, videos_per_identity=20, offscreen=.5, train=1., valid=0.))
    assert (truth.heard == truth.identity).all() and 'offscreen' not in set(truth.deviate)

def test_many_names_are_unique():
    truth = draw_truth(SynthConfig(identities=2600, videos_per_identity=1))
    people = truth.drop_duplicates('identity')
    assert people.name.nunique() == people.identity.nunique() == 2600 and people.video.nunique() == 2600
    assert not people.name.str.contains(r'[\s/]').any()

@pytest.mark.parametrize('coupling, low, high', [(0., .46, .54), (.9, .92, 1.)])
def test_coupling_decides_the_ceiling_in_g(coupling, low, high):
    t = draw_truth(SynthConfig(identities=400, videos_per_identity=1, coupling=coupling, offscreen=0.))
    s, sex = oracle_scores(t, t.video, t.video, block=True), t.gender.to_numpy()
    g = sex[:, None] == sex
    assert low < roc_auc_score(np.eye(400, dtype=bool)[g], s[g]) < high

def test_extreme_people_can_be_drawn():
    with np.errstate(all='raise', under='ignore'):
        for i, x in enumerate([-9., -3., 0., 3., 9.]):
            rng = np.random.default_rng(i)
            clip = record(speak(voice_of(np.full(len(VOICE), x)), .5, rng), draw_room(rng), rng)
            assert clip.shape == (8000,) and 3000 < np.abs(clip.astype(int)).max() < 32768
            for size in (16, 50, 160):
                scene, pose = draw_scene(rng, size, occluded=i % 2 == 0), draw_pose(rng, 1, turned=i == 3)
                img = render(face_of(np.full(len(FACE), x)), scene, pose, size, rng)
                assert img.shape == (1, size, size, 3) and img.std() > 5

def test_noise_of_zero_is_a_studio():
    cfg = SynthConfig(identities=1, noise=0., seconds=.5)
    row = {**draw_truth(cfg).iloc[0].to_dict(), 'index': 0}
    quiet, loud = make_media(row, cfg), make_media(row, SynthConfig(identities=1, noise=2., seconds=.5))
    def rough(img):
        return np.abs(np.diff(img.astype(int), axis=1)[:, :8, :8]).mean() # a corner of the wall
    assert rough(quiet[1]) < rough(loud[1]) and (quiet[0][0] != loud[0][0]).any()
