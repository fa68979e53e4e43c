"From videos to a corpus: decoding, detection against the published code, speech, extraction, and the command."
import importlib.util, io, json, os, shutil, signal, subprocess, sys
from fractions import Fraction
from pathlib import Path

import av
import joblib
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchvision.ops import box_iou, nms

from checkout import ROOT
from conftest import once
from numpy_tensorflow import published_mtcnn
from talking import FPS, SPEAKERS, film, person, stage
from test_corpus_bad_input import one_line
from vfassoc.cli import main
from vfassoc.core import ConfigError, CorpusError, rng_for
from vfassoc.corpus.manifest import scan
from vfassoc.video import detection, extraction, ingest as module, speech
from vfassoc.video.decode import MediaError, probe_media, read_frames, read_sound, write_video
from vfassoc.video.detection import FaceDetector
from vfassoc.video.extraction import ExtractConfig, extract_video
from vfassoc.video.ingest import IngestConfig, convert_tree, find_sources, ingest, read_identity_table
from vfassoc.video.speech import SpeechDetector, utterances
from vfassoc.video.tracking import Tracker

A, B, C, D = SPEAKERS
SHARED = Path(os.environ.get('VFASSOC_SHARED', ''))
CLIPS = sorted(SHARED.glob('corpora/talking/*.mpg')) if os.environ.get('VFASSOC_SHARED') else []
real = pytest.mark.skipif(not CLIPS, reason='set VFASSOC_SHARED to the folder with corpora/talking')


def sound_of(path): return np.concatenate(list(read_sound(path)))


def reason(function, *args):
    with pytest.raises(MediaError) as e: list(function(*args))
    one_line(e)
    return e.value.reason

# ---- decoding


@pytest.mark.parametrize('end', ['.mp4', '.webm', '.mkv', '.mov', '.avi'])
def test_every_container_gives_a_frame_a_second_and_all_the_sound(tmp_path, end):
    path = film(tmp_path/f'a{end}', A)
    assert [round(f.time, 1) for f in read_frames(path)] == [0, 1, 2, 3, 4]
    assert abs(len(sound_of(path)) - 80_000) < 3000
    assert next(read_frames(path)).image.shape == (160, 180, 3)


def test_several_streams_the_largest_picture_and_no_cover(tmp_path):
    "A small film, a large one, and a cover that is larger than both."
    path = tmp_path/'many.mkv'
    with av.open(str(path), 'w') as c:
        c.add_attachment('cover.jpg', 'image/jpeg', cover(600))
        streams = []
        for w in (64, 128):
            s = c.add_stream('libx264', rate=5)
            s.width, s.height, s.pix_fmt = w, 48, 'yuv420p'
            streams.append(s)
        for k in range(10):
            for s in streams:
                image = np.full((48, s.width, 3), s.width, np.uint8)
                c.mux(s.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        for s in streams: c.mux(s.encode(None))
    with av.open(str(path)) as c: assert [s.width for s in c.streams.video] == [64, 128, 600]
    assert {f.image.shape for f in read_frames(path)} == {(48, 128, 3)}
    assert reason(read_sound, path) == 'no sound'


def cover(side):
    "A JPEG image."
    out = io.BytesIO()
    Image.new('RGB', (side, side), (9, 90, 200)).save(out, 'JPEG')
    return out.getvalue()


def song(path):
    "A second of sound with an attached picture."
    with av.open(str(path), 'w') as c:
        sound, picture = c.add_stream('libmp3lame', rate=16_000, layout='mono'), c.add_stream('mjpeg', rate=1)
        picture.width = picture.height = 64
        picture.pix_fmt, picture.disposition = 'yuvj420p', av.stream.Disposition.attached_pic
        for k in range(0, 16_000, 1_000):
            wave = .1*np.sin(np.arange(k, k + 1_000, dtype=np.float32)/9)[None]
            frame = av.AudioFrame.from_ndarray(wave, format='fltp', layout='mono')
            frame.sample_rate, frame.pts = 16_000, k
            c.mux(sound.encode(frame))
        c.mux(sound.encode(None))
        packet = av.Packet(cover(64))
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        c.mux(packet)
    return path


def test_a_song_with_a_cover_is_no_film(tmp_path):
    path = song(tmp_path/'song.mp3')
    with av.open(str(path)) as c: assert len(c.streams.video) == 1 # the cover
    info = probe_media(path)
    assert (info.picture, info.sound, info.width) == (False, True, 0)
    assert reason(read_frames, path) == 'no picture' and abs(len(sound_of(path)) - 16_000) < 3000


@pytest.mark.parametrize('degrees, corner', [(90, (-3, 3)), (180, (-3, -3)), (-90, (3, -3))])
def test_a_rotated_phone_video_stands_upright(tmp_path, degrees, corner):
    images = np.full((6, 48, 64, 3), 30, np.uint8)
    images[:, :12, :16] = 255 # upper left as stored
    write_video(tmp_path/'a.mp4', images, fps=4, rotation=degrees)
    image = next(read_frames(tmp_path/'a.mp4')).image
    assert image.shape == ((48, 64, 3) if degrees == 180 else (64, 48, 3)) and image[corner].min() > 200


def test_wide_pixels_become_square(tmp_path):
    with av.open(str(tmp_path/'a.mkv'), 'w') as c:
        s = c.add_stream('mpeg4', rate=5)
        s.width, s.height, s.pix_fmt = 64, 48, 'yuv420p'
        s.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for k in range(5): c.mux(s.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format='rgb24')))
        c.mux(s.encode(None))
    assert next(read_frames(tmp_path/'a.mkv')).image.shape == (48, 128, 3)


