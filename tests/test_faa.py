"FAA from features to reports at tiny scale, on the given real features, and what must be refused."
import json, os, re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from tiny_grid import PROTOCOL, SYNTH, finished, here, page
from vfassoc.cli import main
from vfassoc.core import ConfigError, CorpusError, RunError, RunFolder, Settings, read_json
from vfassoc.corpus.dataset import DistributedBatchSampler, PairDataset, make_loader
from vfassoc.corpus.features import load_features
from vfassoc.evaluation.run import evaluate_run
from vfassoc.evaluation.scorers import load_embeddings
from vfassoc.experiments import tables
from vfassoc.experiments.diagnostics import read_traces
from vfassoc.experiments.sweeps import GRIDS, Grid, load_grid, run_grid
from vfassoc.inference.matcher import load
from vfassoc.inference.onnx import export_onnx
from vfassoc.inference.queries import face_crop, voice_windows
from vfassoc.methods.faa import FAA
from vfassoc.models.all_pairs import score_all
from vfassoc.models.ecapa import Ecapa
from vfassoc.models.inception import InceptionResnetV1
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training.extract import make_features
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import load_run, open_corpus, train

pytestmark = pytest.mark.usefixtures('warm_kernels')

FUSION = dict(dim=8, layers=2, heads=2, inner=16)
CHANGES = {'corpus': 'tiny', 'data.feature_file': 'tiny.npz', 'model.dim': 8, 'model.voice_dim': 8,
           'model.face_dim': 8, 'method.fusion': FUSION, 'method.min_clusters': 6, 'method.patience': 1,
           'train.total_samples': 108, 'train.batch_size': 12, 'train.lr_warmup': 12, 'train.trace': True}
ENCODER = dict(run='enc', recipe='pretrain-demo',
               changes={'corpus': 'strangers', 'data.crop_seconds': 1., 'data.face_size': 32, 'model.dim': 8,
                        'train.total_samples': 48, 'train.batch_size': 8, 'train.lr_warmup': 8},
               synth={**SYNTH, 'seed': 7})
PROTOCOL = {**PROTOCOL, 'shortlists': [2, 5]}


def small(name='claims-faa', seeds=(0, 1), **changes):
    rows = {v: {k: 12 if k == 'method.n_clusters' else x for k, x in c.items()}
            for v, c in GRIDS[name]['variants'].items()}
    return Grid('faa-demo', rows, seeds, {**CHANGES, **changes}, PROTOCOL, SYNTH, ENCODER)


def arrays(file):
    "The arrays of a file of features, and its table without the digest: they are about to be changed."
    with np.load(file) as z: out = dict(z)
    about = json.loads(str(out['about']))
    return {**out, 'about': np.array(json.dumps({k: x for k, x in about.items() if k not in ('digest', 'xxh3_128')}))}


@pytest.fixture(scope='module')
def grid(tmp_path_factory): return finished(small(), tmp_path_factory.mktemp('faa'), jobs=1)


@pytest.fixture(autouse=True)
def settings(grid, monkeypatch): monkeypatch.setenv('VFASSOC_SETTINGS', str(grid/'settings.ini'))


def scores(grid, *variants): return tables.read_scores([grid/'runs/g'/v/f'seed{s}' for v in variants for s in (0, 1)])


def test_ablation(grid, tmp_path):
    _, text, figures = page('ablation_faa', tmp_path, grid=str(grid/'runs/g'))
    one = 'method == "FAA, cosine" and metric == "auc" and stratum == "G" and positives == "mixture"'
    mean = scores(grid, 'faa').query(one).value.mean()
    assert f'{100*mean:.1f}' in text and 'FAA, cosine (2 seeds)' in text and 'FAA, shortlist 2 (2 seeds)' not in text
    assert figures == {'differences.png', 'training.png'} and 'encoders (enc' in text


def test_claims(grid, tmp_path):
    _, text, figures = page('claims_faa', tmp_path, grid=str(grid/'runs/g'))
    assert figures == {f'claim-{k}.png' for k in range(1, 6)} | {'pseudo-labels.png', 'negatives.png'}
    one = 'metric == "map" and direction == "v2f" and positives == "mixture"'
    s = scores(grid, 'faa-sampled-negatives').query(one).pivot_table('value', 'seed', 'method')
    d = (s['FAA, sampled negatives'] - s['FAA, sampled negatives, shortlist 2']).mean()
    assert f'FAA, sampled negatives − FAA, sampled negatives, shortlist 2: {100*d:+.2f} points' in text
    assert 'FAA − FAA, random negatives' in text and 'multi-similarity − contrastive' in text


