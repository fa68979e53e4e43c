"Files of the release before open: config, weights, checkpoint, scores, traces, features, pack, grid (old_release/)."
import hashlib, json
from pathlib import Path

import pytest, torch

from vfassoc import core
from vfassoc.cli import main
from vfassoc.core import ConfigError, RunFolder, Settings, current_keys, open_run, read_json
from vfassoc.corpus.features import load_features
from vfassoc.corpus.packed import load_pack
from vfassoc.evaluation.scorers import load_embeddings
from vfassoc.experiments.diagnostics import read_traces
from vfassoc.experiments.runner import find_report, parse_parameters
from vfassoc.experiments.sweeps import GRIDS, cells, grid_runs, is_finished, load_grid
from vfassoc.experiments.tables import published_scores, read_printed, read_scores
from vfassoc.methods.registry import build_method
from vfassoc.models.two_tower import VoiceFaceModel
from vfassoc.training.checkpoint import load_checkpoint, load_tensors
from vfassoc.training.config import make_optimizer
from vfassoc.training.recipes import load_recipe, stored_recipe
from vfassoc.training.run import load_run

OLD = Path(__file__).parent/'old_release'
CMPC, FAA, GRID = (OLD/'runs'/name for name in ('cmpc-features', 'faa', 'grid'))
NEW = { # what `cmpc-features` was trained with, in the words of this release
    'corpus': 'tiny', 'data.feature_file': 'features.npz', 'model.encoder': 'linear', 'model.dim': 4,
       'model.voice_dim': 8,
    'model.face_dim': 8, 'method.num_prototypes': [3, 5], 'method.cid_samples': 16, 'train.total_samples': 64,
    'train.batch_size': 8, 'train.lr_warmup': 8, 'train.trace': True}


def test_an_old_session_of_a_saved_sweep_is_pointed_out_once(tmp_path, capsys):
    plan = {**GRIDS['compare'], 'synth': {'identities': 9, 'session': .5}}
    for synth, told in ((plan['synth'], 1), (plan['synth'], 0), ({**plan['synth'], 'variation': 1.}, 0),
                        ({**plan['synth'], 'session_coupling': 1.}, 0), ({'identities': 9}, 0)):
        (tmp_path/'old.json').write_text(json.dumps({**plan, 'synth': synth}))
        assert load_grid(tmp_path/'old.json').synth == synth
        said = capsys.readouterr().err
        assert said.count('\n') == told and ('`variation`' in said) == bool(told)
    core._noticed.clear()
    (tmp_path/'old.json').write_text(json.dumps({**plan, 'encoder': {'run': 'e', 'recipe': 'cid-demo',
                                                                     'synth': plan['synth']}}))
    assert load_grid(tmp_path/'old.json') and capsys.readouterr().err.count('`variation`') == 1


def test_an_old_parameter_of_a_report_is_read(capsys):
    assert parse_parameters(find_report('tsne'), ['people=3']) == {'identities': 3}
    assert capsys.readouterr().err == 'people is now identities\n'
    with pytest.raises(ConfigError, match="'people'"): parse_parameters(find_report('train'), ['people=3'])


@pytest.fixture(autouse=True)
def nothing_noticed(monkeypatch): monkeypatch.setattr(core, '_noticed', set())


def here(): return Settings(data=OLD/'data', runs=OLD/'runs', device='cpu', workers=0)


def test_a_config_is_read_silently_and_equals_the_recipe_of_today(capsys):
    recipe = stored_recipe(CMPC/'config.json')
    assert recipe == load_recipe('cmpc-demo', NEW)
    assert (recipe.data.feature_file, recipe.model.encoder,
            recipe.train.total_samples) == ('features.npz', 'linear', 64)
    assert stored_recipe(FAA/'config.json') == load_recipe('faa-demo', {
        **{k: v for k, v in NEW.items() if k.startswith(('corpus', 'data', 'model'))}, 'train.total_samples': 32,
        'train.batch_size': 8, 'train.lr_warmup': 8, 'method.fusion': dict(dim=4, layers=1, heads=2, inner=256)})
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('run', [CMPC, FAA, GRID/'cid/seed0'], ids=lambda p: p.name)
def test_a_model_and_its_checkpoint_open(run):
    opened = load_run(run)
    recipe = opened.recipe
    assert opened.model.cfg == recipe.model and opened.about['epoch'] >= 1 and opened.identities
    assert (opened.pair_scorer is not None) == (recipe.name == 'FAA')
    tensors, _ = load_tensors(run/'checkpoints/last.safetensors')
    rows = [t for k, t in tensors.items() if k.endswith(('memory.voice.rows', 'method/label'))]
    n = len(rows[0]) if rows else 8
    method = build_method(recipe.method, VoiceFaceModel(recipe.model), n,
                          read_json(run/'provenance.json')['corpus_hash'])
    state = load_checkpoint(RunFolder(run), method, make_optimizer(method.parameters(), recipe.train), recipe.train)
    assert state.step == recipe.train.steps
    assert all(torch.equal(t, tensors[f'method/{k}']) for k, t in method.state_dict().items())


def test_a_checkpoint_refuses_another_setting_by_its_name_of_today():
    recipe = load_recipe('cmpc-demo', {**NEW, 'train.peak_lr': .002})
    method = build_method(recipe.method, VoiceFaceModel(recipe.model), 12)
    with pytest.raises(core.RunError, match=r'peak_lr = 0\.001.*0\.002'):
        load_checkpoint(RunFolder(CMPC), method, make_optimizer(method.parameters(), recipe.train), recipe.train)


