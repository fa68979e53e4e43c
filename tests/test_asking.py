"A trained model asked from the command line and from Python: files in, a ranked table out; and what it refuses."
import io, json, math, os, shutil
from pathlib import Path

import numpy as np, pandas as pd, pytest, soundfile, torch
from PIL import Image, ImageOps

from vfassoc.cli import main
from vfassoc.core import RunError, read_json, write_json
from vfassoc.corpus.faces import read_face
from vfassoc.inference import queries
from vfassoc.inference.demo_model import DEMO, drawn_people
from vfassoc.inference.index import Index
from vfassoc.inference.matcher import load
from vfassoc.inference.queries import QueryError, find_media
from vfassoc.video.decode import read_frames, write_video
from vfassoc.video.detection import Faces
from vfassoc.video.tracking import crop_face


@pytest.fixture(scope='module')
def media(tmp_path_factory):
    "Voices and faces of five drawn people, as files."
    root = tmp_path_factory.mktemp('media')
    for kind in ('voices', 'faces'): (root/kind).mkdir()
    for k, (voice, face) in enumerate(zip(*drawn_people(5)[:2])):
        soundfile.write(root/'voices'/f'{k}.wav', voice[1], voice[0])
        Image.fromarray(face).save(root/'faces'/f'{k}.png')
    return root


@pytest.fixture(scope='module')
def m(): return load(DEMO)


def said(capsys, *words):
    "Status, standard output and standard error of a command."
    status = main([str(w) for w in words])
    return status, *capsys.readouterr()


def test_rank_prints_the_faces_in_the_order_of_the_scores(media, m, capsys):
    status, out, _ = said(capsys, 'rank', DEMO, media/'voices'/'0.wav', media/'faces', '--top', 3, '--json')
    found, faces = json.loads(out), sorted((media/'faces').iterdir())
    scores = (m.embed_voices(media/'voices'/'0.wav')@m.embed_faces(faces).T)[0]
    assert status == 0 and [r['row'] for r in found] == np.argsort(-scores)[:3].tolist()
    assert [r['name'] for r in found] == [str(faces[r['row']]) for r in found]
    np.testing.assert_allclose([r['score'] for r in found], -np.sort(-scores)[:3], atol=1e-5)


def test_rank_takes_a_face_that_asks_for_a_voice(media, m, capsys):
    status, out, _ = said(capsys, 'rank', DEMO, media/'faces'/'1.png', media/'voices', '--csv')
    found = pd.read_csv(io.StringIO(out))
    scores = m.embed_voices(sorted((media/'voices').iterdir()))@m.embed_faces(media/'faces'/'1.png')[0]
    assert status == 0 and found['row'].tolist() == np.argsort(-scores).tolist()


def test_rank_demo_needs_nothing(capsys):
    status, out, _ = said(capsys, 'rank', '--demo', '--csv')
    assert status == 0 and len(pd.read_csv(io.StringIO(out))) == 10


def test_rank_demo_takes_own_files(media, capsys):
    status, out, _ = said(capsys, 'rank', '--demo', media/'voices'/'0.wav', media/'faces', '--json')
    assert status == 0 and len(json.loads(out)) == 5


def test_verify_scores_one_pair(media, m, capsys):
    status, out, _ = said(capsys, 'verify', DEMO, media/'voices'/'2.wav', media/'faces'/'2.png', '--json')
    score = m.score(media/'voices'/'2.wav', media/'faces'/'2.png')
    assert status == 0 and math.isclose(json.loads(out)[0]['score'], score, abs_tol=1e-5)


def test_embed_writes_the_vectors_of_voices_and_faces(media, m, tmp_path, capsys):
    status, out, _ = said(capsys, 'embed', DEMO, media, '-o', tmp_path/'z.npz')
    z = np.load(tmp_path/'z.npz')
    assert status == 0 and z['voice'].shape == z['face'].shape == (5, 128) and str(z['model']) == m.digest
    np.testing.assert_allclose(z['face'], m.embed_faces(z['face_path'].tolist()), atol=1e-5)
    status, out, _ = said(capsys, 'embed', DEMO, media/'faces'/'0.png', '--csv')
    np.testing.assert_allclose(pd.read_csv(io.StringIO(out)).iloc[0, 2:].astype(float), z['face'][0], atol=1e-5)


