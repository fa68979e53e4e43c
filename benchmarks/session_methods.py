"""CMPC, its options and the bound, with and without a session that voice and face of one video share.

    python benchmarks/session_methods.py [--session 0.7] [--seeds 5] [--samples 64000]

Features (192 and 512 numbers) of 300 people with 12 videos each, drawn from the population model; linear towers, 200
people to train on, the last step's weights. All positives of the test are of other videos, `gap` is the AUC of
positives of the same video less that. Each number is a mean over seeds; the difference to CID is paired by seed, with
a 95 % t interval. The last row reads labels.
"""
import argparse

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from sklearn.metrics import average_precision_score, roc_auc_score

from vfassoc.core import rng_for, seed_everything
from vfassoc.corpus.source import DataConfig
from vfassoc.methods.positives import Positives
from vfassoc.methods.registry import build_method
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel
from vfassoc.synthetic.population import GENDERS, NATIONS, PopulationModel, draw_features, draw_latents
from vfassoc.training.config import TrainConfig, lr_at, make_optimizer
from vfassoc.training.loop import reduce_rows

PEOPLE, OTHERS, VIDEOS, FILES, BATCH = 200, 100, 12, 3, 128
CID = {'name': 'cid', 'tau': .1}
CMPC = {'name': 'cmpc', 'tau': .1, 'num_prototypes': (100, 200, 300)}
PLAIN = {**CMPC, 'recalibration': False}
ANNEALED = {**PLAIN, 'instance_schedule': 'cosine', 'instance_weight': 0.}
OWN, FEATURES = {'positives': 'cluster'}, {'positives': 'cluster', 'cluster_by': 'both', 'num_clusters': PEOPLE}
ROWS = {'CID': (CID, {}), 'CMPC': (CMPC, {}), 'CMPC, weight from the cosine': ({**CMPC, 'weight_source': 'cosine'}, {}),
        'CMPC without recalibration': (PLAIN, {}), 'prototypes alone': ({**PLAIN, 'instance_weight': 0.}, {}),
        'annealed': (ANNEALED, {}), 'CID, feature clusters': (CID, FEATURES), 'CMPC, its clusters': (PLAIN, OWN),
        'annealed, its clusters': (ANNEALED, OWN), 'CID, oracle (labels)': (CID, {'positives': 'oracle'})}

class Vectors:
    "Features of the training videos, in place of a corpus."
    def __init__(self, identity, vectors):
        self.videos, self.vectors = pd.DataFrame({'identity': identity}), vectors

    def __len__(self): return len(self.videos)

    def video_means(self, modality): return self.vectors[modality].mean(1).numpy()

