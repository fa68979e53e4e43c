"Talking heads for tests: drawn people say vowels, encoded by PyAV."
from functools import cache

import numpy as np

from vfassoc.core import rng_for
from vfassoc.synthetic.face import draw_pose, draw_scene, face_of
from vfassoc.synthetic.population import GENDERS, NATIONS, PopulationModel
from vfassoc.synthetic.render import render
from vfassoc.synthetic.voice import draw_room, record, speak, voice_of
from vfassoc.video.decode import write_video

SPEAKERS = (3, 6, 15, 11) # of those that were tried: silero-vad takes their voices for speech
FPS, SIZE = 4, 140


@cache
def person(k, seconds=5):
    "Images (n, 140, 140, 3) at 4 frames per second and sound (t,) int16 of a drawn person."
    rng = rng_for(0, 'talking', k)
    model = PopulationModel()
    voice, face = model.video(model.person(GENDERS[k % 2], NATIONS[k % 5], rng), rng)
    images = render(face_of(face), draw_scene(rng, SIZE), draw_pose(rng, seconds*FPS), SIZE, rng)
    return images, record(speak(voice_of(voice), seconds, rng), draw_room(rng), rng)


def stage(*heads):
    "Heads side by side on a gray wall."
    images = np.full((len(heads[0]), 160, 180*len(heads), 3), 110, np.uint8)
    for k, head in enumerate(heads): images[:, 10:150, 20 + 180*k:160 + 180*k] = head
    return images


def film(path, *people, sound=True, seconds=5, **options):
    "Write a film that shows some people and lets the first one speak."
    images = stage(*(person(k, seconds)[0] for k in people))
    write_video(path, images, person(people[0], seconds)[1] if sound is True else sound, fps=FPS, **options)
    return path