def test_media_of_a_folder_are_found_by_their_endings(tmp_path):
    "A video is a voice: `read_sound` takes its sound."
    for name in ('b.mp4', 'a.WAV', 'c.png', 'notes.txt', 'd.avi'): (tmp_path/name).touch()
    def names(kind): return [p.name for p in find_media([tmp_path], kind)]
    assert names('voice') == ['a.WAV', 'b.mp4'] and names('face') == ['c.png']
    assert find_media([tmp_path/'c.png'], 'voice', must=False) == []
    with pytest.raises(QueryError, match='c.png'): find_media([tmp_path/'c.png'], 'voice')
    with pytest.raises(QueryError, match='gone'): find_media([tmp_path/'gone'], 'voice')


def test_the_sound_of_a_video_is_a_voice(tmp_path, m):
    sound = (3000*np.sin(np.arange(32_000)/9)).astype(np.int16)
    write_video(tmp_path/'a.mp4', np.zeros((8, 48, 64, 3), np.uint8), sound, fps=4)
    assert m.embed_voices(find_media([tmp_path], 'voice')).shape[0] == 1


def test_index_is_searched_and_appended_to(media, capsys, tmp_path):
    folder = tmp_path/'index'
    assert said(capsys, 'index', DEMO, media/'faces'/'0.png', media/'faces'/'1.png', '-o', folder)[0] == 0
    status, _, err = said(capsys, 'index', DEMO, media/'faces', '-o', folder)
    assert status == 2 and str(folder) in err and len(Index.load(folder)) == 2
    assert said(capsys, 'index', DEMO, media/'faces', '-o', folder, '--append')[0] == 0
    assert len(Index.load(folder)) == 7
    by_search = json.loads(said(capsys, 'search', DEMO, folder, media/'voices'/'3.wav', '--json')[1])
    by_rank = json.loads(said(capsys, 'rank', DEMO, media/'voices'/'3.wav', media/'faces', '--json')[1])
    assert {r['name']: r['score'] for r in by_rank} == pytest.approx({r['name']: r['score'] for r in by_search})


def test_index_leaves_out_what_it_cannot_read_and_names_it(media, capsys, tmp_path):
    shutil.copytree(media/'faces', tmp_path/'faces')
    (tmp_path/'faces'/'a.jpg').write_bytes(b'text')
    status, out, err = said(capsys, 'index', DEMO, tmp_path/'faces', '-o', tmp_path/'index')
    assert status == 0 and '1 faces' in err and 'a.jpg' in err and len(Index.load(tmp_path/'index')) == 5


BAD = {'silence': (np.zeros(32000), 'silence'), 'short': (np.ones(1600)*.1, '0.10 s'),
       'nan': (np.full(32000, np.nan), 'not numbers')}


@pytest.mark.parametrize('kind', BAD)
def test_a_voice_that_is_none_is_one_line(kind, media, capsys, tmp_path):
    samples, word = BAD[kind]
    soundfile.write(tmp_path/f'{kind}.wav', samples, 16000, subtype='FLOAT')
    status, out, err = said(capsys, 'rank', DEMO, tmp_path/f'{kind}.wav', media/'faces')
    assert status == 2 and f'{kind}.wav' in err and word in err and err.count('\n') == 1 and not out


@pytest.mark.parametrize('name, data, word', [
    ('text.wav', b'hello', 'no readable sound'), ('empty.wav', b'', 'no readable sound'),
    ('text.png', b'hello', 'no readable image'), ('none.png', None, 'none.png')])