def draw(session, seed):
    "Draw identity and gender (n,) and features {modality: (n, FILES, d)} of all videos."
    rng, n = rng_for(seed, 'pilot'), PEOPLE*VIDEOS
    kind = rng.integers(len(GENDERS)*len(NATIONS), size=PEOPLE + OTHERS)
    who = np.repeat(np.arange(PEOPLE + OTHERS), VIDEOS)
    latents = draw_latents(PopulationModel(session=session), kind, who, rng)
    x = {}
    for m, z, d in zip(('voice', 'face'), latents, (192, 512)):
        each = torch.from_numpy(np.stack([draw_features(z, d, rng) for _ in range(FILES)], 1))
        x[m] = F.normalize(each - each[:n].mean((0, 1)), dim=2)
    return who, (kind//len(NATIONS))[who], x

@torch.no_grad()
def score(model, who, gender, x):
    "Score unseen people: AUC U and G and mAP with positives of other videos, and the gap."
    model.eval()
    s = (model.encode_voice(x['voice'][:, 0]) @ model.encode_face(x['face'][:, 0]).T).numpy()
    same, own = who[:, None] == who, np.eye(len(who), dtype=bool)
    def auc(positive, negative):
        asked = positive | negative
        return 100*roc_auc_score(positive[asked], s[asked])
    other = same & ~own
    ap = [average_precision_score(other[i][~own[i]], s[i][~own[i]]) for i in range(0, len(who), 3)]
    u = auc(other, ~same)
    return {'U': u, 'G': auc(other, ~same & (gender[:, None] == gender)), 'mAP': 100*np.mean(ap),
            'gap': auc(own, ~same) - u}

def train(table, data, seed, samples, who, x):
    "Train linear towers; return the model and the share of other videos' positives that are of the right person."
    seed_everything(seed)
    n = PEOPLE*VIDEOS
    cfg = TrainConfig(total_samples=samples, batch_size=BATCH, optimizer='adamw', peak_lr=1e-3, lr_start=1e-4,
                      lr_end=1e-5, lr_warmup=samples//12, weight_decay=.01, seed=seed)
    model = VoiceFaceModel(ModelConfig(encoder='linear', dim=128, voice_dim=192, face_dim=512, projection='none'))
    if table['name'] == 'cmpc': table = {**table, 'cid_samples': samples//8}
    if 'instance_schedule' in table: table = {**table, 'instance_samples': samples*7//16}
    method = build_method(table, model, n)
    pairs = Vectors(who[:n], {m: z[:n] for m, z in x.items()})
    positives, opt = Positives(DataConfig(**data), seed, method, pairs), make_optimizer(method.parameters(), cfg)
    step, epoch, right = 0, 0, np.nan
    method.train()
    while step < cfg.steps:
        method.on_epoch_start(epoch)
        rng = rng_for(seed, 'pilot order', epoch)
        order = rng.permutation(n)
        plan = [[(epoch, int(i)) for i in order[k*BATCH:(k + 1)*BATCH]] for k in range(n//BATCH)]
        plan = list(positives.plan(plan, epoch))
        drawn = np.array([key[1:] for keys in plan for key in keys])
        if data and len(elsewhere := drawn[drawn[:, 0] != drawn[:, 1]]): right = (np.diff(who[elsewhere]) == 0).mean()
        for keys in plan[:cfg.steps - step]:
            _, i, *j = np.array(keys).T
            a, b = rng.integers(FILES, size=(2, BATCH))
            for g in opt.param_groups: g['lr'] = lr_at(step*BATCH, cfg)
            face = x['face'][j[0] if j else i, b]
            reduce_rows(*method(x['voice'][i, a], face, *(torch.from_numpy(r.copy()) for r in (i, *j)))).backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
        epoch += 1
    return model, right

def table(session, seeds, samples):
    "Print the means over seeds and the paired differences to CID."
    n, rows = PEOPLE*VIDEOS, {name: [] for name in ROWS}
    for seed in range(seeds):
        who, gender, x = draw(session, seed)
        for name, (method, data) in ROWS.items():
            model, right = train(method, data, seed, samples, who, x)
            unseen = {m: z[n:] for m, z in x.items()}
            rows[name].append({**score(model, who[n:], gender[n:], unseen), 'right': 100*right})
    print(f'session {session}, {seeds} seeds, {samples} samples')
    base = pd.DataFrame(rows['CID'])
    for name, found in rows.items():
        found = pd.DataFrame(found)
        difference, words = found - base, []
        half = student.ppf(.975, seeds - 1)*difference.std(ddof=1)/seeds**.5
        for k in ('U', 'G', 'mAP', 'gap'):
            d = difference[k].mean()
            words.append(f'{k} {found[k].mean():5.2f} {d:+.2f} [{d - half[k]:.2f}, {d + half[k]:.2f}]')
        print(f'  {name:30}', ' | '.join(words), f'| right {found.right.mean():.0f} %', flush=True)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--session', type=float, nargs='*', default=[0., .7], help='strength of the session')
    p.add_argument('--seeds', type=int, default=5, help='repetitions, 2 or more')
    p.add_argument('--samples', type=int, default=64_000, help='videos seen in training')
    a = p.parse_args()
    torch.set_num_threads(1)
    for s in a.session: table(s, a.seeds, a.samples)