def test_a_huge_picture_is_reduced(tmp_path):
    write_video(tmp_path/'8k.mp4', np.zeros((1, 4320, 7680, 3), np.uint8), fps=1)
    assert next(read_frames(tmp_path/'8k.mp4')).image.shape == (1080, 1920, 3)


def test_a_truncated_film_is_used_as_far_as_it_goes_and_said(tmp_path):
    whole = film(tmp_path/'a.mkv', A, seconds=5)
    (tmp_path/'half.mkv').write_bytes(whole.read_bytes()[:int(whole.stat().st_size*.55)])
    times = [f.time for f in read_frames(tmp_path/'half.mkv')]
    assert 1 <= times[-1] < 4
    damaged = bytearray(film(tmp_path/'a.mp4', A, seconds=5).read_bytes())
    damaged[len(damaged)//2:len(damaged)//2 + 2000] = bytes(2000) # inside the media data; the index is behind them
    (tmp_path/'hole.mp4').write_bytes(damaged)
    assert round([f.time for f in read_frames(tmp_path/'hole.mp4')][-1]) == 4
    assert abs(len(sound_of(tmp_path/'hole.mp4')) - 80_000) < 6000


def test_what_is_no_video_has_a_reason(tmp_path):
    (tmp_path/'text.mp4').write_text('not a film ' * 100)
    (tmp_path/'empty.mp4').touch()
    (tmp_path/'list.mp4').write_text(f'#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{film(tmp_path/"a.mp4", A)}\n')
    write_video(tmp_path/'voice.m4a', sound=person(A)[1])
    film(tmp_path/'mute.mp4', A, sound=None)
    moov = (tmp_path/'a.mp4').read_bytes()
    (tmp_path/'half.mp4').write_bytes(moov[:len(moov)//2]) # the index of an mp4 is at its end
    assert reason(read_frames, tmp_path/'text.mp4').startswith('not a media file')
    assert reason(read_frames, tmp_path/'empty.mp4') == 'empty file'
    assert reason(read_frames, tmp_path/'list.mp4').startswith('not a media file')
    assert reason(read_frames, tmp_path/'half.mp4').startswith('not a media file')
    assert reason(read_frames, tmp_path/'voice.m4a') == 'no picture'
    assert reason(read_sound, tmp_path/'mute.mp4') == 'no sound'
    assert reason(read_frames, tmp_path/'none.mp4') == 'cannot be opened'


def test_an_encrypted_film_has_its_own_reason(tmp_path, monkeypatch):
    "Common encryption of mp4: the header is readable, the packets name a key that nobody gave."
    key = dict(encryption_scheme='cenc-aes-ctr', encryption_key='76a6c65c5ea762046bd749a2e632ccbb',
               encryption_kid='a7e61c373e219033c21091fa607bf3b8')
    real_open = av.open
    with monkeypatch.context() as patch:
        patch.setattr(av, 'open', lambda path, mode='r', **kw: real_open(path, mode, options=key))
        film(tmp_path/'locked.mp4', A)
    assert probe_media(tmp_path/'locked.mp4').picture
    assert reason(read_frames, tmp_path/'locked.mp4') == reason(read_sound, tmp_path/'locked.mp4') == 'encrypted'


def test_a_film_without_frames_has_a_reason(tmp_path):
    with av.open(str(tmp_path/'a.mkv'), 'w') as c:
        s = c.add_stream('libx264', rate=5)
        s.width, s.height, s.pix_fmt = 64, 48, 'yuv420p'
        c.start_encoding()
    assert reason(read_frames, tmp_path/'a.mkv') in ('no frame can be decoded', 'not a media file, or damaged')

# ---- detection


def scenes():
    return [stage(person(A)[0][:1])[0], stage(person(B)[0][:1], person(C)[0][:1])[0], person(D)[0][4]]


def check_against_published(images):
    "Boxes, scores and landmarks of the wheel's own code and of ours, in the order of the boxes; the number of faces."
    ours, faces = FaceDetector(min_face=20), 0
    with published_mtcnn() as MTCNN:
        theirs = MTCNN()
        for image in images:
            want = theirs.detect_faces(image, output_type='numpy', box_format='xyxy', fit_to_image=False)
            got = ours(image)
            assert len(got.boxes) == len(want)
            order, by = np.argsort(want[:, 1]), np.argsort(got.boxes[:, 0])
            near = dict(atol=5e-4, rtol=0) # pixels, of faces of 80 and more: less than 1e-5 of a face
            np.testing.assert_allclose(got.boxes[by], want[order, 1:5], **near)
            np.testing.assert_allclose(got.scores[by], want[order, 5], atol=1e-5)
            np.testing.assert_allclose(got.points[by][..., 0], want[order, 6:11], **near)
            np.testing.assert_allclose(got.points[by][..., 1], want[order, 11:16], **near)
            faces += len(want)
    return faces


def test_the_detector_equals_the_published_code():
    "The wheel's Python files run unchanged, on numpy instead of TensorFlow."
    assert check_against_published(scenes()) == 4


@real
def test_the_detector_equals_the_published_code_on_real_faces():
    assert check_against_published([next(read_frames(p)).image for p in CLIPS[:3]]) == 3


def test_a_dropped_box_drops_others_unlike_in_greedy_suppression():
    "Three boxes in a row, then 200 at random: what the published rule keeps is a part of what torchvision's keeps."
    row, scores = torch.tensor([[0., 0, 3, 1], [1, 0, 4, 1], [2, 0, 5, 1]]), torch.tensor([.9, .8, .7])
    assert detection.suppress(row, scores, .4).tolist() == [0] and nms(row, scores, .4).tolist() == [0, 2]
    g = torch.Generator().manual_seed(0)
    corner, scores = 100*torch.rand(200, 2, generator=g), torch.rand(200, generator=g)
    boxes = torch.cat([corner, corner + 20 + 20*torch.rand(200, 2, generator=g)], 1)
    ours, greedy = (set(f(boxes, scores, .3).tolist()) for f in (detection.suppress, nms))
    overlap = box_iou(boxes, boxes) > .3
    assert ours < greedy
    for k in greedy - ours: assert {j for j in range(200) if overlap[j, k] and scores[j] > scores[k]} - greedy


def test_weights_are_those_of_the_wheel_and_no_others(monkeypatch):
    folder = Path(importlib.util.find_spec('mtcnn').origin).parent/'assets'/'weights'
    detector = FaceDetector()
    for net, name in ((detector.proposal, 'pnet'), (detector.refinement, 'rnet'), (detector.output, 'onet')):
        want = joblib.load(folder/f'{name}.lz4')
        for p, a in zip(net.parameters(), want, strict=True):
            axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(a.ndim) if p.ndim > 1 else None
            np.testing.assert_array_equal(p.numpy(), a.transpose(axes) if axes else a.ravel())
    raw = detection.lz4.frame.decompress
    monkeypatch.setattr(detection.lz4.frame, 'decompress', lambda b: raw(b)[:-1] + b'\0')
    with pytest.raises(ConfigError) as e: FaceDetector()
    assert 'pnet.lz4' in one_line(e)


def test_a_track_survives_a_gap_but_not_another_person_at_its_place():
    detector, tracker = FaceDetector(32), Tracker()
    first, second = (stage(person(k)[0]) for k in (A, B))
    wall = np.full_like(first[0], 110)
    def name(image, cut=False): return tracker.update(image, detector(image), cut)
    assert name(first[0]) == name(first[2]) == [0]
    assert name(wall) == [] and name(first[4]) == [0]
    assert name(second[0], cut=True) == [1] and name(first[6], cut=True) == [0]
    assert name(second[2]) == [1] # at the place of the first, without a cut that was seen

# ---- speech


def test_speech_equals_the_wheels_own_program():
    spec = importlib.util.find_spec('silero_vad')
    program = torch.jit.load(str(Path(spec.origin).parent/'data'/'silero_vad.jit'))
    x = np.concatenate([person(A)[1], np.zeros(9000, np.int16), person(B)[1][:30_100]])
    ours = SpeechDetector().probabilities([x[:51_200], x[51_200:]])
    program.reset_states()
    chunks = torch.nn.functional.pad(torch.from_numpy(x).float()/32768, (0, -len(x) % 512)).split(512)
    with torch.no_grad(): theirs = torch.stack([program(c, 16_000)[0, 0] for c in chunks]).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (ours > .5).any() and (ours < .1).any()


def test_utterances_equal_the_wheels():
    threads = torch.get_num_threads()
    wheel = importlib.import_module('silero_vad.utils_vad').get_speech_timestamps_from_probs
    torch.set_num_threads(threads)
    rng = rng_for(0, 'utterances')
    for k in range(30):
        prob = np.repeat(rng.random(40), rng.integers(1, 9, 40))
        want = np.array([(s['start'], s['end']) for s in wheel(prob.tolist())], float).reshape(-1, 2)/16_000
        np.testing.assert_allclose(utterances(prob), want, atol=1e-3)


def test_another_model_is_refused(monkeypatch):
    monkeypatch.setattr(speech, '_DIGEST', '0'*64)
    with pytest.raises(ConfigError) as e: SpeechDetector()
    assert 'silero_vad.jit' in one_line(e)

# ---- one video


def extracted(path, folder, **options):
    folder.mkdir()
    return extract_video(path, folder, ExtractConfig(**options))


def reasons(found): return {s['dropped'] for s in found['segments']}


@pytest.mark.parametrize('end, options', [('.mp4', {}), ('.webm', {}), ('.mkv', {}), ('.mov', dict(rotation=90))])
def test_one_person_who_speaks_is_kept(tmp_path, end, options):
    if options:
        images = np.rot90(stage(person(A)[0]), 3, (1, 2)) # as the sensor of a phone held upright stores it
        write_video(tmp_path/f'a{end}', images, person(A)[1], fps=FPS, **options)
    else: film(tmp_path/f'a{end}', A)
    found = extracted(tmp_path/f'a{end}', tmp_path/'out')
    assert reasons(found) == {''}
    crops = sorted((tmp_path/'out').glob('0/faces/*.jpg'))
    assert {p.stem for p in crops} <= {f'{25*k:07d}' for k in range(5)} and len(crops) >= 3
    assert all(Image.open(p).size == (224, 224) and len(FaceDetector(60)(np.asarray(Image.open(p))).boxes) == 1
               for p in crops[:2])
    x, rate = soundfile.read(tmp_path/'out'/'0'/'wav'/'00001.wav')
    assert rate == 16_000 and 3 <= len(x)/rate <= 5.2 and x.std() > .01


def test_two_people_are_dropped_unless_the_largest_is_asked_for(tmp_path):
    path = film(tmp_path/'a.mp4', A, B)
    found = extracted(path, tmp_path/'drop')
    assert reasons(found) == {'several faces'} and not list((tmp_path/'drop').glob('*/wav/*'))
    found = extracted(path, tmp_path/'keep', several='keep-largest')
    assert '' in reasons(found) and len(list((tmp_path/'keep').glob('*/wav/*'))) == 1
    assert all(s['several'] for s in found['segments'])


def test_a_cut_to_somebody_else_is_dropped(tmp_path):
    images = stage(person(A)[0])
    images[11:] = stage(person(B)[0])[11:]
    write_video(tmp_path/'a.mp4', images, person(A)[1], fps=FPS)
    found = extracted(tmp_path/'a.mp4', tmp_path/'out')
    assert reasons(found) == {'face changes'}
    tracks = {round(t, 2): [f[0] for f in faces] for t, _, faces in found['looks']}
    assert tracks[2.] == [0] and tracks[2.75] == [1] # the frame after the cut is looked at


def test_late_sound_stays_on_the_pictures_clock(tmp_path):
    for name, delay in (('now', 0.), ('late', .2)): film(tmp_path/f'{name}.mkv', A, delay=delay)
    now, late = (sound_of(tmp_path/f'{n}.mkv') for n in ('now', 'late'))
    assert not late[:3100].any() and np.abs(now[:3100]).max() > 50
    np.testing.assert_array_equal(late[3200:3200 + 60_000], now[:60_000])
    clips = [extracted(tmp_path/f'{n}.mkv', tmp_path/n)['segments'][0] for n in ('now', 'late')]
    assert 0 < clips[1]['end'] - clips[0]['end'] < .3


@pytest.mark.parametrize('options, why', [
    (dict(least_face=500.), 'face too small'), (dict(sharpness=1e5), 'face blurred'),
    (dict(yaw=0.), 'face turned away'), (dict(loudness=-1.), 'too quiet')])
def test_poor_segments_are_dropped_by_reason(tmp_path, options, why):
    assert reasons(extracted(film(tmp_path/'a.mp4', A), tmp_path/'out', **options)) == {why}


def test_nobody_visible_and_nobody_speaking(tmp_path):
    write_video(tmp_path/'wall.mp4', np.full((20, 96, 128, 3), 120, np.uint8), person(A)[1], fps=FPS)
    assert reasons(extracted(tmp_path/'wall.mp4', tmp_path/'out')) == {'no face'}
    film(tmp_path/'quiet.mp4', A, sound=np.zeros(80_000, np.int16))
    assert extracted(tmp_path/'quiet.mp4', tmp_path/'none')['segments'] == []


def chord(seconds, rate=16_000):
    "Music without words: three plucked tones a second."
    t = np.arange(seconds*rate)/rate
    tones = sum(np.sin(2*np.pi*f*t)*np.exp(-3*(t % (1/3))) for f in (261.6, 329.6, 392.))
    return (6000*tones).astype(np.int16)


def test_music_and_silence_are_counted_apart(tmp_path):
    "Four seconds of music and two of silence beside one film that is kept."
    (tmp_path/'in').mkdir()
    film(tmp_path/'in'/'talk.mp4', A)
    film(tmp_path/'in'/'music.mkv', B, sound=np.concatenate([chord(4), np.zeros(32_000, np.int16)]))
    minutes = ingest(tmp_path/'mine', [tmp_path/'in'], workers=1, quiet=True).set_index('reason')
    record = next(r for r in records(tmp_path/'mine') if r['file'].endswith('music.mkv'))
    assert record['segments'] == [] and abs(record['silence'] - 2) < .1
    assert minutes.files['silence'] >= 1 and minutes.files['no speech'] >= 1
    with pytest.raises(CorpusError) as e: ingest(tmp_path/'no', [tmp_path/'in'/'music.mkv'], workers=1, quiet=True)
    assert '1 no speech' in one_line(e) and '1 silence' in str(e.value)


def test_silence_is_counted_outside_of_segments(tmp_path):
    "A second of silence, three of a tone, one of silence."
    x = np.zeros(80_000, np.int16)
    x[16_000:64_000] = 8000*np.sin(np.arange(48_000)*.17)
    write_video(tmp_path/'a.mkv', sound=x)
    sound, found = extraction.find_speech(tmp_path/'a.mkv', tmp_path/'a.raw', ExtractConfig())
    assert found == [] and sound.silence([]) == pytest.approx(2, abs=.1)
    assert sound.silence([speech.Segment(0, 2.5, 1)]) == pytest.approx(1, abs=.1)


@pytest.mark.parametrize('silence, parts', [(2., {'silence': 2, 'no speech': 3}), (0., {'no speech': 5}),
                                            (9., {'silence': 5}), (None, {'no speech': 5})])
def test_minutes_without_speech(silence, parts):
    r = dict(kind='video', file='a', seconds=5., reason='', segments=[])
    if silence is not None: r['silence'] = silence
    found = module.minutes_by_reason([r]).set_index('reason').minutes
    assert found.to_dict() == {k: round(v/60, 2) for k, v in parts.items()}


@real
def test_the_real_clips_are_kept_whole_with_their_faces(tmp_path):
    minutes = ingest(tmp_path/'real', CLIPS, cfg=IngestConfig(identity='file'), workers=1, quiet=True)
    assert minutes.set_index('reason').segments['kept'] == 5 and set(minutes.reason) <= {'kept', 'no speech', 'silence'}
    table = scan(tmp_path/'real', quiet=True).table
    assert sorted(table.identity.unique()) == [p.stem for p in CLIPS]
    assert (table[table.modality == 'voice'].duration > 2.9).all()
    for path in table.path[table.modality == 'face']:
        faces = FaceDetector(60)(np.asarray(Image.open(tmp_path/'real'/path)))
        (x0, y0, x1, y1), = faces.boxes
        assert abs((x0 + x1)/2 - 112) < 12 and abs((y0 + y1)/2 - 112) < 12 and .55 < (y1 - y0)/224 < .72

# ---- folders


@pytest.fixture(scope='module')
def videos(request, tmp_path_factory):
    "Eight usable films of four people and five that are not."
    def make(folder):
        for k, p in enumerate((A, B, C, D)):
            (folder/f'person {p}').mkdir()
            for n, end in enumerate(('.mp4', '.webm')): film(folder/f'person {p}'/f'talk {n}{end}', p)
        film(folder/'two.mp4', A, B)
        film(folder/'mute.mp4', A, sound=None)
        (folder/'text.mp4').write_text('not a film')
        (folder/'empty.mp4').touch()
        (folder/'notes.txt').write_text('beside the films')
        (folder/'.hidden.mp4').write_text('x')
    return once(request, tmp_path_factory, 'videos', make)


@pytest.fixture(scope='module')
def corpus(request, tmp_path_factory, videos):
    def make(folder):
        ingest(folder/'mine', [videos], cfg=IngestConfig(identity='folder', valid=.5, test=0), workers=2, quiet=True)
    return once(request, tmp_path_factory, 'ingested', make)/'mine'


def records(corpus): return [json.loads(p.read_text()) for p in (corpus/'ingest'/'files').glob('*.json')]


def test_the_folder_becomes_an_ordinary_corpus(corpus):
    m = scan(corpus, quiet=True)
    assert len(m.identities()) == 4 and len(m.identities('train')) == len(m.identities('valid')) == 2
    assert len(m.videos()) == 8 and not m.report['excluded'] and not m.report['set aside']
    assert {'converted'} != set(m.report['repaired']) and not m.report['repaired']
    why = {r['file']: r['reason'] for r in records(corpus)}
    why = {k.split('/')[-1] if k.count('/') == 1 else k: v for k, v in why.items()}
    assert why['mute.mp4'] == 'no sound' and why['empty.mp4'] == 'empty file' and len(why) == 12
    assert why['text.mp4'].startswith('not a media file') and why['two.mp4'] == ''
    minutes = (corpus/'ingest'/'minutes.csv').read_text()
    assert 'several faces,1,' in minutes and 'no sound,1,' in minutes
    assert Image.open(corpus/'ingest'/'faces-001.jpg').size[0] == 12*112
    assert Image.open(corpus/'ingest'/'timeline.png').size[0] > 500
    assert not (corpus/'ingest'/'unfinished').exists()


def test_the_corpus_trains(corpus, tmp_path, monkeypatch, capsys):
    (tmp_path/'settings.ini').write_text('[vfassoc]\nworkers = 0\n')
    monkeypatch.chdir(tmp_path)
    assert main(['prepare', str(corpus)]) == 0
    few = ['train.total_samples=16', 'train.lr_warmup=8', 'train.batch_size=4', 'data.crop_seconds=1.0']
    words = [w for f in few for w in ('--set', f)]
    assert main(['train', 'cid-demo', '--corpus', str(corpus), '--run', 'r', *words]) == 0, capsys.readouterr().err
    assert (tmp_path/'runs'/'r'/'history.csv').is_file()


def test_again_and_changed(corpus, videos, tmp_path):
    shutil.copytree(corpus, tmp_path/'mine')
    shutil.copytree(videos, tmp_path/videos.name)
    cfg = IngestConfig(identity='folder', valid=.5, test=0)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'mine').rglob('*.wav')}
    def run(): return ingest(tmp_path/'mine', [tmp_path/videos.name], cfg=cfg, workers=1, quiet=True)
    called, real_process = [], module._process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, '_process', lambda s, *a: called.append(s.name) or real_process(s, *a))
        run()
        assert called == [] and before == {p: p.stat().st_mtime_ns for p in (tmp_path/'mine').rglob('*.wav')}
        gone = tmp_path/videos.name/f'person {A}'/'talk 0.mp4'
        film(gone, A, sound=None)
        run()
        assert called == [f'{videos.name}/person {A}/talk 0.mp4']
    assert len(list((tmp_path/'mine').rglob('*.wav'))) == len(before) - 1 # what it had left is deleted
    with pytest.raises(CorpusError) as e:
        ingest(tmp_path/'mine', [tmp_path/videos.name], cfg=IngestConfig(identity='file'), quiet=True)
    assert 'identity' in one_line(e) and str(tmp_path/'mine') in str(e.value)


