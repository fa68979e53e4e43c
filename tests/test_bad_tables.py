"Tables that people and spreadsheets made: each is read for what it says, or refused in one line that names file and value."
import pytest

from test_corpus_bad_input import one_line, root, scan  # noqa: F401 (a fixture)
from vfassoc.core import CorpusError
from vfassoc.corpus.tree import read_metadata, read_splits

HEAD = 'VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tAge'
ROWS = '\nid1\tA\tm\tUK\t30\nid2\tB\tf\tUS\t20\n'

def meta(tmp_path, text):
    path = tmp_path/'vox1_meta.csv'
    path.write_bytes(text.encode())
    return read_metadata(path)

@pytest.mark.parametrize('text, value', [
    (HEAD, '1 line'), (HEAD + '\n', '1 line'), (f'{HEAD}\r\n\r\n', '1 line'),
    (f'{HEAD}\tGender{ROWS}', "'gender'"), (f'{HEAD}\tVoxCeleb1 ID{ROWS}', "'voxceleb1 id'"), (f'{HEAD}\tVGGFace1 ID{ROWS}', "'vggface1 id'"),
    (f'{HEAD}\tnationality {ROWS}', "'nationality'"), (f'{HEAD}{ROWS}\tC\tm', 'line 4'), ('', "'vggface1 id'")])
def test_a_table_that_is_none(tmp_path, text, value):
    with pytest.raises(CorpusError) as e: meta(tmp_path, text)
    assert str(e.value).startswith(f'{tmp_path/"vox1_meta.csv"}: ') and value in one_line(e)

def test_a_header_alone_stops_a_scan(root):
    (root/'vox1_meta.csv').write_text(HEAD)
    with pytest.raises(CorpusError, match='vox1_meta.csv: holds nobody'): scan(root)

@pytest.mark.parametrize('odd', ['\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c'])
def test_what_python_calls_a_line_end_is_part_of_a_name(tmp_path, odd):
    d = meta(tmp_path, f'{HEAD}{ROWS}id3\tC{odd}D\tm\tFrance\t40\n')
    assert d.loc['id3'].tolist() == [f'C{odd}D', 'm', 'France', 40.] and len(d) == 3
    (tmp_path/'identity_splits.txt').write_bytes(f'A 1\nC{odd}D 4\n'.encode())
    assert read_splits(tmp_path/'identity_splits.txt') == {'A': 'train', f'C{odd}D': 'test'}

@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_every_line_end(tmp_path, end):
    assert meta(tmp_path, f'\ufeff{HEAD}{ROWS}'.replace('\n', end)).age.tolist() == [30., 20.]

def test_a_field_of_any_length(tmp_path):
    long = 'x'*200_000
    assert meta(tmp_path, f'{HEAD}{ROWS}id3\t{long}\n').loc['id3', 'name'] == long
    with pytest.raises(CorpusError) as e: meta(tmp_path, f'{HEAD}{ROWS}id3\t{long}\nid4\t{long}\n')
    assert 'xxx' in one_line(e) and len(str(e.value)) < 500

def test_a_person_without_a_name_has_the_id(tmp_path):
    assert meta(tmp_path, f'{HEAD}{ROWS}id3\t\tm\nid4\t\tf\n')['name'].tolist() == ['A', 'B', 'id3', 'id4']

@pytest.mark.parametrize('age', ['inf', '-5', '1e400', '1980', 'nan', 'thirty'])
def test_an_age_that_is_none_is_unknown(tmp_path, age):
    assert meta(tmp_path, f'{HEAD}{ROWS}id3\tC\tm\tUK\t{age}\n').age.isna().tolist() == [False, False, True]
