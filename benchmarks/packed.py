"""Reading pairs for training: loose files against the packed form, in one run.

    python benchmarks/packed.py [--size 224] [--videos 600] [--rounds 3]

Draws a corpus of VoxCeleb1's shape (8 s clips, JPEG faces somewhat larger than 224 pixels), packs it twice, and reads
all forms in turns through the loader of the training. After the first round the files are in the system's cache: the
times are those of opening, decoding and handing over, not of the disk.
"""
import argparse, os, tempfile, time
os.environ.setdefault('OMP_NUM_THREADS', '1')
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from vfassoc.corpus.dataset import DistributedBatchSampler, PairDataset, make_loader
from vfassoc.corpus.manifest import scan
from vfassoc.corpus.packed import PackConfig, load_pack, pack

def draw(root, videos, g):
    lines, meta = [], ['VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality']
    base = np.asarray(Image.fromarray(g.integers(0, 256, (20, 20, 3),
                                                 dtype=np.uint8)).resize((250, 250), Image.Resampling.BICUBIC)).astype(
                                                     np.int16)
    for k in range(videos):
        i = f'id{k//10:05d}'
        wav, face = root/'wav'/i/f'v{k:06d}', root/'faces'/f'P{k//10:05d}'/'1.6'/f'v{k:06d}'
        wav.mkdir(parents=True)
        face.mkdir(parents=True)
        for c in range(2): soundfile.write(wav/f'{c + 1:05d}.wav', g.normal(size=16000*8)*.05, 16000, subtype='PCM_16')
        for c in range(4):
            Image.fromarray((np.roll(base, int(g.integers(250)), 1) +
                             g.integers(-12, 13, base.shape)).clip(0, 255).astype(np.uint8)).save(
                                 face/f'{25*(c + 1):07d}.jpg', quality=85)
        if not k % 10:
            lines.append(f'P{k//10:05d} 1')
            meta.append(f'{i}\tP{k//10:05d}\tf\tUK')
    (root/'identity_splits.txt').write_text('\n'.join(lines))
    (root/'vox1_meta.csv').write_text('\n'.join(meta))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', type=int, default=224)
    p.add_argument('--videos', type=int, default=600)
    p.add_argument('--rounds', type=int, default=3)
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        draw(home/'tree', a.videos, np.random.default_rng(0))
        tree = scan(home/'tree', quiet=True)
        forms = {'loose files': tree}
        for name, cfg in (('packed, files', PackConfig()), (f'packed, pixels of {a.size}', PackConfig(pixels=a.size))):
            t = time.perf_counter()
            folder = pack(tree, home/name.replace(' ', '-'), cfg, quiet=True)
            t = time.perf_counter() - t
            forms[name] = load_pack(folder)
            print(f'{name}: packed in {t:.1f} s ({len(tree.table)/t:.0f} files/s), '
                  f'{sum(f.stat().st_size for f in folder.iterdir())/1e6:.0f} MB')
        for workers in (0, 2):
            rates = {k: [] for k in forms}
            for r in range(a.rounds):
                for name, m in forms.items():
                    data = PairDataset(m, 'train', 5., a.size)
                    t, n = time.perf_counter(), 0
                    # one loader for all of them: an epoch of VoxCeleb1 has 16,000 videos
                    plan = [b for epoch in range(8) for b in DistributedBatchSampler(len(data), 120, 0, epoch)]
                    for v, f, idx in make_loader(data, plan, workers): n += len(idx)
                    rates[name].append(n/(time.perf_counter() - t))
            base = np.median(rates['loose files'])
            for name, x in rates.items():
                print(f'{workers} workers, {name:<22} {np.median(x):7.0f} pairs/s (rounds '
                      f'{", ".join(f"{y:.0f}" for y in x)}), {np.median(x)/base:.2f} times loose files')