def test_a_file_that_is_something_else_is_one_line(name, data, word, media, capsys, tmp_path):
    if data is not None: (tmp_path/name).write_bytes(data)
    other = media/'faces' if name.endswith('wav') else media/'voices'
    status, out, err = said(capsys, 'rank', DEMO, tmp_path/name, other)
    assert status == 2 and name in err and word in err and err.count('\n') == 1 and not out


def test_a_large_jpeg_is_read_as_evaluation_reads_it(tmp_path):
    "Evaluation decodes a JPEG of more than twice the size at a smaller scale."
    pixels = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path/'a.jpg')
    for size in (64, 112, 224, 448, 896):
        assert torch.equal(queries.face_crop(tmp_path/'a.jpg', size), read_face(tmp_path/'a.jpg', size))


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_a_photograph_of_a_turned_camera_stands_upright(orientation, tmp_path):
    image = Image.fromarray(np.arange(64*48*3, dtype=np.uint8).reshape(64, 48, 3))
    exif = image.getexif()
    exif[0x0112] = orientation
    for end in ('png', 'jpg'):
        image.save(tmp_path/f'a.{end}', exif=exif)
        with Image.open(tmp_path/f'a.{end}') as im: want = ImageOps.exif_transpose(im).convert('RGB')
        np.testing.assert_array_equal(queries.open_image(tmp_path/f'a.{end}'), want)


def test_a_photograph_is_no_crop(media, m):
    wide = np.zeros((300, 600, 3), np.uint8)
    assert m.embed_faces([wide], crop=False).shape == (1, 128)
    with pytest.raises(QueryError, match='face 1'): m.embed_faces([wide[:, :300], wide])


def test_an_index_of_another_model_is_refused(media, m, tmp_path):
    other = load(DEMO)
    with torch.no_grad(): next(other.model.parameters()).add_(1)
    m.index([media/'faces'/'0.png'], tmp_path/'index')
    with pytest.raises(QueryError, match=r'/index: .*\(\w{8}, .*\w{8}\)'): other.open_index(tmp_path/'index')


@pytest.mark.parametrize('change, word', [(dict(format_version=9), '9'), (dict(format='x'), "'x'")])
def test_a_model_of_another_version_is_refused(change, word, tmp_path):
    shutil.copytree(DEMO, tmp_path/'m')
    write_json(tmp_path/'m'/'config.json', {**read_json(DEMO/'config.json'), **change})
    with pytest.raises(RunError, match=word): load(tmp_path/'m')


def test_a_damaged_model_and_a_pickle_are_refused(tmp_path):
    shutil.copytree(DEMO, tmp_path/'m')
    data = bytearray((tmp_path/'m'/'model.safetensors').read_bytes())
    data[-5] ^= 1
    (tmp_path/'m'/'model.safetensors').write_bytes(data)
    with pytest.raises(RunError, match='model.safetensors'): load(tmp_path/'m')
    (tmp_path/'m'/'model.safetensors').rename(tmp_path/'m'/'model.pt')
    with pytest.raises(RunError, match='pickle'): load(tmp_path/'m')


def test_a_full_disk_leaves_no_index(media, m, tmp_path, monkeypatch):
    def full(*args, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'save', full)
    with pytest.raises(RunError, match=r'index.*\(No space left'): m.index([media/'faces'/'0.png'], tmp_path/'index')
    assert not (tmp_path/'index').exists() or not any((tmp_path/'index').iterdir())


def test_long_sound_is_the_mean_of_its_windows(media, m):
    x = [soundfile.read(media/'voices'/f'{k}.wav', dtype='float32')[0][:40000] for k in (0, 1)] # 2.5 s each
    mean = m.embed_voices(x).mean(0)
    np.testing.assert_allclose(m.embed_voices([np.concatenate(x)])[0], mean/np.linalg.norm(mean), atol=1e-5)