def test_interrupted_and_continued(videos, corpus, tmp_path):
    "Stopped at the second file: the first is kept, the rest is done, and one process writes what two wrote."
    real_write, count = module.write_json, []
    def stop(path, obj):
        if 'files' in Path(path).parts[-2:]:
            count.append(path)
            if len(count) == 2: raise KeyboardInterrupt
        real_write(path, obj)
    places = [videos/f'person {A}']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'write_json', stop)
        with pytest.raises(KeyboardInterrupt): ingest(tmp_path/'mine', places, workers=1, quiet=True)
    assert len(records(tmp_path/'mine')) == 1 and not (tmp_path/'mine'/'ingest.json').exists()
    first = next((tmp_path/'mine'/'ingest'/'files').glob('*.json')).stat().st_mtime_ns
    ingest(tmp_path/'mine', places, workers=1, quiet=True)
    assert first in {p.stat().st_mtime_ns for p in (tmp_path/'mine'/'ingest'/'files').glob('*.json')}
    one, two = ({p.read_bytes() for p in root.rglob('*.wav')} for root in (tmp_path/'mine', corpus))
    assert len(one) == 2 and one <= two and (tmp_path/'mine'/'ingest.json').is_file()


KILLED = """import os, signal, sys
from vfassoc.cli import main
from vfassoc.video import ingest
settle, count = ingest._settle, []
def stop(*args):
    count.append(args)
    if len(count) == 2: os.kill(os.getpid(), signal.SIGKILL)
    settle(*args)
ingest._settle = stop
main(sys.argv[1:])
"""


