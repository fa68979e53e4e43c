"Media of real users: other formats, whole photos, long recordings, unreadable files. Nothing is skipped in silence."
import os, shlex, shutil, tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile
from PIL import Image

from test_corpus_bad_input import face, noise, one_line, relative, root, scan, voice  # noqa: F401 (a fixture)
from vfassoc.core import CorpusError, VfassocError
from vfassoc.cli import main
from vfassoc.corpus.audio import probe_audio, read_audio
from vfassoc.corpus.faces import UNCROPPED, probe_face
from vfassoc.corpus.manifest import issues, load_or_scan
from vfassoc.corpus.layout import CONVERT, MEDIA, conversion, hints
from vfassoc.video.decode import write_video

# ---- other forms

@pytest.mark.parametrize('suffix', ['.m4a', '.MP4', '.mp3'])
def test_voices_in_another_form_are_set_aside_with_a_command(root, suffix):
    for path in (root/'wav').rglob('00002.wav'): path.rename(path.with_suffix(suffix))
    m = scan(root)
    paths = m.report['set aside'][f'voices to be converted: {suffix.lower()}']
    assert len(paths) == 8 and len(m.media('voice')) == 8
    line, = hints(root, m.report['set aside'])
    assert line.startswith(f'8 {suffix.lower()} files') and paths[0] in line and conversion(root/'wav', suffix) in line

@pytest.mark.parametrize('suffix, output', [('.webp', 'vfassoc ingest --images '), ('.mp4', 'vfassoc ingest ')])
def test_faces_in_another_form_are_set_aside_with_a_command(root, suffix, output):
    face(root).rename(face(root).with_suffix(suffix))
    m = scan(root)
    assert m.report['set aside'][f'faces to be converted: {suffix}'] == [
        relative(face(root), root).replace('.jpg', suffix)]
    assert output in hints(root, m.report['set aside'])[0] and '\n' not in hints(root, m.report['set aside'])[0]

def test_the_command_is_one_that_a_shell_runs(tmp_path):
    "Every file of a folder with blanks and quotes is converted beside the original."
    folder = tmp_path/"it's a $corpus"/'wav'
    for v in ('v 1', 'v"2'):
        (folder/v).mkdir(parents=True)
        write_video(folder/v/'00001.m4a', sound=(3000*noise(1.)).astype('int16'))
    program, *words = shlex.split(conversion(folder, '.m4a'))
    assert program == 'vfassoc' and main([*words, '--jobs', '1']) == 0
    assert {p.parent.name: round(soundfile.info(p).duration, 1) for p in folder.rglob('*.wav')} == {
        'v 1': 1., 'v"2': 1.}

def test_a_corpus_of_m4a_alone_says_how_to_convert(root):
    for path in (root/'wav').rglob('*.wav'): path.rename(path.with_suffix('.m4a'))
    with pytest.raises(CorpusError) as e: scan(root)
    assert f'{root/"wav"}: ' in one_line(e) and conversion(root/'wav', '.m4a') in str(e.value)
    (root/'wav').rename(root/'aac') # the folder of VoxCeleb2
    with pytest.raises(CorpusError) as e: scan(root)
    assert 'rename aac to wav' in one_line(e) and conversion(root/'wav', '.m4a') in str(e.value)

@pytest.mark.parametrize('name', ['a.mp3', 'a.wav'])
def test_mp3_is_read_nowhere(root, name):
    "One rule for the walk, the probe and the reader, whatever the file is called."
    path = voice(root).with_name(name)
    soundfile.write(path, noise(2.), 16000, format='MP3')
    with pytest.raises(CorpusError, match='MP3') as e: read_audio(path)
    assert str(path) in one_line(e) and 'vfassoc ingest --audio' in str(e.value)
    assert 'MP3' in probe_audio(path)[1]
    assert relative(path, root) not in set(scan(root).table.path)

def test_no_form_is_both_read_and_converted():
    for m in MEDIA: assert not set(MEDIA[m]) & set(CONVERT[m])

# ---- long recordings, whole photos, slow clocks

