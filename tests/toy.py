"A training run for tests: noise as videos, a small model, batches that are a function of (seed, epoch, row)."
import os, signal, sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from vfassoc.core import RunFolder, rng_for, seed_everything, rank_and_world
from vfassoc.corpus.source import DataConfig
from vfassoc.methods.positives import Positives
from vfassoc.methods.registry import build_method
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel
from vfassoc.training.config import TrainConfig
from vfassoc.training.loop import fit, make_accelerator

N, BATCH = 48, 8
METHODS = {'cid': {'name': 'cid'}, # the warm-up of the others ends in the first epoch
           'cmpc': {'name': 'cmpc', 'num_prototypes': (4, 9), 'cid_samples': 30, 'tau': .1},
           'cmpc-annealed': {'name': 'cmpc', 'num_prototypes': (4, 9), 'cid_samples': 30, 'tau': .1,
                             'instance_schedule': 'cosine', 'instance_weight': 0., 'instance_samples': 70,
                             'weight_source': 'cosine'},
           'faa': {'name': 'faa', 'patience': 1, 'min_clusters': 5, 'negative_mining': 'sampled',
                   'fusion': dict(dim=8, layers=2, heads=2, inner=16, dropout=0.)},
           'faa-hardest': {'name': 'faa', 'clustering': 'fixed', 'n_clusters': 12,
                           'fusion': dict(dim=8, layers=2, heads=2, inner=16, dropout=0.)},
           'cmpc-released': {'name': 'cmpc-released', 'num_prototypes': (4, 9), 'cid_samples': 30, 'cluster_every': 4,
                             'tau': .1}}


def batches(epoch, start, before=lambda step: None, rank=0, n=1, positives=None):
    order = rng_for(0, 'order', epoch).permutation(N)
    for k in range(start, N//BATCH):
        before(epoch*(N//BATCH) + k)
        idx = torch.from_numpy(order[k*BATCH:(k + 1)*BATCH].copy())[rank*BATCH//n:(rank + 1)*BATCH//n]
        voice = noise(epoch, idx)
        if positives is None: yield voice, picture(voice), idx
        else:
            (keys,) = positives.plan([[(epoch, int(i)) for i in idx]], epoch)
            other = torch.tensor([k[2] for k in keys])
            yield voice, picture(noise(epoch, other)), idx, other


def noise(epoch, idx):
    return torch.stack([torch.from_numpy(rng_for(epoch, int(i)).standard_normal(3200)).float() for i in idx])


def picture(voice): return (voice[:, :3*16*16].reshape(-1, 3, 16, 16)*40 + 128).clamp(0, 255).to(torch.uint8)


def build(dim=8, projection='shared', method={'name': 'cid'}):
    seed_everything(0)
    made = build_method(method, VoiceFaceModel(ModelConfig(dim=dim, projection=projection)), N)
    made.embed_training_set = lambda: pooled(made.model)
    return made


@torch.no_grad()
def pooled(model):
    "Vectors of all videos, for methods that cluster them (eq. (1) of FAA, one clip and one face each)."
    voice, face, idx = (torch.cat(c) for c in zip(*batches(0, 0)))
    training = model.training
    model.eval()
    z = torch.cat([model.encode_face(face), model.encode_voice(voice)], 1)[idx.argsort()]
    model.train(training)
    return z


class Dropping(torch.nn.Module):
    "Wraps a tower with dropout, so that the global random state matters."
    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, x): return torch.nn.functional.dropout(self.tower(x), .2, self.training)


def run(path, before=lambda step: None, steps=18, dropout=False, validate=None, method={'name': 'cid'}, positives=None,
        **cfg):
    path = Path(path)
    model = build(method=method)
    if dropout: model.model.voice = Dropping(model.model.voice)
    cfg = TrainConfig(**{**dict(total_samples=steps*BATCH, batch_size=BATCH, lr_warmup=0, checkpoint_every=4), **cfg})
    acc = make_accelerator(RunFolder(path), cpu=True)
    rank, n = rank_and_world()
    drawn = positives and Positives(DataConfig(**positives), 0, model, range(N))
    result = fit(model, lambda e, s: batches(e, s, before, rank, n, drawn), N//BATCH, cfg, RunFolder(path), validate,
                 accelerator=acc, quiet=True)
    return model, result


def killed(folder, at):
    "Train, with SIGKILL before step `at` (-1: never); then the weights go to end.safetensors."
    model, _ = run(folder, lambda s: os.kill(os.getpid(), signal.SIGKILL) if s == at else None, dropout=True)
    save_file({k: v.contiguous() for k,v in model.state_dict().items()}, folder + '/end.safetensors')


if __name__ == '__main__': # toy.py FOLDER AT
    torch.set_num_threads(1)
    killed(sys.argv[1], int(sys.argv[2]))