def test_killed_and_continued(videos, corpus, tmp_path):
    "SIGKILL when the second film is cut but not yet in its place: the first is kept, the rest is done."
    files, places = tmp_path/'mine'/'ingest'/'files', [videos/f'person {A}']
    words = [sys.executable, '-c', KILLED, 'ingest', str(places[0]), '-o', str(tmp_path/'mine'), '--jobs', '1']
    killed = subprocess.run(words, cwd=tmp_path, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True)
    done = list(files.glob('*.json'))
    assert killed.returncode == -signal.SIGKILL and len(done) == 1, killed.stderr
    assert list((tmp_path/'mine'/'ingest'/'unfinished').rglob('*.wav')) # of the second film
    assert not (tmp_path/'mine'/'ingest.json').exists()
    before = done[0].stat().st_mtime_ns
    ingest(tmp_path/'mine', places, workers=1, quiet=True)
    assert done[0].stat().st_mtime_ns == before and len(list(files.glob('*.json'))) == 2
    one, two = ({p.read_bytes() for p in root.rglob('*.wav')} for root in (tmp_path/'mine', corpus))
    assert len(one) == 2 and one <= two and (tmp_path/'mine'/'ingest.json').is_file()
    assert not [p for p in (tmp_path/'mine').rglob('*') if p.name.startswith('.') or p.name == 'unfinished']


