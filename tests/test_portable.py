"The choice of the variants of tests/portable.py; a failing test or an unexpected kernel fails its variant."
import pytest

import portable


def test_patterns_choose():
    assert len(portable.chosen('')) == 30 and portable.chosen('Zen/avx2/1') == [('Zen', 'avx2', '1')]
    got = portable.chosen('Haswell,Prescott/default,unset/1')
    assert len(got) == 6 + 2 + 3 and ('Prescott', 'avx2', '1') not in got and ('unset', 'avx512', '1') in got
    assert portable.main(['--only', 'Pentium']) == 2


@pytest.mark.parametrize('variant, known, processors, word', [
    (('SkylakeX', 'avx2', '1'), {'avx2'}, 2, 'avx512f'), (('unset', 'avx512', '1'), {'avx2'}, 2, 'avx512f'),
    (('Zen', 'default', '1'), {'sse2'}, 2, 'avx2'),
    (('unset', 'default', '2'), {'sse2'}, 1, '2 threads on 1 processor'),
    (('Haswell', 'default', '1'), set(), 2, 'not known'),
    (('SkylakeX', 'avx512', '2'), {'avx2', 'avx512f'}, 2, ''), (('Prescott', 'default', '1'), set(), 1, '')])
def test_what_the_processor_cannot_do_is_said(variant, known, processors, word):
    got = portable.cannot(variant, known, processors)
    assert word in got and bool(got) == bool(word)


def test_a_variant_changes_only_its_own_variables(monkeypatch):
    monkeypatch.setenv('OPENBLAS_CORETYPE', 'Zen')
    assert 'OPENBLAS_CORETYPE' not in portable.environment(('unset', 'avx2', '2'))
    env = portable.environment(('Prescott', 'default', '1'))
    assert (env['OPENBLAS_CORETYPE'], env['ATEN_CPU_CAPABILITY'],
            env['OMP_NUM_THREADS']) == ('Prescott', 'default', '1') and 'PATH' in env


def test_a_failing_test_fails_its_variant_and_the_whole(tmp_path, monkeypatch, capsys):
    (tmp_path/'test_it.py').write_text("import os\ndef test_core(): assert os.environ['OPENBLAS_CORETYPE'] != "
                                       "'Prescott'\ndef test_two(): pass\n")
    monkeypatch.setattr(portable, 'FILES', [str(tmp_path/'test_it.py')])
    look = "import json; print(json.dumps(dict(blas=['Katmai'], torch='DEFAULT', threads={})))"
    monkeypatch.setattr(portable, 'LOOK', look.format(1))
    assert portable.main(['--only', 'Prescott/default/1']) == 1
    out = capsys.readouterr().out
    for part in ('Prescott/default/1: FAILED', 'test_core', '1 failed, 1 passed', 'Katmai, DEFAULT, 1'):
        assert part in out
    assert portable.main(['--only', 'Prescott/default/1', '-k', 'two']) == 0
    monkeypatch.setattr(portable, 'LOOK', look.format(2))
    assert portable.main(['--only', 'Prescott/default/1', '-k', 'two']) == 1