def test_compare(grid, tmp_path):
    _, text, figures = page('compare', tmp_path, grid=str(grid/'runs/g'), baseline='multi-similarity')
    took = read_json(grid/'runs/enc/provenance.json')['train_seconds']
    assert figures == {'compare.png'} and 'its encoder (s)' in text and f'{round(took):.1f}' in text


def test_the_fused_scores_in_the_run_folder_are_those_of_the_encoder(grid):
    path = grid/'runs/g/faa/seed0'
    emb, fusion = load_embeddings(RunFolder(path)), load_run(path).pair_scorer
    every = score_all(fusion, torch.from_numpy(emb.voice), torch.from_numpy(emb.face), quiet=True)
    trials = pd.read_parquet(path/'trials.parquet')
    assert np.allclose(1/(1 + np.exp(-trials.score)), every[trials.voice, trials.face], atol=1e-5)
    assert load_run(grid/'runs/g/multi-similarity/seed0').pair_scorer is None
    by = pd.DataFrame(read_json(path/'metrics.json')['scores'])
    assert set(by.scorer) == {'fused', 'cosine', 'shortlist 2', 'shortlist 5'}


def test_the_schedule_is_in_the_traces(grid):
    t = read_traces(grid/'runs/g/multi-similarity-progressive/seed0')
    history = pd.read_csv(grid/'runs/g/multi-similarity-progressive/seed0/history.csv')
    assert [len(x['label'].unique())
            for x in t.values()] == history.clusters.tolist() and history.clusters.iloc[0] == 36
    fixed = read_traces(grid/'runs/g/self-lifting/seed0')
    assert {len(x['label'].unique()) for x in fixed.values()} == {12}


def test_the_grid_makes_its_features_once_and_notices_strangers(grid):
    f = load_features(grid/'data/tiny.npz')
    assert f.about['encoder'].startswith('encoders (enc') and all('/' in i for i in f.about['identities'])
    before = (grid/'data/tiny.npz').stat().st_mtime_ns
    t = run_grid(small(), grid/'runs'/'g', here(grid), jobs=1, say=lambda line: None)
    assert set(t.result) == {'finished before'} and (grid/'data/tiny.npz').stat().st_mtime_ns == before


def test_commands(grid, capsys):
    assert main(['extract', 'enc', '--corpus', 'tiny', '-o', 'again.npz']) == 0
    assert np.allclose(load_features(grid/'data/again.npz').face, load_features(grid/'data/tiny.npz').face)
    assert main(['extract', 'enc', '--corpus', 'tiny', '-o',
                 'again.npz']) == 2 and 'exists; delete it' in capsys.readouterr().err
    assert main(['extract', 'faa', '--corpus', 'tiny', '-o', 'x.npz', '--set', 'voice_weights=none.ckpt', '--set',
                 'face_weights=vggface2']) == 2
    err = capsys.readouterr().err
    assert 'none.ckpt: no such weights; a path, or speechbrain/spkrec-ecapa-voxceleb' in err and err.count(
        '\n') == 1 and not (grid/'data/x.npz').exists()


@pytest.mark.parametrize('change, words', [
    (dict(voice_dim=192), 'voice vectors have 8 numbers, model.voice_dim = 192; set it to 8'),
    (dict(features='gone.npz'), 'gone.npz'),
    (dict(corpus='strangers'), 'made from another corpus than'),
    (dict(nan=True), 'is not finite (and maybe more); embed the corpus again'),
    (dict(missing=True), 'no vector for 3 of the'),
    (dict(min_clusters=1), 'min_clusters = 1; allowed: '),
    (dict(n_clusters=999), 'n_clusters = 999 on 36 training videos; C can be at most 36'),
])
def test_bad_features_and_clusters_are_one_line_and_leave_no_run(grid, tmp_path, capsys, change, words):
    file, z = grid/'data/tiny.npz', arrays(grid/'data/tiny.npz')
    args = ['train', 'faa-demo', '--run', str(tmp_path/'run'),
            *(x for k, v in CHANGES.items() if k not in ('corpus', 'data.feature_file', 'model.voice_dim')
              for x in ('--set', f'{k}={json.dumps(v)}'))]
    if 'nan' in change:
        z['face'] = z['face'].copy()
        z['face'][3, 0] = np.nan
    if 'missing' in change: z['face'], z['face_path'] = z['face'][3:], z['face_path'][3:]
    if 'nan' in change or 'missing' in change:
        file = tmp_path/'bad.npz'
        np.savez(file, **z)
    args += ['--corpus', change.get('corpus', 'tiny'), '--set', f'data.feature_file={change.get("features", file)}',
             '--set', f'model.voice_dim={change.get("voice_dim", 8)}']
    if 'min_clusters' in change: args += ['--set', 'method.min_clusters=1']
    if 'n_clusters' in change: args += ['--set', 'method.clustering=fixed', '--set', 'method.n_clusters=999']
    assert main(args) == 2
    err = capsys.readouterr().err
    said = [line for line in err.split('\n') if line.startswith('vfassoc: ')]
    assert len(said) == 1 and words in said[0] and 'Traceback' not in err
    # so the corrected command may use the same name
    assert not (tmp_path/'run/checkpoints').exists() and not (tmp_path/'run/config.json').exists()