def sound_file_full(path, x, *args, **kw): SOUNDFILE_WRITE('/dev/full', x, 16_000, format='WAV', subtype='PCM_16')


def record_full(path, obj):
    if 'files' in Path(path).parts[-2:]: raise OSError(28, 'No space left on device')
    WRITE_JSON(path, obj)


SOUNDFILE_WRITE, WRITE_JSON = soundfile.write, module.write_json


@pytest.mark.parametrize('where, name, full', [(extraction.soundfile, 'write', sound_file_full),
                                               (module, 'write_json', record_full)])
def test_a_full_disk_is_one_line_and_the_work_goes_on_later(videos, corpus, tmp_path, where, name, full):
    places = [videos/f'person {A}'/'talk 0.mp4']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, full)
        with pytest.raises(CorpusError) as e: ingest(tmp_path/'mine', places, workers=1, quiet=True)
    assert 'cannot be written' in one_line(e) and 'free space' in str(e.value)
    assert not records(tmp_path/'mine') and not list((tmp_path/'mine'/'ingest'/'unfinished').rglob('*.wav'))
    ingest(tmp_path/'mine', places, workers=1, quiet=True)
    made = [p.read_bytes() for p in (tmp_path/'mine').rglob('*.wav')]
    assert len(made) == 1 and made[0] in {p.read_bytes() for p in corpus.rglob('*.wav')}


