"Grids: interrupted, extended, failing, in several processes, by Dask; low shots that start from another run."
import dataclasses, inspect, json, os, shutil, signal

import pytest
from safetensors.torch import load_file

from clean_process import Another, command, dask_cluster
from tiny_grid import VARIANTS, here, ini, tiny
from vfassoc.cli import main
from vfassoc.core import ConfigError, CorpusError, RunError, read_json, to_dict, write_json
from vfassoc.experiments.sweeps import grid_runs, run_grid
from vfassoc.methods.registry import METHODS
from vfassoc.training.checkpoint import load_tensors, save_tensors
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import load_run, open_corpus, train

quiet = dict(jobs=1, say=lambda line: None)


PAIR = ('CMPC', 'CMPC, 2 shots') # the second starts from the first


def copied(cmpc_grid, folder):
    "Copy the two finished runs of PAIR as a sweep in `folder`/runs/g; return the sweep and settings for its corpus."
    for run in ('cmpc/seed0', 'cmpc-2-shots/seed0'): shutil.copytree(cmpc_grid/'runs/g'/run, folder/'runs/g'/run)
    shutil.copy(cmpc_grid/'runs/g/grid.json', folder/'runs/g')
    config = folder/'runs/g/cmpc-2-shots/seed0/config.json'
    write_json(config, {**read_json(config), 'init_from': str((folder/'runs/g/cmpc/seed0').resolve())})
    return folder/'runs/g', dataclasses.replace(here(folder), data=here(cmpc_grid).data)


def test_an_interrupted_command_goes_on_and_skips_what_is_done(tmp_path, monkeypatch, capsys):
    "SIGKILL inside the second cell: the next command trains the rest and leaves the first unchanged."
    (tmp_path/'g.json').write_text(json.dumps(to_dict(tiny(('CID', 'CMPC')))))
    monkeypatch.setenv('VFASSOC_SETTINGS', str(ini(tmp_path)))
    words = ['sweep', str(tmp_path/'g.json'), '--run', str(tmp_path/'runs/g'), '--jobs', '1', '--set', 'seeds=[0, 1]']
    p = Another(tmp_path, command, *words, cwd=tmp_path)
    p.until(lambda: len([*(tmp_path/'runs/g').rglob('config.json')]) == 2)
    os.killpg(p.p.pid, signal.SIGKILL)
    assert p.end() == -signal.SIGKILL and 'done' in p.said
    finished = [m for m in (tmp_path/'runs/g').rglob('metrics.json')]
    assert 1 <= len(finished) < 4, 'killed too late to show anything'
    before = {f.parent: (f.parent/'checkpoints/last.safetensors').read_bytes() for f in finished}
    assert main(words) == 0
    out = capsys.readouterr().out
    assert '4 of 4 cells finished' in out and out.count('finished before') >= len(finished)
    assert all((run/'checkpoints/last.safetensors').read_bytes() == b for run, b in before.items())
    assert len(grid_runs(tmp_path/'runs/g')) == 4


def test_parallel_cells_equal_cells_one_by_one(cmpc_grid, tmp_path):
    "The shared grid was trained in two processes."
    s = dataclasses.replace(here(tmp_path), data=here(cmpc_grid).data)
    assert set(run_grid(tiny(PAIR), tmp_path/'runs/g', s, **quiet).result) == {'done'}
    for run in ('cmpc', 'cmpc-2-shots'):
        a, b = (load_file(x/'runs/g'/run/'seed0/checkpoints/best.safetensors') for x in (cmpc_grid, tmp_path))
        assert a.keys() == b.keys() and all((a[k] - b[k]).abs().max() < 1e-5 for k in a), run


def test_dask_hands_out_the_cells(tmp_path):
    pytest.importorskip('distributed')
    with dask_cluster() as cluster:
        t = run_grid(tiny(('CID', 'CMPC')), tmp_path/'runs'/'g', here(tmp_path), jobs=2,
                     scheduler=cluster.scheduler_address, say=lambda line: None)
    assert set(t.result) == {'done'} and len(grid_runs(tmp_path/'runs/g')) == 2


def test_a_failing_cell_is_a_line_and_its_dependents_do_not_run(tmp_path):
    bad = tiny(('CMPC', 'CMPC, 2 shots', 'CID'))
    bad = dataclasses.replace(bad, variants={**bad.variants,
                                             'CMPC': {**VARIANTS['CMPC'], 'method.num_prototypes': [4, 999]}})
    t = run_grid(bad, tmp_path/'g', here(tmp_path), **quiet).set_index('variant').result
    assert 'K can be at most' in t['CMPC'] and t['CID'] == 'done' and t[
        'CMPC, 2 shots'] == 'not run: CMPC, seed 0, did not finish'
    assert '\n' not in t['CMPC']


