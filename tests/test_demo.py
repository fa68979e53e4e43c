"The demo, cut to seconds: two parts, one page with a table for each, and nothing done twice."
import pytest
from bs4 import BeautifulSoup

from hostile import unsafe
from tiny_grid import SYNTH, here
from vfassoc import demo
from vfassoc.core import RunError
from vfassoc.experiments import sweeps
from vfassoc.synthetic.corpus import SynthConfig
from vfassoc.synthetic.twin import TwinConfig

SMALL = demo.Demo(media=SynthConfig(**{**SYNTH, 'seconds': 2.5}, session=1., session_coupling=.9), media_samples=96,
                  faa_samples=96, world=TwinConfig(split='random', faces=2, session=.7), people=20, samples=256,
                  seeds=2, changes={'train.batch_size': 8})


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp('demo')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(demo, 'run_grid', lambda grid, root, settings, jobs: sweeps.run_grid(grid, root, settings, 1))
        demo.run_demo(here(folder), SMALL)
    return folder


def test_a_page_with_two_tables_and_sound(done):
    page = (done/'figures/demo/demo.html').read_text()
    assert unsafe(page) == []
    soup = BeautifulSoup(page, 'html.parser')
    media, scale = [t for t in soup.select('table') if t.select('th.row_heading')]
    rows = [[th.get_text() for th in t.select('tbody th')] for t in (media, scale)]
    assert rows[0][:3] == ['CID', 'CMPC', 'FAA'] and 'chance' in rows[0] and 'ceiling' in rows[0]
    assert [r.removesuffix(' (2 seeds)') for r in rows[1][:5]] == list(SMALL.scale_grid(0).variants)
    for t in (media, scale):
        heads = [th.get_text() for th in t.select('th.col_heading.level0')]
        assert heads == ['AUC, other videos', 'mAP, other videos', 'AUC, shortcut gap']
        assert '–' not in [td.get_text() for td in t.select('tbody tr:first-child td')], 'no column is empty'
    assert page.count('<audio') == SMALL.media.videos_per_identity + 1
    assert {p.name for p in (done/'figures/demo').glob('*.png')} == {'identity.png', 'retrieval.png', 'differences.png'}


def test_the_second_call_only_reports(done, monkeypatch, capsys):
    for name in ('train', 'evaluate_run'): monkeypatch.setattr(sweeps, name, None)
    for name in ('make_features', 'write_twin'): monkeypatch.setattr(demo, name, None)
    monkeypatch.setattr(demo, 'run_grid', lambda grid, root, settings, jobs: sweeps.run_grid(grid, root, settings, 1))
    monkeypatch.setattr(demo, 'run_report', lambda *a: (None, done/'figures/demo/demo.html'))
    demo.run_demo(here(done), SMALL)
    said = capsys.readouterr().out
    assert said.count('finished before') == 13 and '[5/5' in said and 'Scale, positives of other videos' in said


def test_methods_of_a_part_see_as_many_videos(done):
    grid = demo.Demo().scale_grid(3)
    assert grid.seeds == (3, 4, 5)
    recipes = [c.recipe for c in sweeps.cells(grid, done)]
    assert {r.train.total_samples for r in recipes} == {38_400} and {r.corpus for r in recipes} == {'demo-scale'}
    assert [r.name for r in recipes if r.uses_labels] == ['oracle positives (labels)']*3


def test_a_run_that_fails_is_named(done, monkeypatch):
    monkeypatch.setattr(demo, 'run_grid', lambda grid, root, settings, jobs: sweeps.run_grid(grid, root, settings, 1))
    changed = demo.Demo(**{**SMALL.__dict__, 'samples': 512})
    with pytest.raises(RunError, match='demo-scale.*total_samples'): demo.run_demo(here(done), changed)
