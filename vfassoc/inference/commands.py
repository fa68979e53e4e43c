"""Commands that ask a trained model: embed, rank, verify, search and others. Plumbing, by hand (not exported)."""
import json, sys
from pathlib import Path

import numpy as np

from vfassoc.core import ConfigError, RunError, atomic_path, require


def opened(a, s):
    "The model that a command names."
    from vfassoc.inference.demo_model import DEMO
    from vfassoc.inference.matcher import load
    model = DEMO if getattr(a, 'demo', False) or not a.model else a.model
    return load(model, s.torch_device, getattr(a, 'encoder', '') or '', s)


def show(table, a):
    "Print a table as JSON, as CSV, or to be read."
    if a.json: return print(json.dumps(json.loads(table.to_json(orient='records')), indent=1, ensure_ascii=False))
    if a.csv: return print(table.to_csv(index=False, lineterminator='\n'), end='')
    print(table.to_string(index=False, float_format='{:.3f}'.format))


def embed(a, s):
    import pandas as pd
    if not (a.output or a.json or a.csv): raise ConfigError('embed: say where to: -o FILE.npz, --csv or --json')
    if a.output and Path(a.output).suffix != '.npz': raise ConfigError(f'embed: {a.output} does not end in .npz')
    files = {k: find_media(a.media, k, must=False) for k in ('voice', 'face')}
    if not any(files.values()): find_media(a.media, 'voice')
    m, quiet = opened(a, s), not sys.stderr.isatty()
    z = {'voice': m.embed_voices(files['voice'], quiet=quiet), 'face': m.embed_faces(files['face'], a.crop, quiet)}
    if a.output:
        with atomic_path(a.output) as tmp, open(tmp, 'wb') as f:
            np.savez(f, **z, **{f'{k}_path': np.array(list(map(str, files[k])), str) for k in z},
                     model=np.array(m.digest))
        if not (a.json or a.csv): return print(f'{a.output}: {len(z["voice"])} voices, {len(z["face"])} faces')
    rows = [dict(path=str(p), modality=k, **{f'z{i}': float(x) for i, x in enumerate(v)})
            for k in z for p, v in zip(files[k], z[k])]
    show(pd.DataFrame(rows), a)


def find_media(*args, **kw):
    from vfassoc.inference.queries import find_media as find
    return find(*args, **kw)


def _prior(a):
    require(0 < a.prior < 1, a.command, 'prior', a.prior, 'between 0 and 1')
    return a.prior


def rank(a, s):
    words = [w for w in (a.model, a.query, *a.gallery) if w] if a.demo else [a.query, *a.gallery]
    require(a.top >= 1, 'rank', 'top', a.top, '1 or more')
    if a.demo and not words: return rank_drawn(a, s)
    if len(words) < 2 or not words[0]: raise ConfigError('rank: give a model, a voice and faces (or --demo)')
    m, (query, *gallery) = opened(a, s), words
    asks = 'voice' if find_media([query], 'voice', must=False) else 'face'
    other, direction = ('face', 'v2f') if asks == 'voice' else ('voice', 'f2v')
    show(m.rank(query, find_media(gallery, other), a.top, direction, _prior(a), crop=a.crop), a)


def rank_drawn(a, s):
    "Draw ten people, and rank their faces for the voice of the first."
    from vfassoc.inference.demo_model import drawn_people
    m = opened(a, s)
    voices, faces, names = drawn_people()
    table = m.rank(voices[0], faces, a.top, prior=_prior(a))
    if not (a.json or a.csv): print(f'{names[0]} speaks; the model was trained on drawn people, and these are drawn')
    show(table.assign(name=[names[r] for r in table['row']]), a)


def verify(a, s):
    import pandas as pd
    m = opened(a, s)
    score = m.score(a.voice, a.face, crop=a.crop)
    table = pd.DataFrame(dict(voice=[a.voice], face=[a.face], score=[score]))
    if m.calibration is not None: table['accepted'] = table.score > m.calibration.threshold
    show(m.calibrated(table, _prior(a)), a)


def calibrate(a, s):
    from vfassoc.inference.calibration import calibrate_run
    from vfassoc.training.run import run_path
    c = calibrate_run(path := run_path(a.run, s), s, a.rate, corpus=a.corpus or '')
    print(f'{path}: log-likelihood ratio = {c.scale:.3f} x {c.scorer} {c.shift:+.3f}; {c.trials:,} pairs of '
          f'{c.identities} validation identities, C_llr {c.cllr:.3f} bit\naccept above {c.threshold:.3f} '
          f'[{c.threshold_low:.3f}, {c.threshold_high:.3f}] for a false-match rate of {c.rate:g}')


def save(a, s):
    print(opened(a, s).save_pretrained(a.output))


def onnx(a, s):
    from vfassoc.inference.onnx import export_onnx
    for path in export_onnx(opened(a, s), a.output): print(path)


def app(a, s):
    from vfassoc.inference.app import serve
    m = opened(a, s)
    serve(m, m.open_index(a.index) if a.index else None, a.port, lambda address: print(address, flush=True))