def test_the_command_fails_when_a_cell_does(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('VFASSOC_SETTINGS', str(ini(tmp_path)))
    grid = to_dict(tiny(('CID',)))
    grid['variants']['CID'] = {**VARIANTS['CID'], 'train.batch_size': 4096, 'train.total_samples': 4096}
    (tmp_path/'g.json').write_text(json.dumps(grid))
    assert main(['sweep', str(tmp_path/'g.json'), '--jobs', '1']) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith('vfassoc: 1 cells did not finish') and 'batch_size' in err
    assert main(['sweep', 'nothing']) == 2 and 'known: ablation-cmpc' in capsys.readouterr().err


def test_another_protocol_or_seed_is_not_finished(cmpc_grid, tmp_path):
    root, s = copied(cmpc_grid, tmp_path)
    g = tiny(PAIR)
    assert set(run_grid(g, root, s, **quiet).result) == {'finished before'}
    weights = (root/'cmpc/seed0/checkpoints/last.safetensors').read_bytes()
    other = dataclasses.replace(g, evaluate={**g.evaluate, 'replicates': 150})
    assert set(run_grid(other, root, s, **quiet).result) == {'done'}
    assert (root/'cmpc/seed0/checkpoints/last.safetensors').read_bytes() == weights, 'scored again, not trained again'
    changed = dataclasses.replace(g, changes={**g.changes, 'train.peak_lr': .002})
    assert 'choose another run folder' in run_grid(changed, root, s, **quiet).result[0]


def test_low_shots_start_from_the_other_run_and_remember_whom_it_met(cmpc_grid):
    root, s = cmpc_grid/'runs/g', here(cmpc_grid)
    m = open_corpus('tiny', s)
    recipe = read_json(root/'cmpc-2-shots/seed0/config.json')
    assert recipe['init_from'] == str((root/'cmpc/seed0').resolve()) and recipe['data']['shots'] == 2
    about = load_run(root/'cmpc-2-shots/seed0').about
    assert set(about['identities']) == set(m.videos('train').identity) | set(m.videos('valid').identity)
    tensors, _ = load_tensors(root/'cmpc-2-shots/seed0/checkpoints/last.safetensors')
    assert tensors['method/target'].tolist() == sorted(
        list(range(12))*2), 'two videos of each of 12 people, in the order of the manifest'


def test_the_first_step_of_low_shot_learning_is_taken_from_the_started_weights(cmpc_grid, tmp_path):
    "With a learning rate of nearly nothing the towers stay those of the run it started from."
    d = cmpc_grid
    still = load_recipe('low-shot-demo', {**tiny().changes, 'init_from': str(d/'runs/g/cmpc/seed0'), 'data.shots': 1,
                                          'train.peak_lr': 1e-9, 'train.lr_start': 1e-9, 'train.lr_end': 1e-9})
    train(still, tmp_path/'r', here(d), quiet=True)
    a, b = load_run(tmp_path/'r').model, load_run(d/'runs/g/cmpc/seed0').model
    assert all((x - y).abs().max() < 1e-5 for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize('changes, error, word', [
    ({'data.shots': 4}, CorpusError,
     r'12 of 12 identities have fewer than 4 videos \(id\d+ has 3\); set data.shots to 3 or less'),
    ({'init_from': 'nowhere'}, RunError, 'no run here'),
    ({'model.dim': 16}, RunError, 'small encoders of 8 dimensions.*small of 16'),
    ({'data.shots': -1}, ConfigError, 'data.*shots'),
    ({'method.tau': 0.}, ConfigError, 'tau = 0.0'),
])
def test_what_low_shot_learning_refuses(cmpc_grid, tmp_path, changes, error, word):
    d = cmpc_grid
    base = {**tiny().changes, 'init_from': str(d/'runs/g/cmpc/seed0'), 'data.shots': 2}
    with pytest.raises(error, match=word) as e:
        train(load_recipe('low-shot-demo', {**base, **changes}), tmp_path/'r', here(d), quiet=True)
    assert '\n' not in str(e.value) and not (tmp_path/'r'/'checkpoints').exists()


def test_methods_without_labels_have_no_way_to_get_them():
    labelled = {'dimnet', 'dimnet-g', 'dimnet-i', 'dimnet-ig', 'fop', 'n-pair', 'ssnet', 'svhf', 'wang', 'wen'}
    for name, cls in METHODS.known.items():
        taken = inspect.signature(cls.__init__).parameters
        assert cls.supervised == (name in labelled) == ('identity' in taken), name
        assert cls.reads_covariates == ('covariates' in taken) <= cls.supervised, name


def test_low_shots_of_a_run_that_was_trained_again_are_not_finished(cmpc_grid, tmp_path):
    root, s = copied(cmpc_grid, tmp_path)
    g = tiny(PAIR)
    assert set(run_grid(g, root, s, **quiet).result) == {'finished before'}
    best = root/'cmpc/seed0/checkpoints/best.safetensors'
    tensors, about = load_tensors(best)
    save_tensors(best, {k: t*1.01 if t.is_floating_point() else t for k, t in tensors.items()}, about)
    assert 'no longer has; delete this folder' in run_grid(g, root, s, **quiet).set_index('variant').result[
        'CMPC, 2 shots']


def test_a_memory_of_another_corpus_is_refused(cmpc_grid):
    "The manifest's hash reaches the memories through `train`."
    d = cmpc_grid
    tensors, _ = load_tensors(d/'runs/g/cmpc/seed0/checkpoints/last.safetensors')
    mine = bytes(tensors['method/memory.voice.corpus'].tolist()).hex()
    assert mine == open_corpus('tiny', here(d)).hash == bytes(tensors['method/rho.corpus'].tolist()).hex()
