"""How long does it take to scan a corpus as large as VoxCeleb1?

    python benchmarks/manifest.py [--videos 22000] [--clips 150000] [--frames 3] [--workers 1 2]

Writes a tree of short but valid wav and jpg files (hard links to one of each per identity) into a temporary folder,
scans it with several numbers of processes, and once more through the cache.
"""
import argparse, os, tempfile, time
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from vfassoc.core import progress
from vfassoc.corpus.layout import list_media
from vfassoc.corpus.manifest import load_or_scan, scan, summary


def write_tree(root:Path, people:int, videos:int, clips:int, frames:int):
    "`clips` over all videos, `frames` in each video; a person's files share one body."
    rng, (per, more) = np.random.default_rng(0), divmod(clips, videos)
    for i in progress(range(people), 'write', unit='person'):
        wav, jpg = root/f'{i}.wav', root/f'{i}.jpg'
        soundfile.write(wav, 0.1*rng.standard_normal(16000), 16000)
        Image.fromarray(rng.integers(0, 255, (28, 28, 3), np.uint8).repeat(4, 0).repeat(4, 1)).save(jpg, quality=90)
        for v in range(i, videos, people):
            voice, face = root/f'wav/id{i:05}/video{v:06}', root/f'faces/Person_{i}/1.6/video{v:06}'
            voice.mkdir(parents=True)
            face.mkdir(parents=True)
            for k in range(per + (v < more)): os.link(wav, voice/f'{k + 1:05}.wav')
            for k in range(frames): os.link(jpg, face/f'{25*(k + 1):07}.jpg')
        wav.unlink()
        jpg.unlink()
    rows = (f'id{i:05}\tPerson_{i}\t{"mf"[i%2]}\tNorway\tdev\n' for i in range(people))
    (root/'vox1_meta.csv').write_text('VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n' + ''.join(rows))
    (root/'identity_splits.txt').write_text(''.join(f'Person_{i} {(1, 1, 1, 2, 4)[i%5]}\n' for i in range(people)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--people', type=int, default=1251)
    p.add_argument('--videos', type=int, default=22000)
    p.add_argument('--clips', type=int, default=150000, help='of all videos together')
    p.add_argument('--frames', type=int, default=3, help='of each video')
    p.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    p.add_argument('--full', action='store_true', help='decode every file as well')
    a = p.parse_args()
    rows = []

    def timed(what, f):
        start, cpu = time.perf_counter(), os.times()
        result, end = f(), os.times()
        rows.append((what, time.perf_counter() - start, sum(end[:4]) - sum(cpu[:4])))
        return result

    with tempfile.TemporaryDirectory() as d:
        root = Path(d)/'corpus'
        root.mkdir()
        write_tree(root, a.people, a.videos, a.clips, a.frames)
        timed('walk only', lambda: list_media(root, quiet=True))
        for w in a.workers: m = timed(f'scan, {w} process{"es"*(w > 1)}', lambda: scan(root, w))
        if a.full: timed(f'full check, {a.workers[-1]} processes', lambda: scan(root, a.workers[-1], 'full'))
        timed('load_or_scan, new', lambda: load_or_scan(root, Path(d)/'cache', a.workers[-1]))
        again = timed('load_or_scan, nothing changed', lambda: load_or_scan(root, Path(d)/'cache', a.workers[-1]))
        assert again.report['cache'] == 'reused' and again.hash == m.hash
        timed('videos of the training split', lambda: m.videos('train'))
    print(f'\n{summary(m).to_string()}\n\n{"":32}{"seconds":>8}{"of CPU":>8}   files/s')
    for what,s,cpu in rows: print(f'{what:32}{s:8.2f}{cpu:8.2f}{len(m.table)/s:10.0f}')


if __name__ == '__main__': main()
