"One line for everything: what nobody foresaw, odd text, numbers that are none, disks of 4 kB."
import errno, json, os, re, signal, stat, subprocess, time
from pathlib import Path

import pytest

import toy
import vfassoc.cli as cli
import vfassoc.training.loop as training
from tiny_grid import SYNTH, ini
from vfassoc.cli import main
from vfassoc.core import RunError, VfassocError, progress, read_json, write_json
from vfassoc.experiments.sweeps import load_grid
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training.recipes import load_recipe


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv('VFASSOC_SETTINGS', str(ini(tmp_path)))
    monkeypatch.setattr(cli.tempfile, 'tempdir', str(tmp_path/'tmp'))
    (tmp_path/'tmp').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *args):
    code = main([str(a) for a in args])
    err = capsys.readouterr().err
    assert 'Traceback' not in err
    return code, err.splitlines()[-1] if err else ''


@pytest.mark.parametrize('error', [ValueError('a\nb'), MemoryError(), RecursionError('deep'),
                                   PermissionError(errno.EACCES, 'Permission denied', 'secret.csv'),
                                   UnicodeEncodeError('utf-8', '\ud800', 0, 1, 'no'), KeyError('x'),
                                   OSError(errno.ENOSPC, 'No space left on device')], ids=lambda e: type(e).__name__)
def test_what_is_not_foreseen_is_one_line_and_a_file(place, capsys, monkeypatch, error):
    def fails(*a, **k): raise error
    monkeypatch.setattr('vfassoc.training.recipes.load_recipe', fails)
    code, line = call(capsys, 'flops', 'cid-demo')
    file = Path(re.search(r'(\S+vfassoc-error-\S+\.txt)$', line)[1])
    assert code == 1 and line.startswith(f'vfassoc: {type(error).__name__}')
    assert 'in fails' in file.read_text() and 'vfassoc flops cid-demo' in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.parent == place/'tmp'


def test_the_net_itself_never_fails(place, capsys, monkeypatch):
    def fails(*a, **k): raise ValueError('oh')
    monkeypatch.setattr('vfassoc.training.recipes.load_recipe', fails)
    monkeypatch.setattr(cli.tempfile, 'mkstemp', fails)
    code, line = call(capsys, 'flops', 'cid-demo')
    assert code == 1 and 'ValueError: oh' in line and 'could not be written' in line


def test_sigterm_and_ctrl_c_end_a_command(place, capsys, monkeypatch):
    for s, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        monkeypatch.setattr('vfassoc.training.recipes.load_recipe', lambda *a, s=s: signal.raise_signal(s))
        before = signal.getsignal(signal.SIGTERM)
        assert call(capsys, 'flops', 'cid-demo') == (status, 'vfassoc: interrupted')
        assert signal.getsignal(signal.SIGTERM) is before and 'VFASSOC_COMMAND' not in os.environ


LONG, SURROGATE = 'a'*300, 'a\udcffb'

@pytest.mark.parametrize('args, words', [
    (('train', 'cid-demo', '--set', 'train.seed=-1'), ('train.seed = -1',)),
    (('train', 'cid-demo', '--set', f'train.seed={2**32}'), (f'seed = {2**32}', '4294967295')),
    (('train', 'cid-demo', '--set', 'train.peak_lr=1' + '0'*400), ('lr = 1000', 'number')),
    (('train', 'cid-demo', '--set', 'train.grad_clip=Infinity'), ('clip = inf', 'finite')),
    (('train', 'cid-demo', '--set', 'train.grad_clip=1e999'), ('clip = inf', 'finite')),
    (('train', 'cid-demo', '--set', 'train.weight_decay=NaN'), ('weight_decay = nan', 'finite')),
    (('train', 'cid-demo', '--set', 'method.tau=Infinity'), ('tau', 'inf', 'finite')),
    (('sweep', 'compare', '--set', 'changes.method.tau=Infinity'), ('inf', 'finite')),
    (('synthesize', 'x', '--set', 'noise=NaN'), ('noise = nan', 'finite')),
    (('flops', 'cid-demo', '--tflops', 'inf'), ('tflops = inf',)),
    (('train', 'cid-demo', '--set', 'model=' + '['*100_000), ('model', 'characters')),
    (('train', 'cid-demo', '--set', 'name="a\\ud800b"'), ('name', 'ud800', 'UTF-8')),
    (('train', 'cid-demo', '--corpus', '~nosuchuser/x'), ('~nosuchuser/x', 'cannot be a path')),
    (('evaluate', '~nosuchuser/x'), ('~nosuchuser/x', 'cannot be a path')),
    (('--settings', '~nosuchuser/x', 'demo'), ('~nosuchuser/x', 'cannot be a path')),
    (('report', 'evaluate', '-o', '~nosuchuser/x'), ('~nosuchuser/x', 'cannot be a path')),
    (('synthesize', LONG), ('aaaa', '255')), (('train', 'cid-demo', '--run', LONG), ('aaaa', '255')),
    (('pack', 'x', '-o', f'y/{LONG}'), ('aaaa', '255')),
    (('train', f'{LONG}.json'), ('aaaa', '255')), (('report', LONG), ('aaaa', '255')),
    (('synthesize', SURROGATE), ('udcff', 'UTF-8')), (('evaluate', SURROGATE), ('udcff', 'UTF-8')),
    (('train', 'cid-demo', '--set', f'name={SURROGATE}'), ('udcff', 'UTF-8')),
    (('evaluate', 'a\nb'), ('a\\nb', 'no run here')), (('prepare', 'a\x1b[31mb'), ('\\x1b[31m',)),
    (('report', 'evaluate', '-o', '.'), ("'.'",)), (('report', 'evaluate', '-o', '/'), ("'/'",)),
    (('extract', 'r', '--corpus', 'c', '-o', 'f.npz', '--set', 'name=1'), ("option 'name'", 'seconds')),
    (('extract', 'r', '--corpus', 'c', '-o', 'f.npz', '--set', 'quiet=true'), ("option 'quiet'", 'seconds')),
    (('extract', 'faa', '--corpus', 'c', '-o', 'f.npz', '--set', 'voice_weights=3', '--set', 'face_weights=4'), ('3',)),
], ids=lambda x: ' '.join(x)[:40].encode('ascii', 'replace').decode() if isinstance(x, tuple)
                         and x[0] in ('train', 'sweep', 'synthesize', 'flops', 'evaluate', 'report', 'pack', 'prepare',
                                      'features', '--settings') else '')
