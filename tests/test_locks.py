"Two commands and one folder, processes that are killed and told to end: who holds what, what is left, what is swept."
import errno, fcntl, json, os, re, signal, stat, time
from pathlib import Path

import nbformat
import pytest
import torch

import toy
import vfassoc.core as core
from clean_process import Another, command
from tiny_grid import SYNTH, here, ini, tiny
from vfassoc.core import ConfigError, RunError, atomic_path, claim, occupied, sweep, temporary, to_dict
from vfassoc.corpus.manifest import load_or_scan
from vfassoc.corpus.packed import pack
from vfassoc.corpus.voxceleb1 import link_with_split
from vfassoc.demo import run_demo
from vfassoc.evaluation.run import evaluate_run
from vfassoc.evaluation.run_published import baseline_run, evaluate_on_lists
from vfassoc.experiments.runner import run_report
from vfassoc.experiments.sweeps import run_grid
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training.checkpoint import save_tensors
from vfassoc.training.extract import cache_features
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import train


def children(pid):
    "Processes that a process has started, and theirs."
    found = [int(x) for t in Path(f'/proc/{pid}/task').glob('*') for x in (t/'children').read_text().split()]
    return found + [c for f in found for c in children(f)]


def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False


def scanned(d):
    write_corpus(d/'c', SynthConfig(**SYNTH), 0)
    return load_or_scan(d/'c', d/'cache', 0, quiet=True)


# each call fails at once, and otherwise than by the lock, if the function takes none
WRITERS = {
    'train': ('r', lambda d: train(load_recipe('cid-demo'), d/'r', here(d))),
    'synth': ('c', lambda d: write_corpus(d/'c', SynthConfig(**{**SYNTH, 'identities': 1}), 0)),
    'pack': ('p', lambda d: pack(None, d/'p')),
    'features': ('f.npz', lambda d: cache_features(None, None, d/'f.npz')),
    'grid': ('g', lambda d: run_grid(None, d/'g', here(d))),
    'evaluate': ('r', lambda d: evaluate_run(d/'r', here(d))),
    'evaluate --lists': ('r', lambda d: evaluate_on_lists(d/'r', d/'none', here(d))),
    'lists --baseline': ('b', lambda d: baseline_run('random', d/'b', d/'none', d/'none')),
    'voxceleb1 --tables': ('v', lambda d: link_with_split(d/'none', d/'v', {})),
    'report': ('figures/r', lambda d: run_report(d/'none.ipynb', d/'figures/r.html', {})),
    'demo': ('figures/demo/demo', lambda d: run_demo(here(d))),
}


@pytest.mark.parametrize('name', WRITERS)
def test_who_comes_second_is_told_who_holds_the_place(tmp_path, monkeypatch, name):
    place, call = WRITERS[name]
    with claim(tmp_path/place):
        monkeypatch.setattr(core, '_held', {}) # as in another process
        with pytest.raises(RunError) as e: call(tmp_path)
        said = str(e.value)
        assert place.split('/')[-1] in said and f'(process {os.getpid()} on ' in said and '\n' not in said
        assert not (tmp_path/place).exists()
    assert os.listdir(tmp_path) == []


def test_a_scan_is_done_by_one_process(tmp_path, monkeypatch):
    m = scanned(tmp_path)
    cache, = (p for p in (tmp_path/'cache').iterdir() if p.suffix == '.parquet')
    with claim(cache):
        monkeypatch.setattr(core, '_held', {})
        assert load_or_scan(tmp_path/'c', tmp_path/'cache', 0, quiet=True).hash == m.hash # to read one needs no lock
        next((tmp_path/'c/wav').rglob('*.wav')).unlink()
        with pytest.raises(RunError, match=f'process {os.getpid()} on'):
            load_or_scan(tmp_path/'c', tmp_path/'cache', 0, quiet=True)


def test_locks_are_no_content_and_leave_nothing(tmp_path):
    (tmp_path/'there').mkdir()
    with claim(tmp_path/'there'), claim(tmp_path/'not'/'yet'), claim(tmp_path/'there'):
        assert occupied(tmp_path/'there') == [] and list((tmp_path/'there').iterdir()) == []
        assert not (tmp_path/'not/yet').exists()
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['there']
    with pytest.raises(ConfigError, match='/: '), claim('/'): pass


def test_a_folder_whose_parent_is_closed_has_its_lock_inside(tmp_path, monkeypatch):
    folder = tmp_path/'mount'
    folder.mkdir()
    real = os.access
    monkeypatch.setattr(core.os, 'access', lambda p, mode: False if Path(p) == tmp_path else real(p, mode))
    with claim(folder):
        assert [p.name for p in folder.iterdir()] == ['.mount.lock'] and occupied(folder) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_written_without_one(tmp_path, monkeypatch, number):
    def flock(fd, how): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, 'flock', flock)
    if number == errno.EIO: # another fault is no lack of locks
        with pytest.raises(RunError, match='r: .*cannot be written'), claim(tmp_path/'r'): pass
        return
    with claim(tmp_path/'r'):
        with claim(tmp_path/'r'), atomic_path(tmp_path/'r/a') as tmp: tmp.write_text('whole')
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['a', 'r']


