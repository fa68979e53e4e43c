"VoxCeleb1's published index, splits and what the papers print of them; skipped where the published files are not."
import os
from pathlib import Path

import pytest

from vfassoc.corpus.tree import read_metadata, read_splits
from vfassoc.corpus.voxceleb import read_index, read_split_tables, shared_people, split_counts, write_splits


@pytest.fixture(scope='module')
def published():
    root = Path(os.environ.get('VFASSOC_SHARED') or '.')/'voxceleb'
    if not (root/'utterances.tsv.gz').is_file(): pytest.skip('VFASSOC_SHARED does not lead to the published index of VoxCeleb1')
    faa = [root/'seeking-the-shape-of-sound'/f'vox1_{s}.csv' for s in ('train', 'val', 'test')]
    meta = read_metadata(root/'cmpc/vox1_meta.csv')
    by_name = dict(zip(meta['name'], meta.index))
    return root, read_index(root/'utterances.tsv.gz'), read_split_tables(*faa), read_splits(root/'cmpc/Splits/identity_splits.txt', lambda name: by_name[name.strip()])


def test_the_whole_index(published):
    _, index, _, _ = published
    assert (len(index), index.identity.nunique(), len(index.drop_duplicates(['identity', 'video'])), round(index.seconds.sum()/3600, 1)) == (153_516, 1251, 22_496, 351.6)


def test_table_1_of_faa_and_where_it_does_not_match(published):
    _, index, (used, left), _ = published
    t = split_counts(index, used)
    assert t.identities.tolist() == [924, 112, 189] and t.clips.tolist() == [113_322, 14_182, 21_850] and t.videos.tolist() == [16_650, 1_970, 3_365]
    out = split_counts(index, left)
    assert out.identities.tolist() == [18, 4, 4] and out.videos.tolist() == [373, 75, 63]
    assert (t.videos + out.videos).tolist()[1:] == [2_045, 3_428] # what the paper prints


def test_cmpc_split_and_who_is_in_both(published):
    _, index, (used, _), cmpc = published
    assert split_counts(index, cmpc).identities.to_dict() == {'train': 901, 'valid': 100, 'test': 250}
    assert shared_people(cmpc, used).loc['test', 'train'] == 169


def test_faas_split_as_a_file_of_a_corpus(published, tmp_path):
    root, _, (used, _), _ = published
    meta = read_metadata(root/'cmpc/vox1_meta.csv')
    write_splits(tmp_path/'identity_splits.txt', used, root/'cmpc/vox1_meta.csv')
    by_name = dict(zip(meta['name'], meta.index))
    assert read_splits(tmp_path/'identity_splits.txt', lambda name: by_name[name.strip()]) == used
