"""VoxCeleb1 at its true size, without its media.

    python benchmarks/voxceleb.py lists FOLDER META   read and score CMPC's released lists and galleries,
                                                      with intervals, from drawn 512-d vectors
    python benchmarks/voxceleb.py tree INDEX META     build a tree of the index's size from hard links, prepare it twice
"""
import argparse, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import vfassoc.evaluation.protocol as protocols
from vfassoc.corpus.layout import read_metadata
from vfassoc.corpus.voxceleb1 import read_index
from vfassoc.evaluation.protocol import ProtocolConfig
from vfassoc.evaluation.published import evaluate_lists, resolve_lists
from vfassoc.evaluation.run_published import baseline_vectors, listed_media
from vfassoc.evaluation.scorers import CosineScorer, Embeddings
from vfassoc.evaluation.trial_files import read_lists

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6

def lists(folder, metadata):
    marks, t0 = [], time.perf_counter()
    def mark(what):
        nonlocal t0
        marks.append((what, time.perf_counter() - t0, peak()))
        print(f'{what:<55} {marks[-1][1]:6.1f} s, peak so far {marks[-1][2]:.2f} GB', flush=True)
        t0 = time.perf_counter()
    meta = read_metadata(metadata)
    named, _ = read_lists(folder)
    voices, faces = listed_media(named, metadata)
    found = resolve_lists(named, voices, faces, dict(zip(meta['name'], meta.index)))
    del named
    mark(f'{sum(x.lines for x in found):,} lines read and resolved')
    emb = Embeddings(*(baseline_vectors('gender', t, 512, 0, m) for m, t in (('voice', voices), ('face', faces))),
                     voices, faces)
    mark(f'{len(voices):,} voices, {len(faces):,} faces: vectors of 512 drawn')
    scorer = CosineScorer(emb, own=True)
    mark('unit vectors')
    fewest, protocols.MIN_IDENTITIES = protocols.MIN_IDENTITIES, 10**9
    evaluate_lists(scorer, found, voices, faces, ProtocolConfig(candidates=(2,)), [], quiet=True)
    mark('all scores, without intervals')
    protocols.MIN_IDENTITIES = fewest
    r = evaluate_lists(scorer, found, voices, faces, ProtocolConfig(candidates=(2,)), [], quiet=True)
    mark('all scores again, with intervals (1,000 draws of people)')
    print(f'scores from vectors: {marks[2][1] + marks[3][1]:.1f} s (aim: 20 s); intervals add '
          f'{marks[4][1] - marks[3][1]:.1f} s (aim: 60 s); peak {peak():.2f} GB (aim: 2 GB)')
    t = r.table[r.table.metric.isin(['auc', 'accuracy', 'map'])]
    print(t[['list', 'metric', 'direction', 'value', 'low', 'high', 'chance']].round(4).to_string(index=False))

def tree(index, metadata, faces_per_video=55):
    "Tiny valid files, linked as often as a file system allows; what is timed is the walk, the headers and the table."
    d, name = read_index(index), read_metadata(metadata)['name']
    with tempfile.TemporaryDirectory(dir=os.environ.get('TMPDIR')) as home:
        home, t0 = Path(home), time.perf_counter()
        import soundfile
        soundfile.write(home/'v.wav', np.random.default_rng(0).normal(size=16000)*.1, 16000, subtype='PCM_16')
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(home/'f.jpg')
        seeds = {'v.wav': [0, None], 'f.jpg': [0, None]}
        def link(kind, to):
            n, src = seeds[kind]
            if n % 60_000 == 0:
                src = home/f'{n//60_000}-{kind}'
                src.write_bytes((home/kind).read_bytes())
                seeds[kind][1] = src
            os.link(src, to)
            seeds[kind][0] += 1
        root = home/'voxceleb1'
        for (i, v), g in d.groupby(['identity', 'video']):
            a, b = root/'wav'/i/v, root/'faces'/name[i]/'1.6'/v
            a.mkdir(parents=True)
            b.mkdir(parents=True)
            for u in g.utterance: link('v.wav', a/f'{u}.wav')
            for k in range(faces_per_video): link('f.jpg', b/f'{25*(k + 1):07d}.jpg')
        (root/'vox1_meta.csv').write_bytes(Path(metadata).read_bytes())
        people = sorted(d.identity.unique())
        (root/'identity_splits.txt').write_text(''.join(f'{name[i]} {1 if k < 901 else 2 if k < 1001 else 4}\n'
                                                        for k, i in enumerate(people)))
        n = seeds['v.wav'][0], seeds['f.jpg'][0]
        print(f'{n[0]:,} clips and {n[1]:,} faces in {d.drop_duplicates(["identity", "video"]).shape[0]:,} videos, '
              f'laid out in {time.perf_counter() - t0:.0f} s', flush=True)
        (home/'settings.ini').write_text(f'[vfassoc]\ndata = {home}\nruns = {home}/runs\nfigures = '
                                         f'{home}/figures\nworkers = 2\n')
        for what in ('first', 'again, nothing changed'):
            t0 = time.perf_counter()
            r = subprocess.run([sys.executable, '-m', 'vfassoc', '--settings', str(home/'settings.ini'), 'prepare',
                                'voxceleb1'], capture_output=True, text=True)
            print(f'vfassoc prepare, {what}: {time.perf_counter() - t0:.0f} s; rc {r.returncode}; peak of children '
                  f'{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1e6:.2f} GB', flush=True)
            if r.returncode: print(r.stderr[-500:])
        print(r.stdout)
        print({p.name: p.stat().st_size for p in (home/'.cache').iterdir()})

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=('lists', 'tree'))
    p.add_argument('folder')
    p.add_argument('metadata')
    a = p.parse_args()
    (lists if a.what == 'lists' else tree)(a.folder, a.metadata)
