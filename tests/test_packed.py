"A packed corpus is the corpus: the same training, the same evaluation, bit for bit; and what must be refused."
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tiny_grid import CHANGES, PROTOCOL, SYNTH, here, ini
from vfassoc.cli import main
from vfassoc.core import read_json
from vfassoc.corpus.dataset import PairDataset
from vfassoc.corpus.manifest import corpus_kind
from vfassoc.corpus.packed import load_pack
from vfassoc.evaluation.run import evaluate_run
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import train


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    d = tmp_path_factory.mktemp('packed')
    ini(d)
    write_corpus(d/'data/tiny', SynthConfig(**SYNTH), 0)
    return d


@pytest.fixture(autouse=True)
def settings(home, monkeypatch): monkeypatch.setenv('VFASSOC_SETTINGS', str(home/'settings.ini'))


def test_a_run_on_the_packed_form_is_the_run_on_the_files(home, capsys):
    size = CHANGES['data.face_size']
    assert main(['pack', 'tiny', '-o', 'packed', '--set',
                 'shard_mb=1']) == 0 and main(['pack', 'tiny', '-o', 'pixels', '--set', f'pixels={size}']) == 0
    assert capsys.readouterr().out.split() == [str(home/'data/packed'), str(home/'data/pixels')]
    ends = {}
    for corpus in ('tiny', 'packed', 'pixels'):
        if corpus == 'pixels': shutil.move(home/'data/tiny', home/'data/away') # the tree is not needed any more
        assert train(load_recipe('cid-demo', {**CHANGES, 'corpus': corpus}), home/'runs'/corpus, here(home),
                     quiet=True).finished
        table = evaluate_run(home/'runs'/corpus, here(home), PROTOCOL).table
        ends[corpus] = (pd.read_csv(home/'runs'/corpus/'history.csv').loss.tolist(),
                        load_file(home/'runs'/corpus/'checkpoints/best.safetensors'), table)
    shutil.move(home/'data/away', home/'data/tiny')
    manifest = load_pack(home/'data/packed')
    # half the bytes on the way to the device, scaled there
    assert PairDataset(manifest, 'train', 1., 32)[0][0].dtype == torch.int16
    loss, weights, table = ends['tiny']
    for other in ('packed', 'pixels'):
        assert ends[other][0] == loss and all(torch.equal(weights[k], x) for k, x in ends[other][1].items())
        pd.testing.assert_frame_equal(ends[other][2], table) # the ceiling too: truth.csv travels with the pack
    assert len({read_json(home/'runs'/c/'provenance.json')['corpus_hash'] for c in ends}) == 1


def test_a_run_on_files_is_evaluated_in_the_packed_form(home):
    if corpus_kind(home/'data/packed') != 'packed': assert main(['pack', 'tiny', '-o', 'packed']) == 0
    run = home/'runs/both'
    assert train(load_recipe('cid-demo', {**CHANGES, 'corpus': 'tiny'}), run, here(home), quiet=True).finished
    a, b = (evaluate_run(run, here(home), PROTOCOL, corpus=c).table for c in ('tiny', 'packed'))
    pd.testing.assert_frame_equal(a, b)


def test_refusals_are_one_line(home, capsys):
    if corpus_kind(home/'data/pixels') != 'packed':
        assert main(['pack', 'tiny', '-o', 'pixels', '--set', f'pixels={CHANGES["data.face_size"]}']) == 0
    def said(*words):
        assert main(list(words)) == 2
        err = [line for line in capsys.readouterr().err.split('\n') if line.startswith('vfassoc: ')]
        assert len(err) == 1, err
        return err[0]
    assert 'holds a packed corpus already' in said('pack', 'tiny', '-o', 'pixels')
    assert 'is packed already' in said('pack', 'pixels', '-o', 'twice')
    assert 'pixels = 7' in said('pack', 'tiny', '-o', 'x', '--set', 'pixels=7')
    assert 'packed as pixels of 32 x 32, data.face_size is 64' in said('train', 'cid-demo', '--corpus', 'pixels',
                                                                       '--run',
                                                                  'big', '--set', 'data.face_size=64', '--set',
                                                                  'data.crop_seconds=1', '--set', 'train.batch_size=8',
                                                                  '--set', 'train.total_samples=16', '--set',
                                                                  'train.lr_warmup=8')
    assert 'is packed, --check and --shared do not apply' in said('prepare', 'pixels', '--check',
                                                                                   'full')
    assert 'is packed' in said('prepare', 'pixels', '--shared', 'keep') and main(['prepare', 'pixels']) == 0
    assert 'no such folder' in said('pack', 'nowhere', '-o', 'x') and not (home/'data/x').exists()
