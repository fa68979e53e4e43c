"""Writes the model in the package: `python tests/make_demo_model.py RUN`; RUN is a run of the recipe `cid-demo`,
with the corpus of 400 identities beside it (the sweep `compare` makes both)."""
import sys
from pathlib import Path

from vfassoc.core import Settings
from vfassoc.inference.calibration import calibrate_run
from vfassoc.inference.demo_model import DEMO
from vfassoc.inference.matcher import load


def make(run):
    "Save the run as a model folder, with its card and its calibration."
    run = Path(run).resolve()
    data = run.parent.parent/'data'
    calibrate_run(run, Settings(data=data, device='cpu'), corpus=str(data/'demo'))
    return load(str(run)).save_pretrained(DEMO)


if __name__ == '__main__': print(make(sys.argv[1]))