def index(a, s):
    m, kind = opened(a, s), 'voice' if a.voices else 'face'
    there = (Path(a.output)/'index.json').is_file()
    if there and not a.append: raise RunError(f'{a.output}: holds an index; add to it with --append, or choose another')
    if a.append and not there: raise RunError(f'{a.output}: no index to append to; leave --append out')
    made = m.index(find_media(a.media, kind), a.output, kind, skip=True, quiet=not sys.stderr.isatty(), crop=a.crop)
    if made.skipped:
        print(f'{len(made.skipped)} {kind}s are left out; the first: {next(iter(made.skipped.values()))}',
              file=sys.stderr)
    if a.kind != 'auto': made.build(a.kind)
    print(f'{a.output}: {len(made):,} {kind}s')


def search(a, s):
    require(a.top >= 1, 'search', 'top', a.top, '1 or more')
    m = opened(a, s)
    show(m.open_index(a.index).search(a.query, a.top, prior=_prior(a), crop=a.crop), a)


def _common(q, model=True):
    if model: q.add_argument('model', help='a run (name under `runs`, or a path), a model folder, or owner/model')
    q.add_argument('--encoder', metavar='RUN', help='of a model that learnt from features: the run that made them')
    how = q.add_mutually_exclusive_group()
    how.add_argument('--json', action='store_true', help='print JSON')
    how.add_argument('--csv', action='store_true', help='print CSV')
    crop = q.add_mutually_exclusive_group()
    crop.add_argument('--crop', dest='crop', action='store_true', default=None,
                      help='look for a face in every image (default: in images that are far from a face crop)')
    crop.add_argument('--no-crop', dest='crop', action='store_false', help='take every image as it is')


def _answer(q):
    q.add_argument('--top', type=int, default=10, help='how many answers (default: 10)')
    q.add_argument('--prior', type=float, default=.5, help='probability of one identity beforehand (default: 0.5)')


def add_commands(add):
    "Declare the commands; `add(function, text)` returns a parser."
    for declare in (_add_asking, _add_model, _add_index): declare(add)


def _add_asking(add):
    q = add(embed, 'embed voices and faces with a trained model')
    _common(q)
    q.add_argument('media', nargs='+', help='sound files, images, or folders of them')
    q.add_argument('-o', '--output', metavar='FILE.npz', help='arrays voice, face, voice_path, face_path')
    q = add(rank, 'rank faces for a voice, or voices for a face')
    q.add_argument('model', nargs='?', help='a run, a model folder, or owner/model')
    q.add_argument('query', nargs='?', help='a sound file, or an image')
    q.add_argument('gallery', nargs='*', help='images (sound files for an image), or folders of them')
    q.add_argument('--demo', action='store_true',
                   help='the model in this package, trained on drawn people; alone: it ranks drawn people')
    _common(q, False)
    _answer(q)
    q = add(verify, 'score one voice against one face')
    _common(q)
    q.add_argument('voice', help='a sound file')
    q.add_argument('face', help='an image')
    q.add_argument('--prior', type=float, default=.5, help='probability of one identity beforehand (default: 0.5)')


def _add_model(add):
    q = add(calibrate, 'fit probabilities and a threshold to the scores of a run, on its validation identities')
    q.add_argument('run', help='a name under `runs`, or a path')
    q.add_argument('--corpus', help="instead of the run's own")
    q.add_argument('--rate', type=float, default=.01, help='of false matches, for the threshold (default: 0.01)')
    q = add(save, 'write a run as a model folder: safetensors, configuration, calibration, model card')
    q.add_argument('model', help='a run (name under `runs`, or a path)')
    q.add_argument('--encoder', metavar='RUN', help='of a model that learnt from features: the run that made them')
    q.add_argument('-o', '--output', required=True, metavar='FOLDER', help='new or empty')
    q = add(onnx, 'write a model as ONNX files: voice encoder, face encoder, fusion scorer')
    q.add_argument('model', help='a run (name under `runs`, or a path), a model folder, or owner/model')
    q.add_argument('--encoder', metavar='RUN', help='of a model that learnt from features: the run that made them')
    q.add_argument('-o', '--output', required=True, metavar='FOLDER', help='new or empty')
    q = add(app, 'show a page on this machine (127.0.0.1) on which a model can be asked')
    q.add_argument('model', nargs='?', help='a run, a model folder, or owner/model (default: the demo model)')
    q.add_argument('--encoder', metavar='RUN', help='of a model that learnt from features: the run that made them')
    q.add_argument('--index', metavar='FOLDER', help='a gallery to search when no files are dropped')
    q.add_argument('--port', type=int, default=7860, help='of the page (default: 7860; 0: any that is free)')


def _add_index(add):
    q = add(index, 'embed a gallery into an index that can be searched')
    _common(q)
    q.add_argument('media', nargs='+', help='images, or folders of them')
    q.add_argument('-o', '--output', required=True, metavar='FOLDER', help='the index')
    q.add_argument('--voices', action='store_true', help='the gallery is of voices')
    q.add_argument('--append', action='store_true', help='add to the index that is there')
    q.add_argument('--kind', choices=('auto', 'ivf', 'hnsw'), default='auto',
                   help='of an approximate search (default: exact up to a million items, then ivf)')
    q = add(search, 'search an index with a voice (with a face, if it is of voices)')
    _common(q)
    q.add_argument('index', help='a folder that `vfassoc index` made')
    q.add_argument('query', help='a sound file, or an image')
    _answer(q)
