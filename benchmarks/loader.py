"""How many examples a second do the loader's workers read?

    python benchmarks/loader.py [--seconds 3] [--size 112] [--workers 0 1 2]

Draws a corpus of 400 videos (wav of 5 s, JPEG of 144 pixels) into a temporary folder, reads batches of 64 for some
epochs, and prints wall seconds and the CPU seconds of all processes: on a busy machine compare the CPU seconds.
"""
import argparse, os, tempfile, time
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageFilter

from vfassoc.corpus.dataset import DistributedBatchSampler, PairDataset, make_loader
from vfassoc.corpus.manifest import scan


def write_tree(root:Path, people:int=100, videos:int=4, frames:int=3):
    rng = np.random.default_rng(0)
    for i in range(people):
        for v in range(videos):
            wav, jpg = root/f'wav/id{i}/v{i}_{v}', root/f'faces/P{i}/1.6/v{i}_{v}'
            wav.mkdir(parents=True)
            jpg.mkdir(parents=True)
            soundfile.write(wav/'00001.wav', 0.1*rng.standard_normal(80000), 16000)
            for k in range(frames):
                im = Image.fromarray(rng.integers(0, 255, (18, 18, 3),
                                                  np.uint8)).resize((144, 144), Image.Resampling.BICUBIC)
                im.filter(ImageFilter.GaussianBlur(1)).save(jpg/f'{25*(k + 1):07}.jpg', quality=90)
    (root/'vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 ID\n' + ''.join(f'id{i}\tP{i}\n' for i in range(people)))
    (root/'identity_splits.txt').write_text(''.join(f'P{i} 1\n' for i in range(people)))


class Epochs:
    "The batches of several epochs in a row, so that the start of the workers does not count."
    def __init__(self, n, epochs): self.n, self.epochs = n, epochs
    def __len__(self): return self.epochs*(self.n//64)
    def __iter__(self):
        for e in range(self.epochs): yield from DistributedBatchSampler(self.n, 64, 0, e)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=float, default=3.)
    p.add_argument('--size', type=int, default=112)
    p.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--epochs', type=int, default=8)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        write_tree(Path(d))
        data = PairDataset(scan(d, quiet=True), seconds=a.seconds, size=a.size)
        print('workers  examples/s  CPU ms/example  first batch after')
        for w in a.workers:
            start, cpu, n, first = time.perf_counter(), os.times(), 0, None
            for voice,face,idx in make_loader(data, Epochs(len(data), a.epochs), w):
                first, n = first or time.perf_counter() - start, n + len(idx)
            wall, end = time.perf_counter() - start, os.times()
            print(f'{w:7}  {n/wall:10.0f}  {1000*(sum(end[:4]) - sum(cpu[:4]))/n:14.2f}  {first:15.2f} s')


if __name__ == '__main__': main()
