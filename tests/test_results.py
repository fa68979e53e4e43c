"RESULTS.md is rendered by one command from what the reports publish; nothing of it is typed."
import re
import shutil

import pandas as pd
import pytest

from fake_run import make_grid
from tiny_grid import here, ini, tiny
from vfassoc.cli import main
from vfassoc.core import RunError, read_json, to_dict, write_json
from vfassoc.experiments import results, tables
from vfassoc.experiments.comparison import paired_differences
from vfassoc.experiments.results import read_fragment, render_results
from vfassoc.experiments.runner import run_report

pytestmark = pytest.mark.usefixtures('warm_kernels')


def test_one_command_renders_the_page(cmpc_grid, tmp_path, monkeypatch, capsys):
    "On the tiny grid, whose runs are finished: sweep, reports, page, figures, all by the command."
    s = here(tmp_path)
    shutil.copytree(cmpc_grid/'data', s.data)
    for v in ('cid', 'cmpc'):
        for k in (0, 1): shutil.copytree(cmpc_grid/f'runs/g/{v}/seed{k}', s.runs/f'small/{v}/seed{k}')
    write_json(tmp_path/'small.json', to_dict(tiny(('CID', 'CMPC'), (0, 1))))
    write_json(s.runs/'small/grid.json', {**to_dict(tiny(('CID', 'CMPC'), (0, 1))), 'cells': []})
    monkeypatch.setenv('VFASSOC_SETTINGS', str(ini(tmp_path)))
    monkeypatch.chdir(tmp_path)
    page = tmp_path/'RESULTS.md'
    assert main(['results', '-o', str(page), '--sweep', f'{tmp_path}/small.json:compare']) == 0
    assert capsys.readouterr().out.strip().endswith(str(page))
    text = page.read_text()
    runs = [s.runs/f'small/{v}/seed{k}' for v in ('cid', 'cmpc') for k in (0, 1)]
    scores = tables.read_scores(runs)
    mean = scores.query('method == "CMPC" and metric == "auc" '
                        'and stratum == "G" and positives == "other_videos"').value.mean()
    d = paired_differences(scores, 'CID').query(
        'metric == "auc" and stratum == "U" and positives == "other_videos"').iloc[0]
    row = next(x for x in text.splitlines() if x.startswith('| CMPC (2 seeds)'))
    assert f'{100*mean:.1f}' in row and re.search(r'\d+ s \|$', row)
    assert ('**CMPC is better than CID: undecided.** Difference in points, 2 seeds: AUC, U, other videos '
            f'{100*d.value:+.2f}') in text
    commit = read_json(runs[0]/'provenance.json')['git_commit']
    assert '4 runs of the sweep `small`, seeds 0, 1' in text and (commit or 'unknown')[:10] in text
    assert 'vfassoc report compare --grid small' in text and f'vfassoc results --sweep {tmp_path}/small.json' in text
    assert (tmp_path/'figures/published/compare.png').read_bytes()[
        :4] == b'\x89PNG' and 'figures/published/compare.png' in text


def test_three_seeds_give_a_verdict_of_the_claim(tmp_path):
    grid = make_grid(tmp_path/'g', tmp_path/'corpus', {'CID': 3, 'strong': 3})
    run_report('compare', tmp_path/'r', dict(grid=grid, figures=tmp_path/'f'), quiet=True)
    record, text = read_fragment(tmp_path/'f/compare.md')
    assert record['seeds'] == [0, 1, 2] and record['runs'] == 6 and record['grid'] == 'g'
    assert '**strong is better than CID: holds.** Difference in points, 3 seeds: AUC, U, other videos +' in text
    run_report('compare', tmp_path/'r', dict(grid=grid, figures=tmp_path/'f', baseline='strong'), quiet=True)
    assert '**CID is better than strong: fails.**' in read_fragment(tmp_path/'f/compare.md')[1]


def test_a_run_that_did_not_finish_keeps_the_old_page(tmp_path, monkeypatch):
    page = tmp_path/'RESULTS.md'
    page.write_text('old')
    write_json(tmp_path/'small.json', to_dict(tiny(('CID',))))
    monkeypatch.setattr(results, 'run_grid', lambda *a, **kw: pd.DataFrame([dict(result='broke')]))
    with pytest.raises(RunError, match='small.*broke'):
        render_results(page, {str(tmp_path/'small.json'): ('compare',)}, here(tmp_path))
    assert page.read_text() == 'old'
