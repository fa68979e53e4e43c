"The calibration of the twin: printed rows, the lists as rows of the index, and a point with and without a session."
import pandas as pd
import pytest

from test_twin import index_of
from vfassoc.core import CorpusError
from vfassoc.experiments.calibration import calibration_lists, calibration_point, calibration_targets, misfit
from vfassoc.synthetic.twin import TwinConfig


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    "A tiny index with the two verification lists: positives of the same and of another video, half of the lines."
    folder = tmp_path_factory.mktemp('index')/'voxceleb'
    found = index_of(folder)
    (folder/'cmpc'/'veriflist').mkdir()
    lines = [f'{i},{i},{j},{int(i == j)},Ann_{i}/v{i}x0_0000001.wav,Ann_{j}/v{j}x{k}/0000500.jpg'
             for i in range(30, 40) for j in (i, 30 + (i + 2) % 10) for k in range(4)]
    for name in ('random', 'G'):
        head = 'id,voice-speaker-id,face-speaker-id,label,voice-path,face-path\n'
        (folder/'cmpc'/'veriflist'/f'veriflist_test_{name}_unseenunheard.txt').write_text(head + '\n'.join(lines))
    return found


def test_printed_rows():
    assert calibration_targets().to_dict() == {('CID', 'G'): 65.2, ('CID', 'U'): 78.2, ('DIMNet-I', 'G'): 71.,
                                               ('DIMNet-I', 'U'): 82.5}
    row = pd.DataFrame([{'CID U': 79.2, 'CID G': 65.2, 'DIMNet-I U': 82.5, 'DIMNet-I G': 74.}])
    assert misfit(row).iloc[0] == pytest.approx((10/4)**.5)


def test_lists_are_rows_of_the_videos(index):
    lists = calibration_lists(index)
    who = lists.videos.identity.to_numpy()
    assert ((who[lists.voice['U']] == who[lists.face['U']]) == lists.label['U']).all()
    assert (lists.videos.video.iloc[lists.face['G'][:4]].tolist() == ['v30x0', 'v30x1', 'v30x2', 'v30x3'])


def test_a_session_is_seen_in_positives_of_one_video(index):
    lists, found = calibration_lists(index), {}
    for session in (0., 3.):
        cfg = TwinConfig(session=session, deviates=0, variation=.1)
        found[session] = calibration_point(index, lists, cfg, steps=60)
    gap = {s: r['CID U'] - r['CID U other'] for s, r in found.items()}
    assert gap[3.] > gap[0.] + 1 and all(50 < r['oracle U'] <= 100 for r in found.values())


def test_without_lists_one_line(tmp_path):
    with pytest.raises(CorpusError, match='veriflist_test_random_unseenunheard.txt: no such list'):
        calibration_lists(index_of(tmp_path/'v'))
