"""Times real time of `vfassoc ingest` on one core, and the share of each stage.

    python benchmarks/ingest.py [--minutes 2] [--height 720] [--video FILE]

Draws a talking head at 25 frames per second, encodes it as H.264, and extracts it with one thread; --video takes a
video of yours. The last line is the peak of resident memory before and after: it must not depend on the length."""
import argparse, os, resource, tempfile, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument('--minutes', type=float, default=1)
parser.add_argument('--height', type=int, default=720)
parser.add_argument('--video')
args = parser.parse_args()
os.environ.update(OMP_NUM_THREADS='1')

import numpy as np
import torch

from vfassoc.core import rng_for
from vfassoc.synthetic.face import draw_pose, draw_scene, face_of
from vfassoc.synthetic.population import GENDERS, NATIONS, PopulationModel
from vfassoc.synthetic.render import render
from vfassoc.synthetic.voice import draw_room, record, speak, voice_of
from vfassoc.video.decode import write_video
from vfassoc.video.extraction import extract_video

torch.set_num_threads(1)


class Film:
    "Frames made when they are asked for: a head of 0.45 of the height, moving before a patterned wall."
    def __init__(self, seconds, height):
        rng = rng_for(0, 'talking', 3)
        voice, face = PopulationModel().video(PopulationModel().person(GENDERS[1], NATIONS[3], rng), rng)
        size = int(.45*height)
        self.seconds, self.size = seconds, size
        self.heads = render(face_of(face), draw_scene(rng, size), draw_pose(rng, 10), size, rng)
        wall = rng.integers(60, 160, (height//40, height*16//9//40, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)
        self.wall = wall[:height//2*2, :wall.shape[1]//2*2]
        self.sound = np.tile(record(speak(voice_of(voice), 20, rng), draw_room(rng), rng), -(-seconds//20))
        self.sound = self.sound[:seconds*16_000]

    def __len__(self): return 25*self.seconds

    def __getitem__(self, k):
        frame, (h, w) = self.wall.copy(), self.wall.shape[:2]
        y, x = (h - self.size)//2, (w - self.size)//2 + int(20*np.sin(k/13))
        frame[y:y + self.size, x:x + self.size] = self.heads[(k//50) % 10]
        return frame


def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


with tempfile.TemporaryDirectory() as folder:
    path = args.video
    if not path:
        path, film = Path(folder)/'film.mp4', Film(max(20, int(60*args.minutes)), args.height)
        write_video(path, film, film.sound)
        short = Path(folder)/'short.mp4'
        write_video(short, Film(20, args.height), film.sound[:320_000])
        (Path(folder)/'warm').mkdir()
        extract_video(short, Path(folder)/'warm') # loads the networks
    before = memory()
    (Path(folder)/'out').mkdir()
    wall, cpu = time.perf_counter(), time.process_time()
    found = extract_video(path, Path(folder)/'out')
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    kept = sum(s['end'] - s['begin'] for s in found['segments'] if not s['dropped'])
    seconds = found['seconds']
    print(f'{seconds:.0f} s of {args.video or f"drawn video, {args.height}p"}, {kept:.0f} s kept: '
          f'{seconds/wall:.1f} x real time by the clock, {seconds/cpu:.1f} x by processor time')
    stages = {k: v for k, v in found['stage_seconds'].items() if k != 'all'}
    for name, s in sorted(stages.items(), key=lambda kv: -kv[1]): print(f'  {name:<8} {s/sum(stages.values()):6.1%}')
    print(f'  peak memory before {before:.0f} MiB, after {memory():.0f} MiB')