def test_long_clips_are_counted(root):
    for k, seconds in ((8, 61), (9, 59)): soundfile.write(voice(root).with_name(f'0000{k}.wav'), noise(seconds), 16000)
    m = scan(root)
    key, = (k for k in m.report if 'longer than 60 s' in k)
    assert m.report[key] == [f'{relative(voice(root).with_name("00008.wav"), root)} (61 s)'] and len(
        m.media('voice')) == 18
    assert issues(m).set_index('what').loc[key, 'count'] == 1

@pytest.mark.parametrize('size, far', [((144, 144), False), ((120, 90), True), ((100, 80), False), ((640, 480), True),
                                       ((90, 120), True), ((999, 999), False), ((1200, 1200), True)])
def test_photos_that_are_no_face_crop_are_counted(root, size, far):
    Image.new('RGB', size).save(face(root))
    assert (UNCROPPED in probe_face(face(root))[2]) == far
    m = scan(root)
    key, = (k for k in m.report if UNCROPPED in k)
    assert m.report[key] == [relative(face(root), root)]*far and not m.report['repaired'] and len(m.media('face')) == 16
    assert (issues(m).what == key).any() == far

def test_a_grey_photo_is_both(root):
    Image.new('L', (640, 480)).save(face(root))
    m = scan(root)
    assert m.report['repaired'] == {'not RGB (L)': [relative(face(root), root)]} and any(
        UNCROPPED in k and v for k, v in m.report.items())

@pytest.mark.parametrize('rate', [1, 100, 3999])
def test_a_clock_too_slow_for_speech(root, rate):
    soundfile.write(voice(root), noise(2., rate=16000)[:max(rate, 10)*2], rate)
    assert scan(root).report['excluded'] == {'odd sampling rate': [relative(voice(root), root)]}

def test_a_stored_manifest_from_before_is_made_again(root, tmp_path, monkeypatch):
    monkeypatch.setattr('vfassoc.corpus.layout._LOOK', b'1')
    old = load_or_scan(root, tmp_path/'cache', quiet=True)
    monkeypatch.undo()
    new = load_or_scan(root, tmp_path/'cache', quiet=True)
    assert new.report['cache'] == 'rebuilt: the corpus changed' and new.hash == old.hash

# ---- what the system refuses

def test_links_to_themselves(root):
    for link in ('wav/id0/v0a/00009.wav', 'wav/id0/loop', 'wav/id9', 'faces/me'):
        (root/link).symlink_to((root/link).name)
    m = scan(root)
    assert m.report['set aside'] == {'neither file nor folder': ['faces/me', 'wav/id0/loop', 'wav/id0/v0a/00009.wav',
                                                                 'wav/id9']}
    assert len(m.videos()) == 8

def test_trees_that_are_links_to_themselves(root):
    shutil.rmtree(root/'wav')
    (root/'wav').symlink_to('wav')
    with pytest.raises(CorpusError, match=rf'{root}: .* wav ') as e: scan(root)
    one_line(e)

@contextmanager
def stranger():
    "Root may read everything: for a while this process is somebody who may not."
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

@pytest.fixture
def reachable(root):
    "A corpus that another user can reach (pytest's own folders are closed to others), but for what a test closes."
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(root, Path(folder)/'corpus')
        yield Path(folder)/'corpus'
        for p in Path(folder).rglob('*'): p.chmod(0o755)

@pytest.mark.parametrize('closed', ['', 'wav', 'vox1_meta.csv', 'identity_splits.txt'])
def test_a_corpus_that_may_not_be_read(reachable, closed):
    (reachable/closed).chmod(0)
    with stranger(), pytest.raises(CorpusError) as e: scan(reachable)
    assert str(reachable/closed) in one_line(e)

@pytest.mark.parametrize('closed, reason', [('wav/id0/v0a/00001.wav', 'unreadable audio'),
                                            ('faces/Ann_A/1.6/v0a/0000025.jpg', 'unreadable image')])
def test_a_file_that_may_not_be_read_is_left_out(reachable, closed, reason):
    (reachable/closed).chmod(0)
    with stranger(): m = scan(reachable)
    assert m.report['excluded'] == {reason: [closed]} and len(m.videos()) == 8

def test_a_cache_that_may_not_be_written(reachable):
    cache = reachable.parent/'cache'
    cache.mkdir(mode=0o555)
    with stranger(), pytest.raises(VfassocError) as e: load_or_scan(reachable, cache, quiet=True)
    assert str(cache) in one_line(e) and not list(cache.iterdir())
