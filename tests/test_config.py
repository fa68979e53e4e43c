"Configurations: strict types and ranges, one line for all that is wrong, tables that JSON gives back unchanged."
import dataclasses, importlib, inspect, json, pickle, random, subprocess, sys
from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import Field
from pydantic.dataclasses import is_pydantic_dataclass

from checkout import ROOT, modules
from vfassoc.core import (ConfigError, Fraction, RunError, RunFolder, Seed, Settings, config, from_dict, to_dict,
                          write_json)
from vfassoc.experiments.sweeps import GRIDS, cells, load_grid
from vfassoc.methods.base import METHODS
from vfassoc.methods.registry import choose_method
from vfassoc.models.fusion import FusionConfig
from vfassoc.training.config import TrainConfig
from vfassoc.training.recipes import RECIPES, Recipe, load_recipe, stored_recipe
from vfassoc.training.run import _check_same_config


def said(f) -> str:
    "The one line of a ConfigError."
    with pytest.raises(ConfigError) as e: f()
    assert '\n' not in str(e.value)
    return str(e.value)


BAD = [('train', 'peak_lr', -1), ('train', 'seed', 1.5), ('train', 'seed', True), ('train', 'optimizer', 'sgd'),
       ('train', 'trace', 1), ('train', 'weight_decay', '0'), ('model', 'dim', 0), ('data', 'face_size', None)]

@pytest.mark.parametrize('table, field, value', BAD)
def test_a_wrong_field_is_named_with_its_table_and_value(table, field, value):
    line = said(lambda: load_recipe('cid-demo', {f'{table}.{field}': value}))
    assert line.startswith(f'recipe cid-demo: {table}.{field} = {value!r}; ')

def test_all_wrong_fields_are_in_the_line():
    changes = {f'{t}.{f}': v for t, f, v in BAD}
    line = said(lambda: load_recipe('cid-demo', changes))
    assert all(f'{t}.{f} = ' in line for t, f, _ in BAD)

@config('ranges')
class Ranges:
    "Numbers with one and two ends, in tuples, tables and with none."
    share:Fraction = .5
    margin:Annotated[float, Field(gt=0, le=2)]|None = 1.
    delta:Annotated[float, Field(gt=0, lt=1)] = .5
    steps:Annotated[int, Field(ge=1, lt=9)] = 1
    seed:Seed = 0
    most:Annotated[int, Field(le=5)] = 1
    ks:tuple[Annotated[int, Field(ge=2)], ...] = (2,)
    fusion:FusionConfig = FusionConfig()

@pytest.mark.parametrize('table, field, allowed', [
    ({'share': 1.5}, 'share = 1.5', '0 to 1'), ({'share': -1.}, 'share = -1.0', '0 to 1'),
    ({'margin': 3}, 'margin = 3', 'above 0, up to 2'), ({'delta': 1.}, 'delta = 1.0', 'above 0, below 1'),
    ({'steps': 9}, 'steps = 9', 'at least 1, below 9'), ({'seed': -1}, 'seed = -1', '0 to 4294967295'),
    ({'most': 6}, 'most = 6', 'up to 5'), ({'ks': [4, 1]}, 'ks.1 = 1', '2 or more'),
    ({'fusion': {'dim': 0}}, 'fusion.dim = 0', 'above 0')])
def test_the_whole_range_is_named(table, field, allowed):
    assert said(lambda: from_dict(Ranges, table)) == f'Ranges: {field}; allowed: {allowed}'
    if 'fusion' not in table:
        direct = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        assert said(lambda: Ranges(**direct)) == f'ranges: {field}; allowed: {allowed}'

@pytest.mark.parametrize('cls, field, values', [ # a loss does not check what its method's configuration has checked
    ('cid', 'tau', (0., -1., float('nan'))), ('cmpc', 'tau', (0.,)), ('cmpc', 'momentum', (1.5, -.1, float('nan'))),
    ('cmpc', 'delta', (-3.1, float('nan'))), ('cmpc', 'kappa', (0., -1, float('inf'))),
    ('cmpc-released', 'delta', (3.1,)), ('cmpc-released', 'kappa', (0.,)), ('cmpc-released', 'tau', (0.,)),
    ('dimnet-i', 'tau', (0.,)), ('kim', 'margin', (0., 5.)), ('pins', 'margin', (0., 2.1)), ('pins', 'step', (0.,)),
    ('pins', 'start', (-.1, .9)), ('pins', 'stop', (1.1,)), ('pins', 'every', (0,)), ('faa', 'alpha', (0.,)),
    ('faa', 'beta', (0.,)), ('faa', 'eps', (-1., 2.1)), ('faa', 'margin', (0., 2.1)), ('faa', 'n_clusters', (1,)),
    ('faa', 'min_clusters', (1,)), ('faa', 'patience', (0,)), ('faa', 'negative_mining', ('easiest',))])
def test_ranges_of_losses_stand_in_the_configurations(cls, field, values):
    for v in values: assert f'{field} = {v!r}' in said(lambda: METHODS.find(cls, '').config_class(**{field: v}))

def test_unknown_and_missing_keys():
    assert "train: unknown key 'sed'" in said(lambda: load_recipe('cid-demo', {'train.sed': 1}))
    assert 'recipe x: corpus is missing' in said(lambda: from_dict(Recipe, {'name': 'a'}, 'recipe x'))
    assert "'fusion'" not in said(lambda: load_recipe('faa-demo', {'method.fusion.layer': 1})).split('known:')[0]

def test_relations_between_fields_are_checked_from_tables_and_directly():
    assert 'recipe cid-demo: train.lr_warmup = 99999999' in said(
        lambda: load_recipe('cid-demo', {'train.lr_warmup': 99_999_999}))
    assert 'train: lr_warmup = 9' in said(lambda: TrainConfig(total_samples=8, batch_size=2, lr_warmup=9))

