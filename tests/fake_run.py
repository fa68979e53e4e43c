"""Run folders as `vfassoc train` and `vfassoc evaluate` leave them, made without training, for tests of the reports.

The scores in metrics.json are computed from the embeddings and trials that lie beside them, with scikit-learn and
loops, so that a report's figure and its table must agree."""
import csv, itertools, json
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from PIL import Image
from safetensors.numpy import save_file
from sklearn.metrics import average_precision_score, roc_auc_score

PEOPLE, VIDEOS, CLIPS, FRAMES = 8, 2, 2, 2

def write_media(root:Path) -> pd.DataFrame:
    "A corpus of tones and gradients: path, modality, identity, video, gender, nationality, age of each file."
    rows = []
    for p, v in itertools.product(range(PEOPLE), range(VIDEOS)):
        who = dict(identity=f'id{p:05d}', video=f'v{p}_{v}', gender='mf'[p % 2],
                   nationality=['USA', 'India'][p//2 % 2], age=30. + p)
        for c in range(CLIPS):
            path = root/'wav'/who['identity']/who['video']/f'{c:05d}.wav'
            path.parent.mkdir(parents=True, exist_ok=True)
            t = np.arange(16000)/16000
            soundfile.write(path, .3*np.sin(2*np.pi*(150 + 60*p)*t).astype(np.float32), 16000)
            rows.append(dict(path=path.relative_to(root).as_posix(), modality='voice', **who))
        for c in range(FRAMES):
            path = root/'faces'/f'Person_{p}'/'1.6'/who['video']/f'{c:07d}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((48, 48, 3), (30*p, 200 - 20*p, 60*v + 40), np.uint8)).save(path)
            rows.append(dict(path=path.relative_to(root).as_posix(), modality='face', **who))
    return pd.DataFrame(rows)

def _pairs(voices, faces, same, rng) -> pd.DataFrame:
    "Every positive pair and as many impostors, which share the columns `same`."
    allowed = np.ones((len(voices), len(faces)), bool)
    for k in same: allowed &= voices[k].to_numpy()[:, None] == faces[k].to_numpy()
    one = voices.identity.to_numpy()[:, None] == faces.identity.to_numpy()
    pos, neg = np.argwhere(one), np.argwhere(allowed & ~one)
    neg = neg[rng.permutation(len(neg))[:len(pos)]]
    rows = np.concatenate([pos, neg])
    return pd.DataFrame(dict(voice=rows[:, 0], face=rows[:, 1], label=np.repeat([1, 0], [len(pos), len(neg)])))

def make_run(path:Path, corpus:Path, seed:int=0, name:str='CID', strength:float=1., corpus_hash:str='c0ffee',
             protocol:str='unseen', method:dict|None=None) -> Path:
    "A finished, evaluated run."
    media, rng = write_media(corpus) if not corpus.exists() else pd.read_parquet(
        corpus/'media.parquet'), np.random.default_rng(seed)
    media.to_parquet(corpus/'media.parquet')
    voices, faces = (media[media.modality == m].reset_index(drop=True) for m in ('voice', 'face'))
    who = np.random.default_rng(99).normal(size=(PEOPLE, 16))
    z = {m: strength*who[t.identity.str[2:].astype(int)] + rng.normal(size=(len(t), 16))*1.5
         for m,t in (('voice', voices), ('face', faces))}
    z = {m: (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for m,x in z.items()}
    sim = z['voice'] @ z['face'].T
    path.mkdir(parents=True)
    save_file(z, path/'embeddings.safetensors')
    pd.concat([voices, faces], ignore_index=True).to_parquet(path/'embeddings.parquet')
    scores, apart, trials = [], [], []
    def share(p):
        return float((voices.video.to_numpy()[p.voice] == faces.video.to_numpy()[p.face])[p.label == 1].mean())
    def add(task, metric, value, chance, stratum='U', direction='', candidates=None, n=0, same=None):
        spread = .05*value
        scores.append(dict(task=task, direction=direction, stratum=stratum, candidates=candidates, metric=metric,
                           value=float(value), low=float(max(0, value - spread)),
                           high=float(min(1, value + spread)), chance=chance, ceiling=min(1., float(value) + .1),
                           trials=n, identities=PEOPLE, same_video=same))
        for kind, by in dict(other_videos=value - .01, same_video=value + .03, gap=.04).items():
            apart.append({**scores[-1], 'positives': kind, 'value': float(by), 'low': float(by - spread),
                          'high': float(by + spread)})
    for stratum, cols in {'U': [], 'G': ['gender'], 'N': ['nationality'], 'GN': ['gender', 'nationality']}.items():
        p = _pairs(voices, faces, cols, rng).assign(stratum=stratum)
        p['score'] = sim[p.voice, p.face]
        one = voices.video.to_numpy()[p.voice] == faces.video.to_numpy()[p.face]
        p['positives'] = np.where(p.label == 0, '', np.where(one, 'same_video', 'other_videos'))
        add('verification', 'auc', roc_auc_score(p.label, p.score), .5, stratum, n=len(p), same=share(p))
        add('verification', 'eer', 1 - roc_auc_score(p.label, p.score), .5, stratum, n=len(p), same=share(p))
        trials.append(p.assign(task='verification', direction='', trial=range(len(p))))
        for direction, n in itertools.product(('v2f', 'f2v'), range(2, 6)):
            right = [s > sim[rng.integers(len(voices), size=n - 1), rng.integers(len(faces), size=n - 1)].max()
                     for s in p.score[p.label == 1]]
            add('matching', 'accuracy', np.mean(right), 1/n, stratum, direction, n, len(right), share(p))
        # not to be mistaken for the others
        trials.append(p.assign(task='matching', direction='v2f', trial=range(len(p)), score=-9.))
    for direction, s, a, b in (('v2f', sim, voices, faces), ('f2v', sim.T, faces, voices)):
        rel = a.identity.to_numpy()[:, None] == b.identity.to_numpy()
        rank = [1 + int(np.flatnonzero(r[np.argsort(-x)])[0]) for x,r in zip(s, rel)]
        values = dict(map=np.mean([average_precision_score(r, x) for x,r in zip(s, rel)]),
                      mrr=np.mean([1/k for k in rank]),
                      **{f'recall@{k}': np.mean([x <= k for x in rank]) for k in (1, 5, 10)})
        for metric, v in values.items():
            add('retrieval', metric, v, 1/PEOPLE, direction=direction, n=len(s), same=1/VIDEOS)
    trials = pd.concat(trials, ignore_index=True).astype(dict.fromkeys(('task', 'direction', 'stratum'), 'category'))
    trials[['task', 'direction', 'stratum', 'trial', 'voice', 'face', 'label',
            'score', 'positives']].to_parquet(path/'trials.parquet')
    def write(file, x):
        return (path/file).write_text(json.dumps(x))
    write('metrics.json', {'schema': 1, 'scores': scores, 'notes': ['A, GNA: no age in this corpus'],
                           'protocol': {'seed': 0, 'protocol': protocol}, 'by_positives': apart})
    write('config.json', {'name': name, 'corpus': 'fake', 'method': method or {'name': 'cid'},
                          'train': {'seed': seed, 'total_samples': 640}})
    write('provenance.json', dict(git_commit='0'*40, git_dirty=False, seed=seed, corpus='not here',
                                  corpus_hash='trained on', train_seconds=12.5,
                                  evaluated=dict(corpus=str(corpus), corpus_hash=corpus_hash, split='test', epoch=5)))
    with open(path/'history.csv', 'w', newline='') as f:
        w = csv.writer(f)
        w.writerow(['epoch', 'step', 'loss', 'valid_auc', 'lr', 'seconds'])
        w.writerows([e, 10*e, (4 + .3*seed)/e, .8 - (.3 + .02*seed)/e, 1e-3/e, 2*e] for e in range(1, 7))
    return path

def make_grid(root:Path, corpus:Path, finished:dict[str, int], planned:dict[str, int]|None=None, **methods) -> Path:
    "Write a sweep's folder: so many scored seeds per variant of `finished`; `planned` lists more for grid.json."
    plan = planned or finished
    cells = [dict(variant=v, seed=s, path=f'v{i}/seed{s}') for i, (v, n) in enumerate(plan.items()) for s in range(n)]
    for c in cells:
        if c['seed'] < finished.get(c['variant'], 0):
            make_run(root/c['path'], corpus, c['seed'], c['variant'], 1. + 2*list(plan).index(c['variant']),
                     method=methods.get(c['variant']))
    (root/'grid.json').write_text(json.dumps({'variants': {v: {} for v in plan}, 'cells': cells}))
    return root
