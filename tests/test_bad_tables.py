"Tables from users and spreadsheets: each is read, or is an error of one line that names file and value."
import json, random

import pytest

from test_corpus_bad_input import one_line, root, scan  # noqa: F401 (a fixture)
from vfassoc.core import CorpusError, VfassocError, load_settings
from vfassoc.corpus.layout import read_metadata, read_splits
from vfassoc.corpus.voxceleb1 import read_index
from vfassoc.experiments.sweeps import load_grid
from vfassoc.evaluation.trial_files import read_list
from vfassoc.training.recipes import load_recipe, recipe_table

HEAD = 'VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tAge'
ROWS = '\nid1\tA\tm\tUK\t30\nid2\tB\tf\tUS\t20\n'

def meta(tmp_path, text):
    path = tmp_path/'vox1_meta.csv'
    path.write_bytes(text.encode())
    return read_metadata(path)

@pytest.mark.parametrize('text, value', [
    (HEAD, '1 line'), (HEAD + '\n', '1 line'), (f'{HEAD}\r\n\r\n', '1 line'),
    (f'{HEAD}\tGender{ROWS}', "'gender'"), (f'{HEAD}\tVoxCeleb1 ID{ROWS}', "'voxceleb1 id'"),
    (f'{HEAD}\tVGGFace1 ID{ROWS}', "'vggface1 id'"),
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

# ---- whatever happens to a file

ODD = ['\t', ',', ' ', '\n', '\r', '\0', '\u2028', '\x85', '\ufeff', '"', '1', '-1', '1e400', 'nan', '9'*30, '²', '{',
       '[', '%(x)s', '~nosuch', 'x'*300, '.wav', '/', '']

def mutated(r, data):
    "A file with one to three edits: bytes changed, lost, inserted, repeated, lines and fields moved."
    b = bytearray(data)
    for _ in range(r.randint(1, 3)):
        i, how = r.randrange(len(b) + 1), r.randrange(5)
        j = min(len(b), i + r.choice((1, 5, 20, 100)))
        if how == 0: del b[i:j]
        elif how == 1: b[i:j] = r.choice(ODD).encode()
        elif how == 2: b[i:i] = b[i:j]
        elif how == 3: b[i:i] = bytes([r.randrange(256)])
        else:
            lines, sep = bytes(b).split(b'\n'), r.choice((b'\t', b',', b' '))
            fields = lines[k := r.randrange(len(lines))].split(sep)
            fields.insert(r.randrange(len(fields) + 1), fields.pop(r.randrange(len(fields)))*r.randint(0, 2))
            lines[k] = sep.join(fields)
            b = bytearray(b'\n'.join(lines))
    return bytes(b)

KINDS = {
    'vox1_meta.csv': (f'{HEAD}{ROWS}', read_metadata), 'identity_splits.txt': ('A 1\nB 2\nC D 4\n', read_splits),
    'veriflist_test_G_seenheard.txt': (
        'id,v,f,label,voice-path,face-path\n1,1,1,1,A/v_0000001.wav,A/v/0000001.jpg\n'
        '2,1,2,0,A/v_0000001.wav,B/w/0000002.jpg\n', read_list),
    'matching_v2f_U.csv': ('id1/v/00001.wav A/1.6/v/0000001.jpg B/1.6/w/0000002.jpg\n'*3, read_list),
    'wav.tsv': ('VoxCeleb1 ID\twav\nid1\tid1/v/00001.wav\nid2\tid2/w/00001.wav\n', read_list),
    'utterances.tsv': ('identity\tvideo\tutterance\tseconds\tpart\nid1\tv\t00001\t3.5\tdev\nid2\tw\t00001\t4.5\tdev\n',
                       read_index),
    'settings.ini': ('[vfassoc]\ndata = data\nruns = runs\ndevice = cpu\nseed = 0\nworkers = 2\n', load_settings),
    'recipe.json': (json.dumps(recipe_table('faa-demo'), indent=1), load_recipe),
    'grid.json': (json.dumps(dict(recipe='cmpc-demo', variants={'a': {}}, seeds=[0, 1], evaluate={'replicates': 100})),
                  load_grid)}

@pytest.mark.parametrize('name', KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name):
    "Sixty seeded mutations of each kind; every one is a result or a `VfassocError`."
    text, read = KINDS[name]
    r, refused = random.Random(name), 0
    for _ in range(60):
        data = mutated(r, text.encode())
        (tmp_path/name).write_bytes(data)
        try: read(tmp_path/name)
        except VfassocError as e:
            refused += 1
            assert '\n' not in str(e) and name.split('.')[0] in str(e) and len(str(e)) < 1500, data
    assert 0 < refused < 60
