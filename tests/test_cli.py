"The command line: the main job at tiny scale, and one line for what cannot be done."
import json, re

import pandas as pd
import pytest

from vfassoc.cli import main
from vfassoc.core import read_json

TINY = ['--set', 'data.crop_seconds=1.0', '--set', 'data.face_size=32', '--set', 'model.dim=16', '--set',
        'train.total_samples=64', '--set', 'train.batch_size=8',
        '--set', 'train.lr_warmup=8']


@pytest.fixture
def settings(tmp_path, monkeypatch):
    (tmp_path/'settings.ini').write_text('[vfassoc]\nworkers = 0\ndevice = cpu\nseed = 3\n')
    monkeypatch.setenv('VFASSOC_SETTINGS', str(tmp_path/'settings.ini'))
    return tmp_path


def call(capsys, *args):
    code = main(list(map(str, args)))
    out = capsys.readouterr()
    return code, out.out, out.err


def one_line(err, *words):
    last = err.strip().splitlines()[-1]
    assert last.startswith('vfassoc: ') and all(w in last for w in words), err
    assert 'Traceback' not in err


def test_main_job_by_command(settings, capsys):
    synth = ['identities=20', 'videos_per_identity=2', 'seconds=1.0', 'frames=1', 'size=48', 'train=0.4', 'valid=0.2']
    assert call(capsys, 'synthesize', 'mine', *[x for s in synth for x in ('--set', s)])[0] == 0
    assert json.loads((settings/'data/mine/synth.json').read_text())['seed'] == 3   # from settings.ini
    code, out, _ = call(capsys, 'prepare', 'mine', '--check', 'full')
    assert code == 0 and re.search(r'train\s+8\s+16', out) and 'usable' in out
    code, out, _ = call(capsys, 'train', 'cid-demo', '--corpus', 'mine', '--run', 'first', *TINY)
    assert code == 0 and '8 steps done; best validation AUC' in out
    assert read_json(settings/'runs/first/config.json')['train']['seed'] == 3
    code, out, _ = call(capsys, 'evaluate', 'first', '--set', 'replicates=100', '--set', 'candidates=[2]')
    assert code == 0 and 'CID' in out and 'chance' in out.lower()
    scores = pd.DataFrame(read_json(settings/'runs/first/metrics.json')['scores'])
    assert set(scores.task) == {'verification', 'matching', 'retrieval'} and scores.value.between(0, 1).all()
    again, _, err = call(capsys, 'train', 'cid-demo', '--corpus', 'mine', '--run', 'first', *TINY, '--set',
                         'train.peak_lr=0.002')
    assert again == 2
    one_line(err, 'first', 'train.peak_lr', '0.002')


def test_a_split_with_one_identity_and_an_old_generator(settings, capsys):
    synth = ['identities=12', 'videos_per_identity=2', 'seconds=1.0', 'frames=1', 'size=48', 'train=0.5', 'valid=0.2']
    call(capsys, 'synthesize', 'mine', *[x for s in synth for x in ('--set', s)])
    root, train = settings/'data/mine', ('train', 'cid-demo', '--corpus', 'mine', '--run', 'r', *TINY)
    text = (root/'identity_splits.txt').read_text()
    valid = [line for line in text.splitlines() if line.endswith(' 2')]
    (root/'identity_splits.txt').write_text('\n'.join(line for line in text.splitlines() if line not in valid[1:]))
    code, _, err = call(capsys, *train)
    assert code == 2
    one_line(err, '1 validation identities', 'identity_splits.txt')
    (root/'identity_splits.txt').write_text(text)
    assert call(capsys, *train)[0] == 0
    config = read_json(root/'synth.json')
    (root/'synth.json').write_text(json.dumps({**config, 'generator': 0}))
    code, _, err = call(capsys, 'evaluate', 'r', '--set', 'replicates=100')
    assert code == 2 and not (settings/'runs/r/metrics.json').exists()
    one_line(err, 'drawn by generator 0', 'draw it again')


def test_unknown_things_are_one_line(settings, capsys):
    for args, words in [
            (('train', 'domo'), ('recipe domo', 'known: cid-demo')),
            (('train', 'cid-demo', '--set', 'train.sed=1'), ("unknown key 'sed'",)),
            (('train', 'cid-demo', '--set', 'train.seed'), ('not KEY=VALUE',)),
            (('prepare', 'nowhere'), ('nowhere',)),
            (('evaluate', 'nowhere'), ('no run here', 'vfassoc train')),
            (('report', 'no-such-report'), ('no such report',)),
            (('synthesize', 'x', '--set', 'coupling=2'), ('synthesize', 'coupling', '2')),
            (('synthesize', 'x', '--set', 'copling=1'), ("unknown key 'copling'",)),
            (('--settings', 'none.ini', 'prepare', 'x'), ('no such settings file',))]:
        code, _, err = call(capsys, *args)
        assert code == 2, args
        one_line(err, *words)
    assert not (settings/'runs').exists(), 'a command that failed left something behind'


def test_show_prints_the_recipe_and_trains_nothing(settings, capsys):
    code, out, _ = call(capsys, 'train', 'cid-voxceleb1', '--show')
    assert code == 0 and json.loads(out)['train']['total_samples'] == 3_200_000 and not (settings/'runs').exists()


def test_help_answers_the_first_question(capsys):
    with pytest.raises(SystemExit) as e: main(['--help'])
    out = capsys.readouterr().out
    assert not e.value.code and 'New here?' in out
    for command in ('synthesize', 'prepare', 'train', 'evaluate', 'report', 'demo'):
        assert re.search(rf'^    {command} ', out, re.M)
