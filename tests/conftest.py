"""What all tests share: an order of files that keeps two workers busy, what is made once for all of them, and processes
that start at once (clean_process.py)."""
import shutil, signal

import pytest
from filelock import FileLock

from clean_process import launch_kernel

# begun first; the others follow in their order
LONGEST = ['test_voxceleb', 'test_faa', 'test_cmpc_reports', 'test_reports', 'test_book', 'test_grid', 'test_wheel',
           'test_training', 'test_pages', 'test_evaluation']

# a shell that starts the tests in the background lets them ignore Ctrl-C
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    place = {stem: k for k, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def once(request, tmp_path_factory, name, make):
    "Return the folder that `make(folder)` fills once per session; the first worker makes it, the others wait."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, 'workerinput') else base)/f'shared-{name}'
    with FileLock(f'{folder}.lock'):
        if not folder.with_suffix('.made').exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            folder.with_suffix('.made').touch()
    return folder


@pytest.fixture
def warm_kernels(monkeypatch):
    "Reports of this test run in kernels that are forked from a process which has imported the library."
    monkeypatch.setattr('jupyter_client.provisioning.local_provisioner.launch_kernel', launch_kernel)


@pytest.fixture(scope='session')
def cmpc_grid(request, tmp_path_factory):
    "All variants of the tiny grid, two seeds, trained and scored in `runs/g`, with their corpus; copy it to change it."
    from tiny_grid import VARIANTS, finished, tiny # here, for most files need no torch to be collected
    return once(request, tmp_path_factory, 'cmpc-grid', lambda folder: finished(tiny(tuple(VARIANTS), (0, 1)), folder))