def test_dask_hands_out_the_files(videos, corpus, tmp_path):
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        ingest(tmp_path/'mine', [videos/f'person {A}'], workers=2, scheduler=cluster.scheduler_address, quiet=True)
    one, two = ({p.read_bytes() for p in root.rglob('*.wav')} for root in (tmp_path/'mine', corpus))
    assert len(one) == 2 and one <= two


def test_no_identities_means_nobody_is_tested_on(corpus, videos, tmp_path):
    ingest(tmp_path/'mine', [videos/f'person {p}' for p in (A, B)], workers=1, quiet=True)
    m = scan(tmp_path/'mine', quiet=True)
    assert len(m.identities()) == 4 and m.identities('test') == [] and len(m.identities('valid')) == 2


def test_identities_from_a_table(videos, tmp_path):
    (tmp_path/'who.csv').write_text(f'file,identity,gender,split\nperson {A}/talk 0.mp4,Ann Lee,f,test\n'
                                    'talk 1.webm,../x,m,train\n')
    cfg = IngestConfig(ExtractConfig(size=112), identity='table')
    places = [videos/f'person {A}', videos/'mute.mp4']
    minutes = ingest(tmp_path/'mine', places, cfg=cfg, table=tmp_path/'who.csv', workers=1, quiet=True)
    assert minutes.set_index('reason').files['not in the table of identities'] == 1
    t = scan(tmp_path/'mine', quiet=True).table
    assert set(zip(t.gender, t.split)) == {('f', 'test'), ('m', 'train')}
    assert all(p.relative_to(tmp_path).parts[0] in ('mine', 'who.csv') for p in tmp_path.rglob('*') if p.is_file())
    assert {Image.open(p).size for p in (tmp_path/'mine').rglob('0*.jpg')} == {(112, 112)}