def test_wait_waits(tmp_path):
    "The second command says that it waits and for whom, and goes on when the first ends; without --wait it exits 2."
    synth = [x for k, v in {**SYNTH, 'identities': 4, 'videos_per_identity': 1}.items() for x in ('--set', f'{k}={v}')]
    env = {'VFASSOC_SETTINGS': str(ini(tmp_path))}
    with claim(tmp_path/'data/c'):
        no = Another(tmp_path, command, 'synthesize', 'c', *synth, **env)
        yes = Another(tmp_path, command, 'synthesize', 'c', *synth, '--wait', **env)
        assert no.end() == 2
        line, = no.said.splitlines()
        assert line.startswith('vfassoc: ') and f'process {os.getpid()} on' in line and '--wait' in line
        yes.until(lambda: 'waiting' in yes.said)
        assert not (tmp_path/'data/c').exists()
    assert yes.end() == 0 and (tmp_path/'data/c/synth.json').is_file()


def leave(folder):
    with claim(folder), atomic_path(folder/'checkpoints/last.bin') as tmp:
        tmp.write_bytes(b'half')
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_blocks_nobody_and_its_files_are_swept(tmp_path):
    folder = tmp_path/'run'
    p = Another(tmp_path, leave, folder)
    assert p.end() == -signal.SIGKILL
    orphan, = (folder/'checkpoints').iterdir()
    assert str(p.p.pid) in orphan.name and (tmp_path/'.run.lock').exists()
    mine = temporary(folder/'a.json')
    parents = folder/temporary('b.json').name.replace(str(os.getpid()), str(os.getppid()))
    other = folder/temporary('c.json').name.replace(f'.{core._HOST}.', '.elsewhere.')
    for f in (mine, parents, other, folder/'.hidden.tmp'): f.touch()
    with claim(folder):
        assert sorted(p.name for p in folder.rglob('*') if p.is_file()) == sorted(['.hidden.tmp', parents.name])
    assert not (tmp_path/'.run.lock').exists()


def test_sweeping_passes_over_what_is_being_written(tmp_path):
    with atomic_path(tmp_path/'figures/evaluate.html') as tmp:
        tmp.touch()
        sweep(tmp_path/'figures')
        sweep(tmp_path/'figures/evaluate')
        assert tmp.exists()
        tmp.write_text('page')
    gone = tmp_path/'figures'/temporary('evaluate.html').name.replace(f'.{os.getpid()}.', f'.{2**22 + 1}.')
    gone.touch()
    sweep(tmp_path/'figures/compare')
    assert gone.exists() # of another report
    sweep(tmp_path/'figures/evaluate')
    assert [p.name for p in (tmp_path/'figures').iterdir()] == ['evaluate.html']


def test_an_interrupted_process_sweeps_its_own(tmp_path):
    stray = tmp_path/'p'/temporary('voice-0002.bin').name
    with pytest.raises(KeyboardInterrupt), claim(tmp_path/'p'):
        (tmp_path/'p').mkdir()
        stray.touch()
        raise KeyboardInterrupt
    assert not stray.exists()


@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask, mode):
    old = os.umask(umask)
    try: save_tensors(tmp_path/'a.safetensors', {'x': torch.zeros(3)}, {})
    finally: os.umask(old)
    assert stat.S_IMODE((tmp_path/'a.safetensors').stat().st_mode) == mode


@pytest.mark.parametrize('call', [
    lambda d: write_corpus(d, SynthConfig(**SYNTH), 0), lambda d: run_grid(tiny(), d, here(d.parent)),
    lambda d: baseline_run('random', d, d, d),
    lambda d: train(load_recipe('cid-demo', {'corpus': str(d.parent/'c'), 'data.crop_seconds': 1.,
                                             'data.face_size': 32}), d, here(d.parent))],
    ids=['synth', 'grid', 'lists --baseline', 'train'])
def test_no_command_writes_into_a_folder_of_somebody_else(tmp_path, call):
    write_corpus(tmp_path/'c', SynthConfig(**SYNTH), 0)
    folder = tmp_path/'home'
    folder.mkdir()
    (folder/'thesis.tex').write_text('years of work')
    with pytest.raises(core.VfassocError, match=r'home: .*not empty.*thesis\.tex'): call(folder)
    assert os.listdir(folder) == ['thesis.tex']