def test_odd_arguments_are_one_line(place, capsys, args, words):
    code, line = call(capsys, *args)
    assert code == 2 and line.startswith('vfassoc: ') and len(line) < 700 and all(w in line for w in words), line
    assert not (place/'runs').exists() and not list((place/'tmp').iterdir())


@pytest.mark.parametrize('text, words', [('{"name": "a", "name": "b"}', "'name' is there twice"),
                                         ('{"train": {"lr": 1, "lr": 2}}', "'lr' is there twice"),
                                         ('{"x": NaN}', 'NaN'), ('{"x": -Infinity}', 'Infinity'),
                                         ('['*100_000, 'deep')],
                         ids=['twice', 'twice inside', 'NaN', 'Infinity', 'deep'])
@pytest.mark.parametrize('load', [load_recipe, load_grid])
def test_recipes_and_grids_that_are_not_json(tmp_path, text, words, load):
    (tmp_path/'r.json').write_text(text)
    with pytest.raises(VfassocError, match=re.escape(str(tmp_path/'r.json')) + '.*' + words): load(tmp_path/'r.json')


def test_text_that_no_file_can_hold(tmp_path):
    with pytest.raises(RunError, match=r'a\.json.*ud800'): write_json(tmp_path/'a.json', {'name': 'a\ud800b'})
    assert not list(tmp_path.iterdir())


def test_errors_stand_on_a_line_of_their_own(place, capsys, monkeypatch):
    def fails(*a):
        for _ in progress(range(10), desc='half'): raise VfassocError('here: is an error')
    monkeypatch.setattr('vfassoc.training.recipes.load_recipe', fails)
    assert main(['flops', 'cid-demo']) == 2
    err = capsys.readouterr().err
    assert 'half' in err and err.splitlines()[-1] == 'vfassoc: here: is an error'


def mounted(folder, size):
    folder.mkdir()
    if os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)],
                                      capture_output=True).returncode:
        pytest.skip('cannot mount a small disk here')


@pytest.fixture
def small_disk(tmp_path):
    mounted(tmp_path/'disk', '4k')
    yield tmp_path/'disk'
    subprocess.run(['umount', '-l', str(tmp_path/'disk')], check=True)


def test_training_on_a_disk_of_4_kb(small_disk, place, capsys):
    write_corpus(place/'data/tiny', SynthConfig(**SYNTH), 0)
    small = [x for s in ('data.crop_seconds=1.0', 'data.face_size=32', 'model.dim=8', 'train.total_samples=64',
                         'train.batch_size=8', 'train.lr_warmup=8') for x in ('--set', s)]
    code, line = call(capsys, 'train', 'cid-demo', '--corpus', 'tiny', '--run', small_disk/'r', *small)
    assert code == 2 and str(small_disk/'r') in line and 'free space' in line


def test_a_disk_without_room_for_a_checkpoint_is_said_before_training(tmp_path, monkeypatch):
    real = training.shutil.disk_usage
    monkeypatch.setattr(training.shutil, 'disk_usage', lambda p: real(p)._replace(free=4096))
    with pytest.raises(RunError, match='0.0041 MB are free, a checkpoint takes'):
        toy.run(tmp_path/'r', lambda step: pytest.fail('trained'))
    # a file system that does not say
    monkeypatch.setattr(training.shutil, 'disk_usage', lambda p: real(p)._replace(total=0, free=0))
    assert toy.run(tmp_path/'r', steps=2)[1].finished


def test_tensorboard_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(self, *a, **k): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr('accelerate.Accelerator.log', full)
    with pytest.raises(RunError, match=r'r: cannot be written \(No space left on device\)'): toy.run(tmp_path/'r')
