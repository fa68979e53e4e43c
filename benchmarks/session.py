"""How strongly a session can be read: which of two videos of one person does a voice belong to? Chance is 50 %.

    python benchmarks/session.py [--session 1] [--people 80] [--videos 6] [--ridge 1]

Canonical correlations, fitted on three quarters of the people, score the rest: on latents, on drawn features (192 and
512 numbers, three weights of the cues, five times as many people), and on ten-number summaries of sound and pictures
of a drawn corpus.
"""
import numpy as np

from common import options
from vfassoc.synthetic.corpus import SynthConfig, draw_truth, make_media
from vfassoc.synthetic.population import PopulationModel, draw_features, draw_latents, session_accuracy

COUPLINGS, CUES = (0., .5, 1.), (0., .2, 1.)

def sound(x):
    "Summarize a clip: loudness, crest, roughness, and the logarithms of seven bands of its spectrum."
    x = x/32768.
    power = np.abs(np.fft.rfft(x))**2 + 1e-9
    bands = [np.log(b.mean()) for b in np.array_split(power, np.geomspace(20, len(power), 8).astype(int)[:-1])[1:]]
    level = x.std() + 1e-9
    return [np.log(level), np.log(np.abs(x).max()/level + 1e-9), np.abs(np.diff(x)).mean()/level, *bands]

def picture(x):
    "Summarize a picture: mean color of wall and face, contrast, detail at two scales, saturation."
    x = x/255.
    wall, face = x[:len(x)//6].reshape(-1, 3).mean(0), x[len(x)//3:2*len(x)//3, len(x)//3:2*len(x)//3]
    gray = x.mean(2)
    detail = [np.log(np.abs(gray[k:] - gray[:-k]).mean() + 1e-4) for k in (1, 4)]
    return [*wall, *face.reshape(-1, 3).mean(0), gray.std(), *detail, face.std()]

def media(session, coupling, people, videos):
    "Summarize the sound and the pictures of every video of a drawn corpus."
    cfg = SynthConfig(identities=people, videos_per_identity=videos, seconds=1., frames=1, size=64, session=session,
                      session_coupling=coupling, offscreen=0., buried=0., occluded=0., turned=0.)
    rows = draw_truth(cfg).assign(index=lambda t: np.arange(len(t))).to_dict('records')
    drawn = [make_media(row, cfg) for row in rows]
    return np.array([sound(clips[0]) for clips, _ in drawn]), np.array([picture(f[0]) for _, f in drawn])

def rows(a):
    "Yield each kind of vectors with its accuracy at the three couplings."
    def score(voice, face):
        person = np.repeat(np.arange(len(voice)//a.videos), a.videos)
        return session_accuracy(voice, face, person, person < .75*person.max(), a.ridge)
    drawn = {}
    for c in COUPLINGS:
        model, people = PopulationModel(session=a.session, session_coupling=c), 5*a.people
        person = np.repeat(np.arange(people), a.videos)
        drawn[c] = draw_latents(model, np.arange(people) % 10, person, np.random.default_rng(0))
    yield 'latents and cues', [score(*drawn[c]) for c in COUPLINGS]
    for w in CUES:
        yield f'features, weight of the cues {w:g}', [
            score(draw_features(v, 192, np.random.default_rng(1), cues=w),
                  draw_features(f, 512, np.random.default_rng(2), cues=w)) for v, f in drawn.values()]
    yield 'summaries of media', [score(*media(a.session, c, a.people, a.videos)) for c in COUPLINGS]

if __name__ == '__main__':
    a = options(__doc__, session=1., people=80, videos=6, ridge=1.)
    print(f'{"":34}' + ''.join(f'coupling {c:<6g}' for c in COUPLINGS))
    for name, values in rows(a): print(f'{name:34}' + ''.join(f'{100*x:<15.1f}' for x in values), flush=True)