def test_a_batch_without_a_negative_is_said_and_does_not_stop(capsys):
    import toy
    m = toy.build(method={**toy.METHODS['faa-hardest'], 'n_clusters': 2})
    m.label.zero_()
    loss, _ = m(*next(iter(toy.batches(0, 0))))
    assert loss.isfinite().all() and m.on_epoch_end(0, None)['no_negative'] == 16
    assert '16 anchors' in capsys.readouterr().err


def test_what_a_collapsed_model_is_told():
    import toy
    m = toy.build(method=toy.METHODS['faa-hardest'])
    m.embed_training_set = lambda: torch.ones(toy.N, 16)
    with pytest.raises(RunError, match='all 48 videos fall into one cluster'): m.on_epoch_start(0)
    m.embed_training_set = None
    with pytest.raises(RunError, match='nothing to cluster; set `embed_training_set`'): m.on_epoch_start(0)
    assert isinstance(m, FAA)


def test_end_to_end_from_the_media(grid, tmp_path):
    "The same method on towers that read media, small ones here: pooling embeds the training set by files."
    recipe = load_recipe('faa-demo', {**CHANGES, 'data.feature_file': '', 'data.crop_seconds': 1.,
                                      'data.face_size': 32, 'model.encoder': 'small', 'method.clustering': 'fixed',
                                      'method.n_clusters': 12, 'train.total_samples': 36})
    assert train(recipe, tmp_path/'run', here(grid), quiet=True).finished
    t = evaluate_run(tmp_path/'run', here(grid), PROTOCOL).table
    assert set(t.scorer) == {'fused', 'cosine', 'shortlist 2',
                             'shortlist 5'} and len(read_traces(tmp_path/'run')[1]['label'].unique()) == 12


def test_the_papers_encoders_end_to_end_from_weights_that_may_go_afterwards(grid, tmp_path):
    voice, face = tmp_path/'embedding_model.ckpt', tmp_path/'face.safetensors'
    torch.manual_seed(3)
    torch.save(Ecapa().net.state_dict(), voice)
    save_file({k: t.contiguous() for k, t in InceptionResnetV1().state_dict().items()}, face)
    given = {**CHANGES, 'data.feature_file': '', 'data.crop_seconds': 1., 'data.face_size': 80,
             'model.encoder': 'ecapa+inception', 'model.voice_weights': str(voice), 'model.face_weights': str(face),
             'train.total_samples': 8, 'train.batch_size': 4, 'train.lr_warmup': 4, 'train.peak_lr': 1e-6,
             'train.lr_start': 1e-6, 'train.lr_end': 1e-6}
    recipe = load_recipe('faa-demo', {k: v for k, v in given.items() if k not in ('model.voice_dim', 'model.face_dim')})
    assert train(recipe, tmp_path/'run', here(grid), quiet=True).finished
    start = torch.load(voice, weights_only=True)
    for p in (voice, face): p.unlink()
    model = load_run(tmp_path/'run').model
    # it started from the file
    assert torch.allclose(model.voice.encoder.net.fc.conv.weight, start['fc.conv.weight'], atol=1e-4)
    assert set(evaluate_run(tmp_path/'run', here(grid), PROTOCOL).table.scorer) == {'fused', 'cosine', 'shortlist 2',
                                                                                    'shortlist 5'}
    with pytest.raises(RunError, match=f'^({voice}|{face}): '): train(recipe, tmp_path/'again', here(grid), quiet=True)


