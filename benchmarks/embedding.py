"""Files to vectors, against the encoder's bare forward: python benchmarks/embedding.py [--model RUN] [--files 256]

Drawn voices (wav) and faces (JPEG crops of 224 pixels) are written as files, then embedded by `Matcher`; the bare
forward takes the same batches from memory. Aim: at least 0.8 of the bare rate. The ratio of processor seconds is beside
that of the wall, for other programs slow a wall clock down. `--encoder NAME` is an untrained model of that encoder.
Then one item at a time: PyTorch, onnxruntime, torch.compile, bfloat16, each with its largest difference from PyTorch's
float32 vector and cosine."""
import os, statistics, tempfile, time
from pathlib import Path

from common import options, timed

# model: what `load` takes; '' is the demo model. encoder: small, resnet34, ecapa+inception. compile: 1 needs a compiler
args = options(__doc__, model='', encoder='', files=256, threads=2, turns=3, compile=0)
os.environ.update(OMP_NUM_THREADS=str(args.threads))

import warnings
from dataclasses import replace

import numpy as np
import onnxruntime
import torch
from PIL import Image

from vfassoc.corpus.source import DataConfig
from vfassoc.inference.app import drawn_files
from vfassoc.inference.demo_model import DEMO
from vfassoc.inference.matcher import load
from vfassoc.inference.onnx import export_onnx
from vfassoc.inference.queries import face_crop, voice_windows
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel


def seconds(f, turns=args.turns):
    "Median seconds of the wall, least seconds of the processors."
    wall, work = [], []
    for _ in range(turns):
        used = time.process_time()
        wall.append(timed(f)[0])
        work.append(time.process_time() - used)
    return statistics.median(wall), min(work)


def opened():
    "The model that was asked for."
    m = load(args.model or DEMO)
    if not args.encoder: return m
    wide = {'resnet34': 512, 'ecapa+inception': 256}.get(args.encoder, 128)
    torch.manual_seed(0)
    model = VoiceFaceModel(ModelConfig(args.encoder, wide)).eval()
    data = DataConfig(crop_seconds=2.5, face_size=112)
    return replace(m, model=model, encoder=None, recipe=replace(m.recipe, model=model.cfg, data=data), calibration=None)


def bare(m, modality, x):
    for part in x.split(m.batch_size): m.encode(modality, part)


def from_files(m, name, files, x):
    "Print the rate of files beside the bare forward."
    run = m.embed_voices if name == 'voice' else m.embed_faces
    (whole, work), (forward, alone) = seconds(lambda: run(files)), seconds(lambda: bare(m, name, x))
    print(f'{name}: {len(x)} inputs of {len(files)} files, {len(files)/whole:.0f} files/s, {forward/whole:.2f} of the '
          f'bare forward (processor seconds {alone/work:.2f}); load {os.getloadavg()[0]:.1f}', flush=True)


def one_item(m, name, x, other, folder):
    "Print the time of one item in several ways, and how far vectors and cosines move."
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(str(folder/f'{name}.onnx'), options, ['CPUExecutionProvider'])
    def half(y):
        with torch.autocast('cpu', torch.bfloat16): return m.encode(name, y).float()
    ways = {'PyTorch': lambda y: m.encode(name, y),
            'onnxruntime': lambda y: torch.from_numpy(session.run(None, {name: y.numpy()})[0]), 'bfloat16': half}
    if args.compile: ways['torch.compile'] = compiled(m, name)
    with torch.no_grad():
        want = m.encode(name, x)
        for way, f in ways.items():
            first, z = timed(lambda: f(x))
            f(x[:1])
            wall, work = seconds(lambda: f(x[:1]), 30)
            move = (z - want).abs().max(), (z@other.T - want@other.T).abs().max()
            print(f'{name}, one item, {way}: {1e3*wall:.1f} ms (processor {1e3*work:.1f}); vectors move by '
                  f'{move[0]:.1e}, cosines by {move[1]:.1e}; first call {first:.1f} s', flush=True)


def compiled(m, name):
    "The encoder by torch.compile."
    f = torch.compile(getattr(m.model, f'encode_{name}'), dynamic=True)
    def run(y):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return f(y)
    return run


torch.set_num_threads(args.threads)
m = opened()
with tempfile.TemporaryDirectory() as folder:
    voices, faces = drawn_files(folder, 16)
    for k, path in enumerate(faces):
        faces[k] = path.replace('.png', '.jpg')
        Image.open(path).resize((224, 224)).save(faces[k], quality=92)
    voices, faces = (([*paths]*args.files)[:args.files] for paths in (voices, faces))
    windows = torch.from_numpy(np.concatenate([voice_windows(p, m.data.crop_seconds) for p in voices]))
    crops = torch.stack([face_crop(p, m.data.face_size) for p in faces])
    print(f'{m.model.cfg.encoder}, {args.threads} threads, {m.data.crop_seconds} s, {m.data.face_size} pixels')
    from_files(m, 'voice', voices, windows)
    from_files(m, 'face', faces, crops)
    export_onnx(m, Path(folder)/'onnx')
    other = {'voice': m.encode('face', crops[:16]), 'face': m.encode('voice', windows[:16])}
    for name, x in (('voice', windows), ('face', crops)): one_item(m, name, x[:16], other[name], Path(folder)/'onnx')