def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError): load_recipe('cid-demo').train.seed = 1

@pytest.mark.parametrize('value', [{1, 2}, object(), float('nan'), 'a\udcffb'], ids=lambda x: type(x).__name__)
def test_values_that_no_json_holds(value): said(lambda: from_dict(Recipe, {'name': 'a', 'corpus': value}, 'recipe x'))

def test_numbers_come_back_exactly():
    g = random.Random(0)
    for _ in range(300):
        x = g.uniform(0, 10)*10**-g.randrange(9)
        assert from_dict(TrainConfig, {'peak_lr': x}).peak_lr == x

def configurations():
    "Every dataclass of the library that a table or a command line fills in."
    for p in modules():
        if p.name.startswith('_'): continue
        m = importlib.import_module('.'.join(p.with_suffix('').parts))
        for c in vars(m).values():
            if inspect.isclass(c) and c.__module__ == m.__name__ and dataclasses.is_dataclass(c):
                if c.__name__.endswith(('Config', 'Options')) or c.__name__ in ('Recipe', 'Grid', 'Settings'): yield c

def test_every_configuration_is_checked_by_pydantic():
    found = list(configurations())
    names = {c.__name__ for c in found}
    assert {'TrainConfig', 'CMPCConfig', 'FAAConfig', 'SynthConfig', 'ProtocolConfig', 'Grid'} <= names
    for c in found:
        assert is_pydantic_dataclass(c) and c.__dataclass_params__.frozen, c
        assert c.__pydantic_config__['strict'] and c.__pydantic_config__['extra'] == 'forbid', c


# ---- the method of a recipe

def test_a_method_is_an_object_and_its_table_stays_as_given():
    r = load_recipe('cmpc-demo', {'method.tau': 1})
    assert (r.method.config.tau, r.method.config.num_prototypes, r.method.name) == (1., (140, 280, 420), 'cmpc')
    assert to_dict(r)['method'] == {'name': 'cmpc', 'tau': 1, 'num_prototypes': [140, 280, 420], 'cid_samples': 2240}
    to_dict(r)['method']['tau'] = 2 # a copy
    assert to_dict(r)['method']['tau'] == 1
    assert pickle.loads(pickle.dumps(r)) == r

def test_a_default_written_out_is_the_same_method(tmp_path):
    short = load_recipe('kim-demo')
    long = load_recipe('kim-demo', {'method.margin': .2})
    assert short == long != load_recipe('kim-demo', {'method.margin': .3})
    write_json(tmp_path/'config.json', to_dict(long))
    assert stored_recipe(tmp_path/'config.json') == short
    _check_same_config(RunFolder(tmp_path), short)
    with pytest.raises(RunError, match=r'method\.margin = 0\.2, asked for 0\.3'):
        _check_same_config(RunFolder(tmp_path), load_recipe('kim-demo', {'method.margin': .3}))

def test_a_plain_dataclass_of_another_package_is_held_to_its_types():
    @dataclass(frozen=True)
    class Inner: width:int = 1
    @dataclass(frozen=True)
    class Plain:
        margin:float = .3
        inner:Inner = Inner()
    cls = METHODS.find('cid', '')
    METHODS.known['plain'] = type('Plain', (cls,), {'config_class': Plain})
    try:
        assert choose_method({'name': 'plain', 'margin': 1, 'inner': {'width': 2}}).config == Plain(1., Inner(2))
        assert "plain: unknown key 'margins'" in said(lambda: choose_method({'name': 'plain', 'margins': 1.}))
        assert "plain.inner: unknown key 'w'" in said(lambda: choose_method({'name': 'plain', 'inner': {'w': 1}}))
        assert "plain: margin = '1'" in said(lambda: choose_method({'name': 'plain', 'margin': '1'}))
        assert 'plain: inner.width = 1.5' in said(lambda: choose_method({'name': 'plain', 'inner': {'width': 1.5}}))
    finally: del METHODS.known['plain']


# ---- recipes and sweeps as data

def test_recipes_and_sweeps_survive_json():
    for name in RECIPES:
        r = load_recipe(name)
        assert from_dict(Recipe, json.loads(json.dumps(to_dict(r)))) == r
    for name in GRIDS:
        g = load_grid(name)
        assert from_dict(type(g), json.loads(json.dumps(to_dict(g)))) == g and cells(g, ROOT/'r')

def test_each_sweep_is_written_out():
    "Every sweep is a literal: its cell of the chapter has no loop and no name that stands for a part of it."
    import ast
    tree = ast.parse((ROOT/'vfassoc/experiments/sweeps.py').read_text())
    parts = [n.value for n in tree.body if isinstance(n, (ast.Assign, ast.AugAssign))
             and ast.unparse(getattr(n, 'target', None) or n.targets[0]) == 'GRIDS']
    literal = [ast.literal_eval(p) for p in parts]
    assert {k: v for d in literal for k, v in d.items()} == GRIDS

def test_settings_from_python():
    assert 'settings: workers = -1' in said(lambda: Settings(workers=-1))
    assert 'settings: device = ' in said(lambda: Settings(device='tpu'))


# ---- what the library runs on

def test_the_library_and_its_command_run_without_fastcore():
    names = sorted('.'.join(p.with_suffix('').parts) for p in modules() if not p.name.startswith('_'))
    code = f'''import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'fastcore': raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
for m in {names!r}: importlib.import_module(m)
from vfassoc.cli import main
main(['--help'])'''
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0 and 'usage: vfassoc' in r.stdout, r.stderr[-500:]