def test_recipes_and_grids_are_complete():
    for corpus in ('demo', 'libri-lfw', 'voxceleb1', 'features-voxceleb1'):
        faa, lifting = load_recipe(f'faa-{corpus}'), load_recipe(f'self-lifting-{corpus}')
        assert (lifting.method.config.use_fusion, lifting.method.config.beta, lifting.method.config.eps,
                lifting.method.config.clustering) == (False, 50., None, 'fixed')
        assert faa.data == lifting.data and faa.train == lifting.train
    paper = load_recipe('faa-voxceleb1')
    assert (paper.train.batch_size, paper.train.peak_lr, paper.train.weight_decay, paper.train.optimizer,
            paper.train.total_samples/(16650//256*256)) == (256, 1e-4, .01, 'adamw', 50)
    assert (paper.model.dim, paper.data.face_size,
            load_recipe('self-lifting-voxceleb1').method.config.n_clusters) == (256, 112, 1000)
    for name in GRIDS: assert load_grid(name).variants


def test_real_features(tmp_path):
    "Pretrained features of libri-lfw: the fusion transformer learns gender, and no scorer finds anything else."
    shared = Path(os.environ.get('VFASSOC_SHARED') or '.')
    if not (shared/'corpora/libri-lfw/features.npz').is_file():
        pytest.skip('set VFASSOC_SHARED to the folder that holds corpora/libri-lfw')
    s = Settings(data=tmp_path/'data', runs=tmp_path/'runs', device='cpu', workers=0)
    corpus = shared/'corpora/libri-lfw'
    recipe = load_recipe('faa-libri-lfw', {'corpus': str(corpus), 'data.feature_file': str(corpus/'features.npz')})
    assert train(recipe, tmp_path/'run', s, quiet=True).finished
    t = evaluate_run(tmp_path/'run', s, dict(replicates=200, candidates=[2])).table
    auc = t[t.metric == 'auc'].set_index(['scorer', 'stratum'])
    # .63 with seeds 0 and 1; the cosine of linear projections of 704 numbers, learnt from 140 people, stays near chance
    assert auc.loc[('fused', 'U'), 'value'] > .57
    for by in ('fused', 'cosine'): assert auc.loc[(by, 'G'), 'low'] < .5 < auc.loc[(by, 'G'), 'high'], by


# ---- what a review found

def test_features_that_were_exchanged_under_a_run_are_noticed(grid, tmp_path):
    file, z = tmp_path/'mine.npz', arrays(grid/'data/tiny.npz')
    np.savez(file, **z)
    recipe = load_recipe('faa-demo', {**CHANGES, 'data.feature_file': str(file), 'train.total_samples': 36,
                                      'method.clustering': 'fixed', 'method.n_clusters': 12})
    assert train(recipe, tmp_path/'run', here(grid), quiet=True).finished
    assert len(evaluate_run(tmp_path/'run', here(grid), PROTOCOL).table)
    np.savez(file, **{**z, 'face': z['face'][:, ::-1].copy()}) # another encoder, as wide, under the same name
    with pytest.raises(RunError, match=rf'^{tmp_path}/run: .*{file}'):
        evaluate_run(tmp_path/'run', here(grid), PROTOCOL)
    with pytest.raises(RunError, match=rf'^{tmp_path}/run: .*{file}'):
        train(recipe, tmp_path/'run', here(grid), quiet=True)
    plan = small(seeds=(0,), **{'data.feature_file': str(file)})
    assert set(run_grid(replace(plan, encoder={}, variants={'multi-similarity': plan.variants['multi-similarity']}),
                        tmp_path/'g', here(grid), jobs=1, say=lambda line: None).result) == {'done'}
    np.savez(file, **z)
    t = run_grid(replace(plan, encoder={}, variants={'multi-similarity': plan.variants['multi-similarity']}),
                 tmp_path/'g', here(grid), jobs=1, say=lambda line: None)
    assert 'trained on other features than' in t.result.iloc[0] # not "finished before"


def test_an_encoder_that_met_the_test_people_is_refused(grid, tmp_path):
    file, z = tmp_path/'mine.npz', arrays(grid/'data/tiny.npz')
    test = open_corpus('tiny', here(grid)).identities('test')
    about = json.loads(str(z.pop('about')))
    np.savez(file, about=json.dumps({**about, 'identities': test[:1]}), **z)
    recipe = load_recipe('faa-demo', {**CHANGES, 'data.feature_file': str(file), 'train.total_samples': 36,
                                      'method.clustering': 'fixed', 'method.n_clusters': 12})
    assert train(recipe, tmp_path/'run', here(grid), quiet=True).finished
    with pytest.raises(RunError, match='1 of .* identities were trained on'):
        evaluate_run(tmp_path/'run', here(grid), PROTOCOL)


def test_reading_draws_nothing_from_torchs_random_state(grid):
    "So that dropout after a resume is that of a run that was not stopped."
    m = open_corpus('tiny', here(grid))
    data, before = PairDataset(m, 'train', 1., 32), torch.random.get_rng_state()
    assert len(list(make_loader(data, DistributedBatchSampler(len(data), 12, 0, 0),
                                0))) and torch.equal(torch.random.get_rng_state(), before)


def test_scratch_is_said_and_small_faces_are_refused(grid, tmp_path, capsys):
    changes = {k: v for k, v in CHANGES.items() if k not in ('model.voice_dim', 'model.face_dim')}
    recipe = load_recipe('faa-demo', {**changes, 'data.feature_file': '', 'data.crop_seconds': 1.,
                                      'data.face_size': 64, 'model.encoder': 'ecapa+inception',
                                      'train.total_samples': 8, 'train.batch_size': 4, 'train.lr_warmup': 4})
    with pytest.raises(ConfigError, match=r'data\.face_size = 64.*75'):
        train(recipe, tmp_path/'run', here(grid), quiet=True)
    recipe = load_recipe('faa-demo', {**changes, 'data.feature_file': '', 'data.crop_seconds': 1.,
                                      'data.face_size': 80, 'model.encoder': 'ecapa+inception',
                                      'train.total_samples': 8, 'train.batch_size': 4, 'train.lr_warmup': 4,
                                      'train.peak_lr': 1e-6, 'train.lr_start': 1e-6, 'train.lr_end': 1e-6})
    capsys.readouterr()
    assert train(recipe, tmp_path/'run', here(grid), quiet=True).finished
    assert 'voice encoder: no weights given' in (
        err := capsys.readouterr().err) and 'face encoder: no weights given' in err


@pytest.mark.parametrize('how', ['npy', 'list', 'bytes'])
def test_damaged_files_of_features_are_one_line(grid, tmp_path, how):
    file, z = tmp_path/'x.npz', arrays(grid/'data/tiny.npz')
    if how == 'npy':
        np.save(tmp_path/'x.npy', z['voice'])
        (tmp_path/'x.npy').rename(file)
    elif how == 'list': np.savez(file, **{**z, 'about': '[1]'})
    else:
        np.savez_compressed(file, **z)
        whole = file.read_bytes()
        for at in range(200, len(whole) - 200, len(whole)//40):
            file.write_bytes(whole[:at] + b'\xff'*20 + whole[at + 20:])
            try: load_features(file)
            except CorpusError as e: assert str(e).count('\n') == 0
        return
    with pytest.raises(CorpusError, match=re.escape(str(file))): load_features(file)


def test_people_drawn_with_one_seed_are_the_same_people_in_every_corpus(grid):
    "Only another seed draws other people; another hash of the files does not."
    write_corpus(grid/'data/cousins', SynthConfig(**{**SYNTH, 'seed': 7, 'frames': 2, 'train': .25, 'valid': .25}), 0)
    for corpus, bare in (('cousins', True), ('tiny', False)):
        f = load_features(make_features('enc', corpus, f'{corpus}-again.npz', here(grid), quiet=True))
        assert all(('/' not in i) == bare for i in f.about['identities']), corpus


# ---- a run that is asked

@pytest.fixture(scope='module')
def asked(grid):
    "The matcher of an FAA run that learnt from features, and the test media as files."
    m, corpus = load(grid/'runs/g/faa/seed0'), open_corpus('tiny', here(grid))
    return m, *([corpus.root/p for p in corpus.media(kind, 'test').path] for kind in ('voice', 'face'))


def one_by_one(m, voices, faces):
    "Vectors of each file by itself, cosines, and log odds of each pair by itself."
    v, f = np.concatenate([m.embed_voices([p]) for p in voices]), np.concatenate([m.embed_faces([p]) for p in faces])
    with torch.no_grad():
        odds = [[float(m.pair_scorer.log_odds(torch.from_numpy(a[None]), torch.from_numpy(b[None]))) for b in f]
                for a in v]
    return v, f, v@f.T, np.array(odds)


def test_rank_is_the_order_of_the_fused_score(asked):
    m, voices, faces = asked
    cosine, odds = one_by_one(m, voices[:2], faces)[2:]
    for k, voice in enumerate(voices[:2]):
        table = m.rank(voice, faces, None)
        np.testing.assert_allclose(table.score, odds[k][table.row], atol=1e-4)
        assert table.score.is_monotonic_decreasing and sorted(table.row) == list(range(len(faces)))
    assert np.argsort(-odds[0]).tolist() != np.argsort(-cosine[0]).tolist() # the two ways are told apart


@pytest.mark.parametrize('shortlist, top', [(5, 5), (7, 3)])
def test_search_orders_the_shortlist_of_the_cosine_by_the_fused_score(asked, tmp_path, shortlist, top):
    m, voices, faces = asked
    m.index(faces, tmp_path/'index')
    index = m.open_index(tmp_path/'index')
    cosine, odds = one_by_one(m, voices[:3], faces)[2:]
    for k, voice in enumerate(voices[:3]):
        near = np.argsort(-cosine[k], kind='stable')[:shortlist]
        want = sorted(near, key=lambda row: -odds[k][row])[:top]
        table = m.search(index, voice, top, shortlist=shortlist)
        assert table.row.tolist() == want and table.name.tolist() == [str(faces[r]) for r in want]
        np.testing.assert_allclose(table.score, odds[k][want], atol=1e-4)


def test_a_face_asks_an_index_of_voices(asked):
    m, voices, faces = asked
    odds = one_by_one(m, voices, faces[:1])[3][:, 0]
    table = m.index(voices, modality='voice').search(faces[0], len(voices))
    np.testing.assert_allclose(table.score, odds[table.row], atol=1e-4)
    assert table.score.is_monotonic_decreasing


def test_verify_prints_the_fused_score_and_its_calibration(grid, asked, capsys):
    m, voices, faces = asked
    odds = one_by_one(m, voices[:1], faces[:1])[3][0, 0]
    folder = grid/'runs/g/faa/seed0'
    assert main(['calibrate', str(folder), '--rate', '0.2']) == 0
    try:
        fitted = read_json(folder/'calibration.json')
        capsys.readouterr()
        assert main(['verify', str(folder), str(voices[0]), str(faces[0]), '--json']) == 0
    finally: (folder/'calibration.json').unlink()
    row = json.loads(capsys.readouterr().out)[0]
    assert row['score'] == pytest.approx(odds, abs=1e-4) and fitted['scorer'] == 'fused'
    assert row['llr'] == pytest.approx(fitted['scale']*odds + fitted['shift'], abs=1e-3)
    assert row['accepted'] == (odds > fitted['threshold'])


def test_a_saved_model_answers_as_its_run_does(asked, tmp_path):
    m, voices, faces = asked
    copy = load(m.save_pretrained(tmp_path/'copy'))
    assert copy.digest == m.digest and copy.encoder is not None
    pd.testing.assert_frame_equal(copy.rank(voices[0], faces), m.rank(voices[0], faces))
    index = m.index(faces[:4], tmp_path/'index')
    assert copy.open_index(tmp_path/'index').search(voices[0]).row.tolist() == index.search(voices[0]).row.tolist()


def test_onnx_fusion_scores_as_the_encoder_does(asked, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime', reason="onnxruntime is missing (pip install 'vfassoc[onnx]')")
    m, voices, faces = asked
    v, f, _, odds = one_by_one(m, voices[:4], faces[:4])
    export_onnx(m, tmp_path/'onnx')
    def run(name, **x): return onnxruntime.InferenceSession(str(tmp_path/'onnx'/f'{name}.onnx')).run(None, x)[0]
    np.testing.assert_allclose(run('fusion', voice=v, face=f), np.diag(odds), atol=1e-4)
    np.testing.assert_allclose(run('fusion', voice=v[:1], face=f[1:2]), odds[0, 1:2], atol=1e-4)
    x = voice_windows(voices[0], m.data.crop_seconds)
    np.testing.assert_allclose(run('voice', voice=x), m.encode('voice', torch.from_numpy(x)), atol=1e-4)
    crop = face_crop(faces[0], m.data.face_size)[None]
    np.testing.assert_allclose(run('face', face=crop.numpy()), f[:1], atol=1e-4)