def test_scores_embeddings_and_traces_are_read():
    scores = read_scores([CMPC, FAA])
    assert {'CMPC', 'FAA'} <= set(scores.method) and scores.value.notna().any() and not scores.warmup.any()
    stored = read_json(FAA/'metrics.json')['scores']
    assert sorted(scores[scores.run == FAA].value.dropna()) == sorted(s['value'] for s in stored
                                                                      if s['value'] is not None)
    emb = load_embeddings(open_run(CMPC))
    assert emb.voice.shape[1] == emb.face.shape[1] == 4 and len(emb.voice) == len(emb.voices)
    traces = read_traces(CMPC)
    assert sorted(traces) == [1, 2, 3] and {'cosine', 'agreement', 'voice_3', 'face_5'} <= set(traces[3])


def test_features_and_a_pack_are_read():
    assert load_features(OLD/'data/features.npz').digest == read_json(CMPC/'provenance.json')['features']['sha256']
    assert len(load_pack(OLD/'data/four-packed').table) > 0


def test_the_cells_of_a_grid_are_found_finished(capsys):
    assert grid_runs(GRID) == [GRID/'cid/seed0']
    cell, = cells(load_grid(OLD/'grid.json'), GRID)
    assert is_finished(cell, load_grid(OLD/'grid.json').evaluate, here())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) and {'demo is now cid-demo', 'train.samples is now train.total_samples',
                                              'model.encoder = features is now linear'} <= set(lines)
    other, = cells(load_grid(OLD/'grid.json', {'changes.train.samples': 24}), GRID)
    assert not is_finished(other, load_grid(OLD/'grid.json').evaluate, here())


def test_old_words_on_the_command_line_work_with_one_line_each(capsys):
    assert main(['train', 'demo', '--set', 'train.samples=6400', '--set', 'model.towers=small', '--show']) == 0
    out, err = capsys.readouterr()
    shown = json.loads(out)
    assert (shown['train']['total_samples'],
            shown['model']['encoder']) == (6400, 'small') and 'samples' not in shown['train']
    assert sorted(err.splitlines()) == ['demo is now cid-demo', 'model.towers is now model.encoder',
                                        'train.samples is now train.total_samples']
    assert main(['train', 'cid-demo', '--set', 'train.samples=640', '--set', 'train.total_samples=640', '--show']) == 2
    assert 'train.samples' in (line := capsys.readouterr().err.splitlines()[-1]) and 'train.total_samples' in line


@pytest.mark.parametrize('given, want', [
    ({'method': {'name': 'cmpc-released', 'every': 3, 'ks': [4]}},
     {'method': {'name': 'cmpc-released', 'cluster_every': 3, 'num_prototypes': [4]}}),
    ({'method': {'name': 'pins', 'every': 3, 'start': .2}}, {'method': {'name': 'pins', 'every': 3, 'start': .2}}),
    ({'method.name': 'cmpc-released', 'method.every': 3}, {'method.name': 'cmpc-released', 'method.cluster_every': 3}),
    ({'method': {'name': 'identity'}, 'start': 'r'}, {'method': {'name': 'dimnet-i'}, 'init_from': 'r'}),
    ({'method': {'name': 'faa', 'match': False, 'fusion': {'dim': 4}}},
     {'method': {'name': 'faa', 'use_fusion': False, 'fusion': {'dim': 4}}}),
    ({'model.towers': 'faa', 'data': {'size': 80}}, {'model.encoder': 'ecapa+inception', 'data': {'face_size': 80}})])
def test_each_key_is_translated_by_its_place(given, want): assert current_keys(given, 'r') == want


@pytest.mark.parametrize('given', [{'train.lr': 1, 'train.peak_lr': 1}, {'train': {'lr': 1, 'peak_lr': 1}},
                                   {'start': '', 'init_from': ''}])
def test_both_spellings_are_refused(given):
    with pytest.raises(ConfigError, match='peak_lr|init_from'): current_keys(given, 'r')


@pytest.mark.parametrize('call, now, word', [
    (['synth', 'x', '--set', 'noise=NaN'], ['synth is now synthesize'], 'noise'),
    (['features', 'r', '--corpus', 'c', '-o', 'f.npz', '--set', 'name=1'], ['features is now extract'], 'name'),
    (['lists', 'nowhere'], ['lists is now trials'], '--corpus'),
    (['grid', 'nothing'], ['grid is now sweep'], 'nothing'),
    (['cost', 'cid-demo', '--tera', '-1'], ['cost is now flops', '--tera is now --tflops'], 'tflops = -1.0')],
                         ids=lambda x: x[0])
def test_old_commands_work_with_one_line(capsys, call, now, word):
    assert main(call) == 2
    *notices, error = capsys.readouterr().err.splitlines()
    assert notices == now and error.startswith('vfassoc: ') and word in error


def test_the_printed_numbers_are_those_that_the_code_held():
    t = read_printed()
    rows = [[f'{r.paper}, {r.table}', r.method, r.task, r.metric, r.stratum, r.direction, r.candidates, r.value]
            for r in t.itertuples()]
    assert hashlib.sha256(
        json.dumps(rows).encode()).hexdigest() == '89572d7ff79c9c643e677ebf2118f36879ea9fecb912c084b4c5845e6803912a'
    assert {k: len(published_scores(k)) for k in ('CMPC, Table 1', 'CMPC, Table 2',
                                                  'FAA, Table 2')} == {'CMPC, Table 1': 72, 'CMPC, Table 2': 56,
                                                                       'FAA, Table 2': 63}
    faa = published_scores('FAA, Table 2').query('method == "FAA (printed)" and metric == "auc" and stratum == "G"')
    assert faa.value.tolist() == pytest.approx([.7998])
    with pytest.raises(core.RunError, match='FAA, Table 9.*CMPC, Table 1'): published_scores('FAA, Table 9')