@pytest.mark.parametrize('text, word', [
    ('file,who\na,b\n', 'identity'), ('file,identity\na,\n', 'line 2'), ('file,identity\na,b\na,c\n', 'a has two rows'),
    ('file,identity,split\na,b,train\nc,b,test\n', 'b has two values of split'),
    ('file,identity,split\na,b,dev\n', 'dev'), ('', 'csv')])
def test_bad_tables_are_one_line(tmp_path, text, word):
    (tmp_path/'who.csv').write_text(text)
    with pytest.raises(CorpusError) as e: read_identity_table(tmp_path/'who.csv')
    assert word in one_line(e) and 'who.csv' in str(e.value)


def test_nothing_usable_leaves_nothing(videos, tmp_path):
    with pytest.raises(CorpusError) as e: ingest(tmp_path/'mine', [videos/'mute.mp4'], workers=1, quiet=True)
    assert 'no sound' in one_line(e) and not (tmp_path/'mine').exists()
    with pytest.raises(CorpusError) as e: ingest(tmp_path/'mine', [tmp_path/'none'], quiet=True)
    assert 'none' in one_line(e)
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'mine.txt').touch()
    with pytest.raises(CorpusError) as e: ingest(tmp_path/'full', [videos], quiet=True)
    assert 'mine.txt' in one_line(e)


