"""What the synthetic corpus costs: videos a second (1 clip of 3 s, 3 frames of 112 x 112) and where the time goes.

    python benchmarks/synthetic.py [--workers 2] [--videos 400] [--repeat 3]
"""
import argparse, os, resource, tempfile, time
from pathlib import Path

import numpy as np

from vfassoc.synthetic.corpus import FACE_COLUMNS, VOICE_COLUMNS, SynthConfig, draw_truth, write_corpus
from vfassoc.synthetic.face import draw_pose, draw_scene, face_of
from vfassoc.synthetic.population import Oracle, PopulationModel
from vfassoc.synthetic.render import render
from vfassoc.synthetic.voice import draw_room, record, speak, voice_of

def cpu(): return sum(sum(resource.getrusage(w)[:2]) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

def best(f, repeat=15): # ms of CPU
    times = []
    for _ in range(repeat):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return 1e3*min(times)

def parts():
    row = draw_truth(SynthConfig(identities=1)).iloc[0]
    voice, face = voice_of(row[VOICE_COLUMNS].to_numpy(float)), face_of(row[FACE_COLUMNS].to_numpy(float))
    rng = np.random.default_rng(0)
    x, room, scene, pose = speak(voice, 3, rng), draw_room(rng), draw_scene(rng, 112), draw_pose(rng, 3)
    said, taken = best(lambda: speak(voice, 3, rng)), best(lambda: record(x, room, rng))
    set_up, drawn = best(lambda: draw_scene(rng, 112)), best(lambda: render(face, scene, pose, 112, rng))
    print(f'CPU: voice of 3 s {said:.1f} ms, room {taken:.1f} ms, scene {set_up:.1f} ms, 3 frames {drawn:.1f} ms')
    oracle, v, f = Oracle.of(PopulationModel()), rng.standard_normal((4000, 11)), rng.standard_normal((4000, 22))
    print(f'oracle 4000 x 4000: {best(lambda: oracle.block(v, f), 3)/1e3:.2f} s of CPU')

def corpus(workers, videos):
    with tempfile.TemporaryDirectory() as d:
        start, used = time.perf_counter(), cpu()
        write_corpus(Path(d)/'c', SynthConfig(identities=-(-videos//4)), workers)
        wall = time.perf_counter() - start
        return videos/wall, 1e3*(cpu() - used)/videos

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--videos', type=int, default=400)
    p.add_argument('--repeat', type=int, default=3)
    a = p.parse_args()
    parts()
    rates = [corpus(a.workers, a.videos) for _ in range(a.repeat)]
    print(f'{a.workers} workers, load {os.getloadavg()[0]:.1f}: best {max(r for r,_ in rates):.0f} videos/s '
          f'(each run: {", ".join(f"{r:.0f}" for r,_ in rates)}), {min(c for _,c in rates):.0f} ms of CPU per video')
