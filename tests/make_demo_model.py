"""Writes the model in the package: `python tests/make_demo_model.py RUN`; RUN is the run `cid-demo` of `make demo`."""
import sys
from pathlib import Path

from vfassoc.inference.demo_model import DEMO
from vfassoc.inference.matcher import load


def make(run):
    "Save the run as a model folder, with its card and its calibration."
    m = load(str(Path(run).resolve()))
    return m.save_pretrained(DEMO)


if __name__ == '__main__': print(make(sys.argv[1]))