def test_sources_are_media_below_the_folder(videos, tmp_path):
    names = [s.name for s in find_sources('video', [videos], tmp_path)]
    assert len(names) == 12 and 'notes.txt' not in names and '.hidden.mp4' not in names
    twice = [videos/f'person {p}'/'talk 0.mp4' for p in (A, B)]
    with pytest.raises(CorpusError) as e: find_sources('video', twice, tmp_path)
    assert 'talk 0.mp4' in one_line(e)


def test_the_command_says_what_was_kept(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ['ingest', str(videos/'two.mp4'), '-o', 'data/two', '--several', 'keep-largest', '--set', 'gaps=0.5']
    assert main([*words, '--set', 'least_face=20', '--jobs', '1']) == 0, capsys.readouterr().err
    assert 'kept' in capsys.readouterr().out
    said = json.loads((tmp_path/'data'/'two'/'ingest.json').read_text())
    assert said['several'] == 'keep-largest' and len(said['largest_of_several']) == said['clips'] == 1
    report = scan(tmp_path/'data'/'two', quiet=True).report
    assert report['clips with several faces, of which the largest is kept'] == said['largest_of_several']
    assert main(['ingest', str(videos), '-o', 'x', '--set', 'margn=2']) == 2
    assert "'margn'" in capsys.readouterr().err


# ---- recordings and photographs


def test_recordings_and_photographs_of_named_people(tmp_path):
    for p, name in ((A, 'ann'), (B, 'bob')):
        (tmp_path/'sound').mkdir(exist_ok=True)
        (tmp_path/'photos').mkdir(exist_ok=True)
        write_video(tmp_path/'sound'/f'{name}{".m4a" if p == A else ".mp3"}', sound=person(p)[1])
        Image.fromarray(stage(person(p)[0][:1])[0]).save(tmp_path/'photos'/f'{name}.webp')
    (tmp_path/'photos'/'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 no picture')
    minutes = ingest(tmp_path/'mine', audio=[tmp_path/'sound'], images=[tmp_path/'photos'],
                     cfg=IngestConfig(identity='file'), workers=1, quiet=True)
    table = scan(tmp_path/'mine', quiet=True).table
    assert {tuple(r) for r in table[['identity', 'modality']].drop_duplicates().to_numpy()} == {
        (i, m) for i in ('ann', 'bob') for m in ('voice', 'face')}
    assert minutes.set_index('reason').files['kept'] == 4 and len(minutes) >= 2


def test_a_tree_is_converted_in_place_and_elsewhere(tmp_path):
    place = tmp_path/'a'/'wav'/'id1'/'v 1'
    place.mkdir(parents=True)
    write_video(place/'00001.m4a', sound=person(A)[1])
    soundfile.write(place/'00002.wav', person(A)[1], 16_000)
    convert_tree(tmp_path/'a', [tmp_path/'a'/'wav'], workers=1, quiet=True)
    assert sorted(p.name for p in place.iterdir()) == ['00001.m4a', '00001.wav', '00002.wav']
    convert_tree(tmp_path/'b', [tmp_path/'a'/'wav'], workers=1, quiet=True)
    assert sorted(p.name for p in (tmp_path/'b'/'wav'/'id1'/'v 1').iterdir()) == ['00001.wav', '00002.wav']
    (place/'00003.mp3').write_text('no sound')
    (tmp_path/'c').mkdir()
    shutil.copy(place/'00003.mp3', tmp_path/'c')
    with pytest.raises(CorpusError) as e: convert_tree(tmp_path/'c', [tmp_path/'c'], workers=1, quiet=True)
    assert 'not a media file' in one_line(e) and [p.name for p in (tmp_path/'c').iterdir()] == ['00003.mp3']