def test_the_prior_moves_every_probability_by_its_odds(media, capsys):
    def odds(prior):
        out = said(capsys, 'rank', DEMO, media/'voices'/'0.wav', media/'faces', '--json', '--prior', prior)[1]
        return np.array([math.log(r['probability']/(1 - r['probability'])) for r in json.loads(out)])
    np.testing.assert_allclose(odds(.5) - odds(.1), math.log(9), atol=1e-4)
    assert said(capsys, 'rank', DEMO, media/'voices'/'0.wav', media/'faces', '--prior', 1)[0] == 2


def test_verify_accepts_above_the_threshold_of_the_calibration(media, m, capsys):
    out = said(capsys, 'verify', DEMO, media/'voices'/'2.wav', media/'faces'/'2.png', '--json')[1]
    found = json.loads(out)[0]
    assert found['accepted'] == (found['score'] > m.calibration.threshold)
    assert found['llr'] == pytest.approx(m.calibration.scale*found['score'] + m.calibration.shift, abs=1e-4)


def test_save_writes_a_folder_that_is_the_same_model(m, capsys, tmp_path):
    assert said(capsys, 'save', DEMO, '-o', tmp_path/'copy')[0] == 0
    copy = load(tmp_path/'copy')
    assert (copy.digest, copy.calibration, copy.card) == (m.digest, m.calibration, m.card)
    assert 'drawn people' in copy.card and 'identifies nobody' in copy.card
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'mine.txt').write_text('keep')
    assert said(capsys, 'save', DEMO, '-o', tmp_path/'other')[0] == 2
    assert [p.name for p in (tmp_path/'other').iterdir()] == ['mine.txt']


def test_one_face_of_a_photograph_is_cropped_and_several_are_listed(m, monkeypatch):
    photo = np.random.default_rng(0).integers(0, 255, (300, 600, 3), dtype=np.uint8)
    boxes = np.array([[100., 50., 180., 150.], [10., 10., 40., 40.]]) # the second is small: background
    found = {'boxes': boxes}
    monkeypatch.setattr(queries, 'find_faces', lambda detector, image: Faces(found['boxes'], None, None))
    crop = crop_face(photo, boxes[0], m.data.face_size)
    np.testing.assert_allclose(m.embed_faces([photo]), m.embed_faces([crop], crop=False), atol=1e-5)
    found['boxes'] = np.array([boxes[0], [300., 50., 370., 140.]])
    both = r'2 faces.*\(100, 50, 180, 150\).*\(300, 50, 370, 140\)'
    with pytest.raises(QueryError, match=both): m.embed_faces([photo])
    found['boxes'] = boxes[:0]
    with pytest.raises(QueryError, match='600 x 300'): m.embed_faces([photo])


TALKING = Path(os.environ.get('VFASSOC_SHARED', 'none'))/'corpora'/'talking'


@pytest.mark.skipif(not TALKING.is_dir(), reason='no talking clips: VFASSOC_SHARED is not set')
def test_the_face_of_a_real_photograph_is_found():
    for clip in sorted(TALKING.glob('*.mpg')):
        image = next(read_frames(clip)).image
        boxes = queries.photograph_faces(image)
        assert len(boxes) == 1 and 0 < boxes[0, 0] < boxes[0, 2] < image.shape[1]


def test_onnx_files_give_the_vectors_of_the_model(media, m, capsys, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime', reason="onnxruntime is missing (pip install 'vfassoc[onnx]')")
    assert said(capsys, 'onnx', DEMO, '-o', tmp_path/'onnx')[0] == 0
    x = soundfile.read(media/'voices'/'0.wav', dtype='float32')[0][None, :40000]
    run = onnxruntime.InferenceSession(str(tmp_path/'onnx'/'voice.onnx'), providers=['CPUExecutionProvider']).run
    np.testing.assert_allclose(run(None, {'voice': x})[0], m.encode('voice', torch.from_numpy(x)), atol=1e-4)
    assert read_json(tmp_path/'onnx'/'onnx.json')['calibration']['scale'] == m.calibration.scale
    assert said(capsys, 'onnx', DEMO, '-o', tmp_path/'onnx')[0] == 2
