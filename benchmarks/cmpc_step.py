"""What CMPC costs beside its encoders: python benchmarks/cmpc_step.py [--device cpu] [--encoder-steps 2] [--steps 20]

Batch 128, 512 dimensions, 21,063 videos, K = 500, 1000, 1500.
The encoder's step: two ResNet-34 on 64 x 500 log-mels (from 5 s of sound) and 224 x 224 faces, forward and backward.
The method's step: from embeddings to the gradient at the embeddings, with memories and rho written.
The contenders take turns in one run: CID, CMPC without and with recalibration. Ratios are to the encoder's step (aim:
CMPC adds at most 5 %). Also measured: one re-clustering, spread over the steps of an epoch.
"CMPC, looking" is the same method with writers that read every batch (`unique`, boolean masks, `if bad.any()`): on a
GPU each such read waits for all queued kernels. `--no-encoder` skips the encoder's step and the ratios.
"""
import argparse, os, statistics, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--device', default='cpu')
parser.add_argument('--threads', type=int, default=2)
parser.add_argument('--steps', type=int, default=20, help="of each method")
parser.add_argument('--encoder-steps', type=int, default=2)
parser.add_argument('--precision', choices=('no', 'bf16'), default='no')
parser.add_argument('--compile', action='store_true', help='torch.compile the towers')
parser.add_argument('--no-encoder', action='store_true', help='only the methods')
parser.add_argument('--quick', action='store_true', help='small towers, 2,000 videos, K = 50, 100: to see that it runs')
args = parser.parse_args()
os.environ.update(OMP_NUM_THREADS=str(args.threads), OMP_WAIT_POLICY='PASSIVE')

import torch
import torch.nn.functional as F

from vfassoc.clustering.memory import Memory, ScalarMemory
from vfassoc.methods.registry import build_method
from vfassoc.models.two_tower import ModelConfig, VoiceFaceModel
from vfassoc.training.loop import reduce_rows

device = torch.device(args.device)
if device.type == 'cpu': torch.set_num_threads(args.threads)
N, KS, B = (2000, (50, 100), 64) if args.quick else (21_063, (500, 1000, 1500), 128)
torch.manual_seed(0)
model = VoiceFaceModel(ModelConfig('small', 128, 'none') if args.quick
                       else ModelConfig('resnet34', 512, 'shared', channels_last=True)).to(device)
d = model.cfg.dim
if args.compile: model.voice, model.face = torch.compile(model.voice), torch.compile(model.face)
sync = torch.cuda.synchronize if device.type == 'cuda' else lambda: None


class Looking:
    "Writers as one would write them first: what is wrong is seen at once, and each row is written once."
    def arrive(self, values, idx, unknown=False):
        values, idx = values.detach().float(), idx.detach()
        if unknown: values, idx = values[~values.isnan()], idx[~values.isnan()]
        if len(idx) == 0: return values, idx
        if idx.min() < 0 or idx.max() >= len(self.seen): raise ValueError('row')
        bad = ~values.isfinite().flatten(1).all(1) if values.ndim > 1 else ~values.isfinite()
        if bad.any(): raise ValueError('not finite')
        order = torch.arange(len(idx), device=idx.device)
        rows, back = idx.unique(return_inverse=True)
        return values[torch.zeros_like(rows).scatter_reduce_(0, back, order, 'amax', include_self=False)], rows


class LookingMemory(Looking, Memory):
    @torch.no_grad()
    def update(self, z, idx):
        z, idx = self.arrive(z, idx)
        self.rows[idx] = torch.where(self.seen[idx, None], self.momentum*self.rows[idx] + (1 - self.momentum)*z, z)
        self.seen[idx] = True


class LookingRho(Looking, ScalarMemory):
    @torch.no_grad()
    def update(self, rho, idx):
        rho, idx = self.arrive(rho, idx, unknown=True)
        self.values[idx] = rho
        self.seen[idx] = True

    def mean_std(self):
        if not self.seen.any(): raise ValueError('none')
        x = self.values[self.seen].double()
        return x.mean().float(), x.std(correction=0).float()


def timed(f, n):
    "Seconds of each of n calls."
    out = []
    for _ in range(n):
        sync()
        t = time.perf_counter()
        f()
        sync()
        out.append(time.perf_counter() - t)
    return out


voice, face = torch.randn(B, 80_000, device=device), torch.randint(0, 256, (B, 3, 224, 224), dtype=torch.uint8,
                                                                   device=device)
if args.quick: voice, face = voice[:, :24_000], face[..., :64, :64]
opt = torch.optim.Adam(model.parameters(), 1e-4)


def encoder_step():
    with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == 'bf16'): v, f = model(voice, face)
    (v*f).sum().backward()
    opt.step()
    opt.zero_grad(set_to_none=True)


people = F.normalize(torch.randn(N//17, d), dim=1)
who = torch.randint(0, len(people), (N,))
memory = {m: F.normalize(people[who] + .6*torch.randn(N, d)/d**.5, dim=1).to(device) for m in ('voice', 'face')}
base = dict(name='cmpc', tau=.03, num_prototypes=list(KS), cid_samples=0)
methods = {'CID': {'name': 'cid'}, 'CMPC, prototypes only': {**base, 'recalibration': False}, 'CMPC': base,
           'CMPC, looking': base}
built, clustering = {}, {}
for name, m in methods.items():
    built[name] = method = build_method(m, model, N).to(device)
    if 'looking' in name:
        for store in method.memory.values(): store.__class__ = LookingMemory
        method.rho.__class__ = method.cosine.__class__ = LookingRho
    if 'CMPC' in name:
        for k in memory: method.memory[k].update(memory[k], torch.arange(N, device=device))
        clustering[name] = timed(lambda: method.on_epoch_start(0), 1)[0], timed(lambda: method.on_epoch_start(1), 1)[0]
z = {k: F.normalize(memory[k][torch.arange(B)] + .05*torch.randn(B, d, device=device), dim=1).requires_grad_()
     for k in memory}
idx = torch.arange(B, device=device)


def method_step(method):
    loss, w = method.loss(z['voice'], z['face'], idx)
    reduce_rows(loss, w).backward()
    z['voice'].grad = z['face'].grad = None


for m in built.values(): timed(lambda: method_step(m), 3)
took = {name: [] for name in built}
for _ in range(args.steps):
    for name, m in built.items(): took[name] += timed(lambda: method_step(m), 1)
if not args.no_encoder: timed(encoder_step, 1 if device.type == 'cpu' else 10)
encoder = None if args.no_encoder else statistics.median(timed(encoder_step, args.encoder_steps))
steps = N//B
print(f'{device}, {args.threads} threads, batch {B}, {d} dimensions, {N:,} videos, K = {KS}, precision '
      f'{args.precision}, compiled {args.compile}, load {os.getloadavg()[0]:.1f}')
if encoder: print(f'encoder step: {1000*encoder:.1f} ms, {B/encoder:.1f} pairs/s')
for name, t in took.items():
    ms = 1000*statistics.median(t)
    print(f'{name:<24}{ms:8.2f} ms a step (lowest {1000*min(t):.2f})' +
          (f', {ms/10/encoder:.3f} % of the encoder step' if encoder else ''))
extra = statistics.median(took['CMPC']) - statistics.median(took['CID'])
if encoder: print(f'CMPC adds {100*extra/encoder:.3f} % to the encoder step beside CID')
cold, warm = clustering['CMPC']
print(f're-clustering both memories: first {cold:.2f} s, next {warm:.2f} s' +
      (f'; over {steps} steps of an epoch {100*warm/steps/encoder:.3f} % of an encoder step each' if encoder else ''))