def test_a_beginning_of_ones_own_is_no_stranger(tmp_path):
    "Killed before synth.json of the beginning was written."
    (tmp_path/'c/.unfinished').mkdir(parents=True)
    (tmp_path/'c/.unfinished'/temporary('synth.json').name.replace(f'.{os.getpid()}.', f'.{2**22 + 1}.')).touch()
    write_corpus(tmp_path/'c', SynthConfig(**{**SYNTH, 'identities': 2, 'videos_per_identity': 1}), 0)
    assert (tmp_path/'c/synth.json').is_file()


def stopped(folder, name): return json.loads((folder/name/'provenance.json').read_text())


def test_sigterm_ends_a_training_with_a_checkpoint(tmp_path):
    env = {'VFASSOC_SETTINGS': str(ini(tmp_path))}
    write_corpus(tmp_path/'data/tiny', SynthConfig(**SYNTH), 0)
    small = [x for s in ('data.crop_seconds=1.0', 'data.face_size=32', 'model.dim=8', 'train.total_samples=800000',
                         'train.batch_size=8', 'train.lr_warmup=8') for x in ('--set', s)]
    p = Another(tmp_path, command, 'train', 'cid-demo', '--corpus', 'tiny', '--run', 'r', *small, **env)
    p.until(lambda: (tmp_path/'runs/r/checkpoints/last.safetensors').exists())
    os.kill(p.p.pid, signal.SIGTERM)
    assert p.end() == 143 and 'the same command goes on from here' in p.said and 'Traceback' not in p.said
    assert stopped(tmp_path/'runs', 'r')['finished'] is False
    assert not [f for f in tmp_path.rglob('.*') if f.suffix == '.lock' or 'vfassoc-tmp' in f.name]


def test_sigterm_ends_a_grid_and_its_workers(tmp_path):
    "Only the command gets the signal; the cells in its two workers save and stop, the third does not begin."
    plan = tiny(('CID', 'CMPC', '+ prototypes'), (0,), **{'train.total_samples': 800_000})
    (tmp_path/'g.json').write_text(json.dumps(to_dict(plan)))
    p = Another(tmp_path, command, 'sweep', tmp_path/'g.json', '--run', 'g', '--jobs', '2',
                VFASSOC_SETTINGS=str(ini(tmp_path)))
    def begun(): return [f.parents[1] for f in (tmp_path/'runs/g').glob('*/seed0/checkpoints/last.safetensors')]
    p.until(lambda: len(begun()) == 2)
    workers = children(p.p.pid)
    assert len(workers) >= 2
    os.kill(p.p.pid, signal.SIGTERM)
    assert p.end() == 143 and '0 of 3 cells are finished; the same command goes on' in p.said, p.said[-3000:]
    assert 'Traceback' not in p.said, p.said[-3000:]
    assert len(begun()) == 2 and all(stopped(f, '.')['finished'] is False for f in begun())
    end = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < end: time.sleep(.1)
    assert not any(map(alive, workers))
    assert not [f for f in tmp_path.rglob('.*') if f.suffix == '.lock' or 'vfassoc-tmp' in f.name]


def test_sigterm_ends_a_report_and_its_kernel(tmp_path):
    v = nbformat.v4
    sleep = "import os, time\nopen(pid, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    cells = [v.new_code_cell("pid = ''", metadata={'tags': ['parameters']}), v.new_code_cell(sleep)]
    nb = v.new_notebook(cells=cells)
    nb.metadata['kernelspec'] = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    nbformat.write(nb, tmp_path/'slow.ipynb')
    p = Another(tmp_path, command, 'report', tmp_path/'slow.ipynb', '-o', tmp_path/'out/r', '-p', f'pid={tmp_path}/pid',
                VFASSOC_SETTINGS=str(ini(tmp_path)))
    p.until(lambda: (tmp_path/'pid').exists() and (tmp_path/'pid').read_text())
    kernel = int((tmp_path/'pid').read_text())
    partial = temporary('r', '.ipynb').name.replace(str(os.getpid()), str(p.p.pid))
    assert [f.name for f in (tmp_path/'out').glob('.r*.ipynb')] == [partial]
    os.kill(p.p.pid, signal.SIGTERM)
    assert p.end() == 143 and not (tmp_path/'out').exists()
    end = time.monotonic() + 30
    while alive(kernel) and time.monotonic() < end: time.sleep(.1)
    assert not alive(kernel)


def test_a_training_that_stops_says_which_signal_it_was(tmp_path):
    for k, s in enumerate((signal.SIGINT, signal.SIGTERM)):
        _, r = toy.run(tmp_path/str(k), lambda step: signal.raise_signal(s) if step == 2 else None, steps=6)
        assert not r.finished and r.by == s
