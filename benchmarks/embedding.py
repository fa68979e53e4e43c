"""Files to vectors, against the encoder's bare forward: python benchmarks/embedding.py [--model RUN] [--files 256]

Drawn voices and faces are written as files, then embedded by `Matcher`; the bare forward takes the same batches from
memory. Aim: at least 0.8 of the bare rate. With onnxruntime: the latency of one item beside PyTorch's."""
import os, statistics, tempfile
from pathlib import Path

from common import options, timed

args = options(__doc__, model='', files=256, threads=2, turns=3) # model: what `load` takes; '' is the demo model
os.environ.update(OMP_NUM_THREADS=str(args.threads))

import numpy as np
import torch

from vfassoc.inference.app import drawn_files
from vfassoc.inference.demo_model import DEMO
from vfassoc.inference.matcher import load
from vfassoc.inference.onnx import export_onnx
from vfassoc.inference.queries import face_crop, voice_windows


def median(f, turns=args.turns): return statistics.median(timed(f)[0] for _ in range(turns))


def bare(m, modality, x):
    for part in x.split(m.batch_size): m.encode(modality, part)


torch.set_num_threads(args.threads)
m = load(args.model or DEMO)
with tempfile.TemporaryDirectory() as folder:
    voices, faces = (([*paths]*args.files)[:args.files] for paths in drawn_files(folder, 16))
    windows = torch.from_numpy(np.concatenate([voice_windows(p, m.data.crop_seconds) for p in voices]))
    crops = torch.stack([face_crop(p, m.data.face_size) for p in faces])
    for name, run, x in (('voice', lambda: m.embed_voices(voices), windows),
                         ('face', lambda: m.embed_faces(faces), crops)):
        whole, forward = median(run), median(lambda: bare(m, name, x))
        print(f'{name}: {len(x)} inputs of {args.files} files, {args.files/whole:.0f} files/s, '
              f'{forward/whole:.2f} of the bare forward; load {os.getloadavg()[0]:.1f}')
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    export_onnx(m, Path(folder)/'onnx')
    for name, x in (('voice', windows[:1]), ('face', crops[:1])):
        s = onnxruntime.InferenceSession(str(Path(folder)/'onnx'/f'{name}.onnx'), options)
        ours, theirs = median(lambda: m.encode(name, x), 30), median(lambda: s.run(None, {name: x.numpy()}), 30)
        print(f'{name}, one item: PyTorch {1e3*ours:.1f} ms, onnxruntime {1e3*theirs:.1f} ms')
