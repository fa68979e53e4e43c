"Damaged corpora: every wrong file, folder or text is repaired, counted, or an error of one line."
import errno, os, shutil, unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

from vfassoc.core import ConfigError, CorpusError, RunError, rng_for
from vfassoc.corpus.audio import probe_audio, read_audio
from vfassoc.corpus.dataset import DistributedBatchSampler, MediaDataset, PairDataset, make_loader, media_loader
from vfassoc.corpus.faces import probe_face, read_face
from vfassoc.corpus.manifest import (Manifest, issues, load_manifest, load_or_scan, save_manifest,
                                     scan as scan_loudly, summary)

def scan(root, **kw): return scan_loudly(root, quiet=True, **kw)

PEOPLE = ('Ann_A', 'José Ángel', 'Zoë van Straten', 'D_D')
SPLIT = (1, 1, 2, 4)

def noise(seconds=1., seed=0, rate=16000): return 0.1*np.random.default_rng(seed).standard_normal(round(seconds*rate))

def picture(size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (size//8, size//8, 3), np.uint8).repeat(8, 0).repeat(8, 1)

def texts(root, people=PEOPLE, split=SPLIT):
    rows = ''.join(f'id{i}\t{name}\t{"mf"[i%2]}\tNorway\tdev\t{30 + i}\n' for i,name in enumerate(people))
    (root/'vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\tAge\n' + rows,
                                      encoding='utf-8')
    (root/'identity_splits.txt').write_text(''.join(f'{n} {s}\n' for n,s in zip(people, split)), encoding='utf-8')

@pytest.fixture
def root(tmp_path):
    "Four people, two videos each, two clips and two faces in each."
    root = tmp_path/'corpus'
    for i,name in enumerate(PEOPLE):
        for video in (f'v{i}a', f'v{i}b'):
            wav, jpg = root/f'wav/id{i}/{video}', root/f'faces/{name}/1.6/{video}'
            wav.mkdir(parents=True)
            jpg.mkdir(parents=True)
            for k in (1, 2):
                soundfile.write(wav/f'{k:05}.wav', noise(seed=10*i + k), 16000)
                Image.fromarray(picture(seed=10*i + k)).save(jpg/f'{25*k:07}.jpg')
    texts(root)
    return root

def voice(root): return root/'wav/id0/v0a/00001.wav'
def face(root): return root/'faces/Ann_A/1.6/v0a/0000025.jpg'
def relative(path, root): return path.relative_to(root).as_posix()

def one_line(e): # the message of a failure, which must be one line that names the place
    text = str(e.value)
    assert '\n' not in text and ': ' in text and ';' in text, text
    return text

# ---- no corpus

@pytest.mark.parametrize('gone, word', [('', 'no such folder'), ('wav', 'no folder wav'), ('faces', 'no folder faces')])
def test_part_of_the_tree_is_missing(root, gone, word):
    shutil.rmtree(root/gone)
    with pytest.raises(CorpusError) as e: scan(root)
    assert word in one_line(e) and str(root) in str(e.value)

@pytest.mark.parametrize('folder, kind', [('wav', 'voice'), ('faces', 'face')])
def test_folders_without_a_single_file(root, folder, kind):
    for p in (root/folder).rglob('*.*'):
        if p.is_file(): p.unlink()
    with pytest.raises(CorpusError) as e: scan(root)
    assert f'{root/folder}: there is no {kind} in it' in one_line(e)

@pytest.mark.parametrize('folder, kind', [('wav', 'voice'), ('faces', 'face')])
def test_no_file_is_usable(root, folder, kind):
    for p in (root/folder).rglob('*.*'):
        if p.is_file(): p.write_bytes(b'')
    with pytest.raises(CorpusError) as e: scan(root)
    assert f'none of its 16 {kind} files is usable (left out: 16 empty file)' in one_line(e)

def test_a_file_is_no_corpus(tmp_path):
    (tmp_path/'corpus').write_text('')
    with pytest.raises(CorpusError, match=f'{tmp_path}/corpus: '): scan(tmp_path/'corpus')

def test_nothing_pairs_without_metadata(root):
    (root/'vox1_meta.csv').unlink()
    with pytest.raises(CorpusError) as e: scan(root)
    assert 'no video has both a voice and a face' in one_line(e) and 'id0' in str(e.value) and 'Ann_A' in str(e.value)

def test_folders_by_id_need_no_metadata(root):
    (root/'vox1_meta.csv').unlink()
    for i,name in enumerate(PEOPLE): (root/'faces'/name).rename(root/f'faces/id{i}')
    (root/'identity_splits.txt').write_text('id0 1\nid3 4\n')
    m = scan(root)
    assert len(m.videos()) == 8 and m.identities('test') == ['id3'] and m.report['text files missing'] == [
        'vox1_meta.csv']
    assert m.report['identities without metadata'] == ['id0', 'id1', 'id2', 'id3']
    assert set(m.videos().gender) == set(m.videos().nationality) == {'unknown'} and m.videos().age.isna().all()

# ---- sound

def _wave(how, path):
    x = noise()
    if how == 'empty': path.write_bytes(b'')
    elif how == 'truncated':
        soundfile.write(path, x, 16000)
        path.write_bytes(path.read_bytes()[:-500])
    elif how == 'header':
        soundfile.write(path, x, 16000)
        path.write_bytes(path.read_bytes()[:20])
    elif how == 'silent file': soundfile.write(path, x[:0], 16000)
    elif how == 'short': soundfile.write(path, x[:7000], 16000)
    elif how == 'text': path.write_text('404: not found')
    elif how == '44,056 Hz': soundfile.write(path, noise(rate=44056), 44056)
    elif how == 'zeros': soundfile.write(path, 0*x, 16000)
    elif how == 'nan': soundfile.write(path, np.where(x > 0.2, np.nan, x), 16000, subtype='FLOAT')
    elif how == 'stereo': soundfile.write(path, np.stack([x, 0*x], 1), 16000)
    elif how == '8 kHz': soundfile.write(path, noise(rate=8000), 8000)
    elif how == '44.1 kHz': soundfile.write(path, noise(rate=44100), 44100)
    elif how == '24-bit': soundfile.write(path, x, 16000, subtype='PCM_24')
    elif how == 'float': soundfile.write(path, x, 16000, subtype='FLOAT')
    elif how == 'all at once': soundfile.write(path, np.stack([noise(rate=48000)]*3, 1), 48000, subtype='PCM_32')

@pytest.mark.parametrize('how, reason, check', [
    ('empty', 'empty file', 'quick'), ('truncated', 'truncated audio', 'quick'),
    ('header', 'unreadable audio', 'quick'),
    ('silent file', 'no samples', 'quick'), ('short', 'shorter than 0.5 s', 'quick'),
    ('text', 'unreadable audio', 'quick'),
    ('44,056 Hz', 'odd sampling rate', 'quick'), ('zeros', 'silence', 'full'),
    ('nan', 'samples that are not numbers', 'full')])
def test_unfit_sound_is_left_out_and_counted(root, how, reason, check):
    _wave(how, voice(root))
    m = scan(root, check=check)
    assert m.report['excluded'] == {reason: [relative(voice(root), root)]}
    assert len(m.media('voice')) == 15 and len(m.videos()) == 8
    assert (issues(m).what == f'excluded: {reason}').any()

@pytest.mark.parametrize('how, repairs', [
    ('stereo', ['not mono']), ('8 kHz', ['not 16 kHz']), ('44.1 kHz', ['not 16 kHz']), ('24-bit', ['not 16-bit']),
    ('float', ['not 16-bit']), ('all at once', ['not 16 kHz', 'not 16-bit', 'not mono'])])
@pytest.mark.parametrize('check', ['quick', 'full'])
def test_odd_sound_is_kept_counted_and_read(root, how, repairs, check):
    _wave(how, voice(root))
    m = scan(root, check=check)
    assert m.report['repaired'] == {r: [relative(voice(root), root)] for r in repairs} and not m.report['excluded']
    for seconds, t in ((None, 16000), (0.4, 6400), (2.5, 40000)):
        x = read_audio(voice(root), seconds)
        assert x.dtype == np.float32 and x.shape == (t,) and 0.03 < x.std() < 0.15

def test_stereo_is_the_mean_of_its_channels(root):
    _wave('stereo', voice(root))
    np.testing.assert_allclose(read_audio(voice(root)), noise()/2, atol=1e-4)

def test_a_slow_file_keeps_its_pitch(tmp_path):
    for rate in (8000, 11025, 22050, 48000):
        soundfile.write(tmp_path/'a.wav', 0.5*np.sin(2*np.pi*440*np.arange(2*rate)/rate), rate)
        x = read_audio(tmp_path/'a.wav', 1.)
        assert x.shape == (16000,) and np.abs(np.fft.rfft(x)).argmax() == 440

@pytest.mark.parametrize('suffix, subtype', [('flac', 'PCM_16'), ('flac', 'PCM_24'), ('ogg', 'VORBIS')])
def test_other_formats(root, suffix, subtype):
    voice(root).unlink()
    other = voice(root).with_suffix('.' + suffix.upper())
    soundfile.write(other, noise(2.), 16000, format=suffix.upper(), subtype=subtype)
    m = scan(root, check='full')
    assert len(m.media('voice')) == 16 and not m.report['excluded']
    assert ('not 16-bit' in m.report['repaired']) == (subtype == 'PCM_24')
    x = read_audio(other, 1.)
    assert x.shape == (16000,) and np.corrcoef(x, noise(2.)[8000:24000])[0, 1] > 0.9

def test_damaged_flac_is_found_by_the_full_check(root):
    path = voice(root).with_suffix('.flac')
    voice(root).unlink()
    soundfile.write(path, noise(3.), 16000)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:len(data)//2])
    assert len(scan(root).media('voice')) == 16
    m = scan(root, check='full')
    (reason, paths), = m.report['excluded'].items()
    assert reason in ('truncated audio', 'unreadable audio') and paths == [relative(path, root)]
    with pytest.raises(CorpusError, match=f'^{path}: ') as e: read_audio(path)
    assert str(path) in one_line(e)

def test_a_wave_from_a_pipe_has_no_length(tmp_path):
    "ffmpeg writes 0xFFFFFFFF where it cannot seek back."
    path = tmp_path/'a.wav'
    soundfile.write(path, noise(), 16000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b'\xff'*4
    path.write_bytes(data)
    assert probe_audio(path)[:2] == (1., '') and read_audio(path).shape == (16000,)

def test_a_chunk_before_the_sound(tmp_path):
    path = tmp_path/'a.wav'
    soundfile.write(path, noise(), 16000)
    data = path.read_bytes()
    note = b'LIST' + (9001).to_bytes(4, 'little') + bytes(9002) # odd length: padded by a byte
    path.write_bytes(data[:36] + note + data[36:])
    np.testing.assert_allclose(read_audio(path), noise(), atol=1e-4)
    path.write_bytes(path.read_bytes()[:-2])
    assert probe_audio(path)[1] == 'truncated audio'

def test_a_decoder_that_gives_less_than_it_promised(tmp_path, monkeypatch):
    path = tmp_path/'a.wav'
    soundfile.write(path, noise(), 16000)
    monkeypatch.setattr(soundfile.SoundFile, 'frames', property(lambda self: 17000))
    assert probe_audio(path, full=True)[1] == 'truncated audio'
    with pytest.raises(CorpusError, match='16000 of 17000 samples are there'): read_audio(path)

# ---- pictures

def _image(how, path):
    im = Image.fromarray(picture())
    if how == 'empty': path.write_bytes(b'')
    elif how == 'truncated':
        im.save(path)
        path.write_bytes(path.read_bytes()[:-20])
    elif how == 'half':
        im.save(path)
        path.write_bytes(path.read_bytes()[:400])
    elif how == 'text': path.write_text('<html>')
    elif how == 'gif': im.save(path, 'GIF')
    elif how == '1 x 1': im.resize((1, 1)).save(path)
    elif how == 'thin': im.resize((100, 3)).save(path)
    elif how == 'padded':
        im.save(path)
        path.write_bytes(path.read_bytes() + bytes(500))
    elif how == 'rotated': im.save(path, exif=_turned(), quality=100, subsampling=0)
    elif how == '16-bit': Image.fromarray(picture()[..., 0].astype(np.uint16)*257).save(path, 'PNG')
    elif how == 'P': im.convert('P', palette=Image.Palette.ADAPTIVE).save(path, 'PNG')
    elif how in ('RGBA', 'LA', '1'): im.convert(how).save(path, 'PNG')
    else: im.convert(how).save(path, 'JPEG', quality=95)

def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6 # turn by 90 degrees clockwise to see it upright
    return exif

@pytest.mark.parametrize('how, reason', [
    ('empty', 'empty file'), ('truncated', 'truncated image'), ('half', 'truncated image'),
    ('text', 'unreadable image'),
    ('gif', 'unreadable image'), ('1 x 1', 'smaller than 16 pixels'), ('thin', 'smaller than 16 pixels')])
@pytest.mark.parametrize('check', ['quick', 'full'])
def test_unfit_pictures_are_left_out_and_counted(root, how, reason, check):
    _image(how, face(root))
    m = scan(root, check=check)
    assert m.report['excluded'] == {reason: [relative(face(root), root)]}
    assert len(m.media('face')) == 15 and len(m.videos()) == 8

@pytest.mark.parametrize('how, mode', [('L', 'L'), ('CMYK', 'CMYK'), ('RGBA', 'RGBA'), ('P', 'P'), ('LA', 'LA'),
                                       ('1', '1'),
                                       ('16-bit', 'I;16')])
@pytest.mark.parametrize('check', ['quick', 'full'])
def test_odd_pictures_are_kept_counted_and_read(root, how, mode, check):
    _image(how, face(root))
    m = scan(root, check=check)
    assert m.report['repaired'] == {f'not RGB ({mode})': [relative(face(root), root)]} and not m.report['excluded']
    x = read_face(face(root), 48).permute(1, 2, 0).numpy().astype(int)
    want = picture().astype(int)
    if how in ('L', 'LA', '1', '16-bit'): # grey: three equal channels
        assert (x == x[..., :1]).all()
        want = want[..., :1] if how == '16-bit' else np.asarray(Image.fromarray(picture()).convert('L')).astype(int)[
            ..., None]
    if how != '1': assert np.abs(x - want).mean() < (12 if how in ('CMYK', 'P') else 2)
    assert x.std() > 20

def test_trailing_bytes_are_no_truncation(root):
    _image('padded', face(root))
    assert not scan(root).report['excluded']

def test_a_turned_picture_is_read_upright(root):
    _image('rotated', face(root))
    want = np.rot90(picture(), -1).astype(int)
    assert np.abs(read_face(face(root), 48).permute(1, 2, 0).numpy() - want).mean() < 3

def test_inverted_cmyk_of_adobe(tmp_path):
    "Pillow writes CMYK as Adobe does, inverted and marked; white must come back white."
    Image.new('CMYK', (32, 32), (0, 0, 0, 0)).save(tmp_path/'white.jpg')
    assert b'Adobe' in (tmp_path/'white.jpg').read_bytes() and read_face(tmp_path/'white.jpg', 32).min() > 250

@pytest.mark.parametrize('how', ['truncated', 'text', 'empty'])
def test_a_broken_picture_is_one_line_when_read(root, how):
    _image(how, face(root))
    with pytest.raises(CorpusError, match=f'^{face(root)}: ') as e: read_face(face(root))
    assert str(face(root)) in one_line(e)

# ---- any damage at all

@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg', 'jpg', 'png'])
def test_no_damage_crashes_the_probe_and_what_it_calls_fit_can_be_read(tmp_path, suffix):
    path, rng = tmp_path/f'a.{suffix}', rng_for(0, suffix)
    sound = suffix in ('wav', 'flac', 'ogg')
    soundfile.write(path, noise(0.6), 16000) if sound else Image.fromarray(picture()).save(path)
    good, counts = path.read_bytes(), {True: 0, False: 0}
    for _ in range(150):
        data = bytearray(good)
        near = 60 if rng.random() < 0.5 else len(data) # the header, or anywhere
        for at in rng.integers(0, near, rng.integers(1, 8)): data[at] = rng.integers(256)
        path.write_bytes(data[:rng.integers(1, len(data))] if rng.random() < 0.3 else data)
        quick, full = [(probe_audio if sound else probe_face)(path, f)[1] for f in (False, True)]
        assert not (quick and not full), 'the full check is the stricter one'
        counts[full == ''] += 1
        if full == '': read_audio(path) if sound else read_face(path, 32)
        else:
            try: read_audio(path) if sound else read_face(path, 32)
            except CorpusError as e: assert '\n' not in str(e) and str(path) in str(e)
    assert counts[False] > 20 # the damage was real

# ---- people

def test_person_without_metadata_is_kept_as_unknown(root):
    rows = (root/'vox1_meta.csv').read_text(encoding='utf-8').splitlines()
    (root/'vox1_meta.csv').write_text('\n'.join(rows[:1] + rows[2:]), encoding='utf-8')
    m = scan(root)
    assert m.report['identities without metadata'] == ['Ann_A', 'id0'] # nothing says that these are one person
    assert m.report['videos with one modality'] == ['Ann_A/v0a (face only)', 'Ann_A/v0b (face only)',
                                                    'id0/v0a (voice only)',
                                                     'id0/v0b (voice only)']
    (root/'faces/Ann_A').rename(root/'faces/id0')
    m = scan(root)
    assert m.report['identities without metadata'] == ['id0'] and len(m.videos()) == 8
    assert m.videos().iloc[0][['gender', 'nationality', 'split']].tolist() == ['unknown', 'unknown', 'none']
    assert m.report['split lines without media'] == ['Ann_A'] and m.report['identities without a split'] == ['id0']

def test_same_video_under_two_identities(root):
    shutil.copytree(root/'wav/id0/v0a', root/'wav/id3/v0a')
    shutil.copytree(root/'faces/Ann_A/1.6/v0a', root/'faces/D_D/1.6/v0a')
    m = scan(root)
    assert m.report['videos under two identities'] == ['v0a'] and 'v0a' not in set(m.table.video)
    assert len(m.report['excluded']['same video under two identities']) == 8 and len(m.videos()) == 7
    kept = scan(root, shared='keep')
    assert kept.report['videos under two identities'] == ['v0a'] and len(kept.videos()) == 9 and not kept.report[
        'excluded']
    assert (kept.videos().video == 'v0a').sum() == 2

def test_every_video_name_twice(root):
    "A corpus whose videos are numbered person by person says what is wrong."
    for p in sorted(root.glob('*/*/*/v*')) + sorted(root.glob('wav/*/v*')): p.rename(p.with_name('video' + p.name[-1]))
    with pytest.raises(CorpusError, match='16 same video under two identities') as e: scan(root)
    one_line(e)
    assert len(scan(root, shared='keep').videos()) == 8

@pytest.mark.parametrize('lines, who', [('Ann_A 4', 'id0 in test and train'), ('id0 2', 'id0 in train and valid')])
def test_identity_in_two_splits(root, lines, who):
    with open(root/'identity_splits.txt', 'a') as f: f.write(lines + '\n')
    with pytest.raises(CorpusError, match=who) as e: scan(root)
    assert 'identity_splits.txt' in one_line(e)

def test_only_three_are_named(root):
    texts(root, PEOPLE*2, SPLIT + (4, 4, 4, 1))
    rows = (root/'vox1_meta.csv').read_text(encoding='utf-8').splitlines()
    (root/'vox1_meta.csv').write_text('\n'.join(rows[:5]), encoding='utf-8')
    with pytest.raises(CorpusError,
                       match=r'id0 in test and train, id1 in test and train, id2 in test and valid and 1 more'):
        scan(root)

def test_the_same_line_twice_is_no_conflict(root):
    with open(root/'identity_splits.txt', 'a') as f: f.write('\n\nAnn_A\t1  \r\n')
    assert scan(root).identities('train') == ['id0', 'id1']

@pytest.mark.parametrize('form', ['NFC', 'NFD'])
@pytest.mark.parametrize('where', ['folder', 'texts'])
def test_names_with_spaces_and_letters_in_either_form(root, form, where):
    if where == 'folder':
        for p in (root/'faces').iterdir(): p.rename(p.with_name(unicodedata.normalize(form, p.name)))
    else:
        for name in ('vox1_meta.csv', 'identity_splits.txt'):
            text = unicodedata.normalize(form, (root/name).read_text(encoding='utf-8'))
            (root/name).write_bytes(b'\xef\xbb\xbf' + text.replace('\n', '\r\n').encode()) # and Windows' line ends
    m = scan(root)
    assert len(m.videos()) == 8 and not m.report['identities without metadata'] and not m.report[
        'identities without a split']
    assert set(m.videos().name) == set(PEOPLE) and m.identities('valid') == ['id2']
    voices, faces, rows = next(iter(make_loader(PairDataset(m, 'valid', 0.5, 32), DistributedBatchSampler(2, 2, 0, 0),
                                                workers=0)))
    assert voices.shape == (2, 8000) and faces.shape == (2, 3, 32, 32)

def test_folder_name_that_is_not_utf8(root):
    try: os.mkdir(os.fsencode(root/'wav') + b'/id\xff9')
    except OSError: pytest.skip('this file system allows only UTF-8 names')
    m = scan(root)
    assert m.report['set aside'] == {'name that is not UTF-8': ['wav/id\\udcff9']} and len(m.videos()) == 8

def test_split_with_one_identity_is_noted(root):
    m = scan(root)
    assert m.report['splits with one identity'] == ['valid: id2, so no impostor can be drawn',
                                                    'test: id3, so no impostor can be drawn']
    assert (issues(m).what == 'splits with one identity').any()

def test_video_with_one_modality(root):
    shutil.rmtree(root/'wav/id0/v0a')
    shutil.rmtree(root/'faces/Ann_A/1.6/v0b')
    m = scan(root)
    assert m.report['videos with one modality'] == ['id0/v0a (face only)', 'id0/v0b (voice only)']
    assert len(m.videos()) == 6 and len(m.media('voice')) == 12 and len(m.table) == 28 and m.identities('train') == [
        'id1']

def test_unknown_age_nationality_and_gender_are_counted(root):
    (root/'vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tAge\n' + ''.join(
        f'id{i}\t{n}\t{g}\t{c}\t{a}\n' for i,(n,g,c,a) in enumerate(zip(PEOPLE, ('M', 'female', 'x', ''),
                                                                        ('', 'NA', 'unknown', 'UK'),
                                                                         ('30', '', 'old', '41.5')))), encoding='utf-8')
    m = scan(root)
    assert m.videos().gender.tolist()[::2] == ['m', 'f', 'unknown', 'unknown']
    assert m.videos().nationality.tolist()[::2] == ['unknown', 'NA', 'unknown', 'UK'] # NA is a country
    assert m.videos().age.fillna(-1).tolist()[::2] == [30., -1., -1., 41.5]
    assert [len(m.report[f'identities of unknown {k}']) for k in ('gender', 'nationality', 'age')] == [2, 2, 2]

def test_no_splits_file(root):
    (root/'identity_splits.txt').unlink()
    m = scan(root)
    assert set(m.table.split) == {'none'} and len(m.videos()) == 8 and summary(m).index.tolist() == ['none', 'all']
    with pytest.raises(CorpusError, match=f'{root}: .* train') as e: PairDataset(m)
    assert 'identity_splits.txt' in one_line(e)
    with pytest.raises(CorpusError, match=f'{root}: .* face .*test'): MediaDataset(m, 'face')
    with pytest.raises(ConfigError, match="'tset'; allowed: train, valid, seen, test"): m.videos('tset')

# ---- trees

def test_other_forms_of_the_tree(root):
    (root/'faces').rename(root/'unzippedFaces')
    for p in (root/'unzippedFaces/Ann_A/1.6').iterdir(): p.rename(p.parent.parent/p.name)
    (root/'unzippedFaces/Ann_A/1.6').rmdir()
    for p in list((root/'unzippedFaces/D_D').rglob('*.jpg')):
        with Image.open(p) as im: im.save(p.with_suffix('.png'))
        p.unlink()
    m = scan(root)
    assert len(m.videos()) == 8 and sorted(m.table.frame.unique()) == [-1, 25, 50] and not m.report['set aside']

def test_links(root, tmp_path):
    "Links that leave the tree are not followed; wav and faces themselves may lie elsewhere."
    elsewhere = tmp_path/'elsewhere'
    shutil.copytree(root/'wav/id0', elsewhere/'id8')
    (root/'wav/id8').symlink_to(elsewhere/'id8')
    (root/'wav/id0/v0a/00003.wav').symlink_to(elsewhere/'id8/v0a/00001.wav')
    (root/'wav/id0/v0a/00004.wav').symlink_to(root/'wav/id0/v0a/00001.wav')
    (root/'wav/id0/v0a/00005.wav').symlink_to(root/'wav/nothing')
    (root/'wav/id0/loop').symlink_to(root/'wav')
    m = scan(root)
    assert {'wav/id0/v0a/00003.wav', 'wav/id8'} < set(m.report['set aside']['link out of the tree'])
    assert m.report['set aside']['neither file nor folder'] == ['wav/id0/v0a/00005.wav']
    assert len(m.media('voice')) == 17
    shutil.move(root/'wav', tmp_path/'voices')
    (root/'wav').symlink_to(tmp_path/'voices')
    assert len(scan(root).media('voice')) >= 16

def test_files_in_the_wrong_place_are_set_aside(root):
    for path in ('wav/readme.txt', 'wav/id0/00001.wav', 'wav/id0/v0a/00001.m4a', 'faces/Ann_A/1.6/list.csv',
                 'faces/.hidden',
                 'faces/Ann_A/1.6/v0a/deep/0000001.jpg'):
        (root/path).parent.mkdir(exist_ok=True)
        (root/path).write_bytes(b'x')
    assert scan(root).report['set aside'] == {
        'not a face file': ['faces/Ann_A/1.6/v0a/deep'], 'voices to be converted: .m4a': ['wav/id0/v0a/00001.m4a'],
        'not in the folder of a person': ['wav/readme.txt'],
        'not in the folder of a video': ['faces/Ann_A/1.6/list.csv', 'wav/id0/00001.wav']}

def test_folder_that_may_not_be_read(root, monkeypatch):
    real = os.scandir
    def refuse(path):
        if str(path).endswith('v0a') and 'wav' in str(path): raise PermissionError(errno.EACCES, 'Permission denied')
        return real(path)
    monkeypatch.setattr(os, 'scandir', refuse)
    m = scan(root)
    assert m.report['set aside'] == {'folder that cannot be opened': ['wav/id0/v0a']} and len(m.videos()) == 7

# ---- the same table, whatever happens around it

def test_order_and_hash_do_not_depend_on_the_disk(root, tmp_path):
    other = tmp_path/'again'/'corpus'
    for p in sorted(root.rglob('*'), reverse=True):
        if p.is_file():
            (other/p.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, other/p.relative_to(root))
    a, b = scan(root), scan(other, workers=0)
    pd.testing.assert_frame_equal(a.table, b.table)
    assert a.hash == b.hash and a.report['listing'] != b.report['listing']
    face(other).unlink()
    assert scan(other).hash != a.hash

def test_frames_are_in_the_order_of_their_numbers(root):
    "Also when their names are not: 9 stands before 0000025, and the name sorts after it."
    face(root).rename(face(root).with_name('9.jpg'))
    m = scan(root)
    t = m.table[(m.table.video == 'v0a') & (m.table.modality == 'face')]
    assert t.frame.tolist() == [9, 50] and t.path.tolist() != sorted(t.path)

def test_processes_find_the_same(tmp_path, monkeypatch):
    "Enough files that several processes take part."
    monkeypatch.setattr('vfassoc.corpus.manifest._PAYS', 3)
    root = tmp_path/'corpus'
    for i in range(2):
        wav, jpg = root/f'wav/id{i}/v{i}', root/f'faces/P{i}/1.6/v{i}'
        wav.mkdir(parents=True)
        jpg.mkdir(parents=True)
        for k in range(280):
            soundfile.write(wav/f'{k:05}.wav', noise(0.5 if k % 7 else 0.4, seed=k), 16000)
            Image.new('RGB' if k % 5 else 'L', (16, 16)).save(jpg/f'{k:07}.jpg')
    texts(root, ('P0', 'P1'), (1, 4))
    one, two = scan(root, workers=1, check='full'), scan(root, workers=2, check='full')
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.report == two.report and one.hash == two.hash
    assert {k: len(v) for k,v in one.report['excluded'].items()} == {'shorter than 0.5 s': 2*40}
    assert {k: len(v) for k,v in one.report['repaired'].items()} == {'not RGB (L)': 2*56}

# ---- the stored manifest

def test_a_moved_corpus(root, tmp_path):
    save_manifest(scan(root), tmp_path/'m.parquet')
    shutil.move(root, tmp_path/'moved')
    m = load_manifest(tmp_path/'m.parquet', tmp_path/'moved')
    assert PairDataset(m, seconds=0.5, size=32)[0, 0][0].shape == (8000,)

def test_a_stored_manifest_that_is_none(root, tmp_path):
    with pytest.raises(CorpusError, match=f'{tmp_path}/m.parquet: ') as e: load_manifest(tmp_path/'m.parquet')
    for how in ('text', 'parquet', 'cut'):
        path = tmp_path/f'{how}.parquet'
        if how == 'text': path.write_text('no')
        elif how == 'parquet': pd.DataFrame({'a': [1]}).to_parquet(path)
        else:
            save_manifest(scan(root), path)
            path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CorpusError, match=f'^{path}: ') as e: load_manifest(path)
        one_line(e)

def test_a_broken_cache_is_rebuilt(root, tmp_path):
    load_or_scan(root, tmp_path/'cache', quiet=True)
    stored, = (tmp_path/'cache').iterdir()
    stored.write_text('no')
    assert load_or_scan(root, tmp_path/'cache',
                        quiet=True).report['cache'] == 'rebuilt: the stored manifest could not be read'
    assert load_or_scan(root, tmp_path/'cache', quiet=True).report['cache'] == 'reused'
    assert load_or_scan(root, tmp_path/'cache', shared='keep',
                        quiet=True).report['cache'] == 'rebuilt: another check was asked for'

@pytest.mark.parametrize('change', ['text', 'new', 'gone', 'content'])
def test_the_cache_notices(root, tmp_path, change):
    a = load_or_scan(root, tmp_path/'cache', quiet=True)
    if change == 'text': texts(root, split=(1, 1, 1, 4))
    elif change == 'new': shutil.copy(voice(root), voice(root).with_name('00009.wav'))
    elif change == 'gone': face(root).unlink()
    else: soundfile.write(voice(root), noise(1.5), 16000)
    b = load_or_scan(root, tmp_path/'cache', quiet=True)
    assert b.report['cache'] == 'rebuilt: the corpus changed' and (a.hash == b.hash) == (change == 'text')

def test_a_full_disk_leaves_the_old_manifest(root, tmp_path, monkeypatch):
    m, path = scan(root), tmp_path/'m.parquet'
    save_manifest(m, path)
    before = path.read_bytes()
    def full(*a, **kw): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('vfassoc.corpus.manifest.pq.write_table', full)
    with pytest.raises(RunError, match=f'{path}.*No space left'): save_manifest(m, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['corpus', 'm.parquet'] or sorted(
        os.listdir(tmp_path)) == ['corpus', 'm.parquet']

# ---- batches

@pytest.mark.parametrize('workers', [0, 2])
def test_a_file_that_breaks_during_training_is_one_line(root, workers):
    m = scan(root)
    for p in (root/'wav').rglob('*.wav'): p.write_bytes(p.read_bytes()[:-500])
    data = PairDataset(m, seconds=0.5, size=32)
    with pytest.raises(CorpusError, match=rf'{root}.*\.wav: ') as e:
        list(make_loader(data, DistributedBatchSampler(4, 2, 0, 0), workers))
    one_line(e)

def test_what_is_repaired_makes_whole_batches(root):
    for p,how in zip(sorted((root/'wav').rglob('*.wav')), ('stereo', '8 kHz', '24-bit', 'float', 'all at once')*4):
        _wave(how, p)
    for p,how in zip(sorted((root/'faces').rglob('*.jpg')), ('L', 'CMYK', 'RGBA', 'P', '16-bit')*4): _image(how, p)
    m = scan(root, check='full')
    assert not m.report['excluded']
    for voices,faces,idx in make_loader(PairDataset(m, 'train', 1.5, 32), DistributedBatchSampler(4, 4, 0, 0), 0):
        assert voices.shape == (4, 24000) and torch.isfinite(voices).all() and (voices.std(1) > 0.02).all()
        assert faces.shape == (4, 3, 32, 32) and sorted(idx.tolist()) == [0, 1, 2, 3]
    for kind in ('voice', 'face'):
        rows = torch.cat([r for r,_ in media_loader(MediaDataset(m, kind, None, 1., 32), 3, 0)])
        assert rows.tolist() == list(range(16))

def test_workers_read_with_one_thread(root):
    class Threads(PairDataset):
        def __getitem__(self, key): return (*super().__getitem__(key)[:2], torch.get_num_threads())
    for *_,threads in make_loader(Threads(scan(root), seconds=0.5, size=32), DistributedBatchSampler(4, 2, 0, 0),
                                  workers=1):
        assert threads.tolist() == [1, 1]

def test_edited_table_with_an_identity_in_two_splits(root):
    m = scan(root)
    t = m.table.copy()
    t.loc[t.video == 'v0b', 'split'] = 'test'
    bad = Manifest(m.root, t, m.report, m.hash)
    for load in (bad.videos, lambda s: bad.media('voice', s), bad.identities, lambda s: PairDataset(bad, s)):
        with pytest.raises(CorpusError, match='id0 in test and train') as e: load('train')
        one_line(e)

# ---- real voices and faces

@pytest.fixture
def libri():
    shared = os.environ.get('VFASSOC_SHARED')
    path = Path(shared or '.')/'corpora/libri-lfw'
    if not shared or not path.is_dir(): pytest.skip('set VFASSOC_SHARED to the folder that holds corpora/libri-lfw')
    return path

@pytest.mark.parametrize('check', ['quick', 'full'])
def test_libri_lfw(libri, check):
    m = scan(libri, check=check)
    s = summary(m)
    assert s.identities.to_dict() == {'train': 140, 'valid': 20, 'test': 40, 'all': 200}
    assert s.loc['all', ['videos', 'clips', 'faces']].tolist() == [481, 481, 1041] and s.loc['all', 'hours'] == 0.66
    assert not m.report['excluded'] and not m.report['repaired'] and not m.report['set aside']
    assert m.table.age.isna().all() and set(m.table.nationality) == {'unknown'}
    assert len(m.report['identities of unknown nationality']) == len(m.report['identities of unknown age']) == 200
    assert m.table.drop_duplicates('identity').gender.value_counts().to_dict() == {'f': 100, 'm': 100}
    durations = m.media('voice').duration
    assert 1.6 < durations.min() and durations.max() < 6.1

def test_libri_lfw_batches(libri):
    m = scan(libri)
    voices, faces, idx = next(iter(make_loader(PairDataset(m, 'test', 3., 112), DistributedBatchSampler(94, 32, 0, 0),
                                               2)))
    assert voices.shape == (32, 48000) and faces.shape == (32, 3, 112, 112) and len(set(idx.tolist())) == 32
    assert (voices.std(1) > 1e-3).all() and (faces.float().std((1, 2, 3)) > 10).all()
