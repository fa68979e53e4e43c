"""Scoring all pairs with the fusion transformer.

    python benchmarks/fusion.py [--voices 400] [--faces 400] [--device cpu] [--threads 2] [--repeats 3]

FAA's encoder (4 layers, 256 wide, 4 heads, inner width 1,024). The contenders take turns in one run: batches of
`forward` (the best of several batch sizes) and `score_all`. Printed: pairs per second, the ratio within each turn, the
largest difference of probabilities, and how many rankings differ in bf16.
"""
import argparse, os, random, statistics, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--voices', type=int, default=200)
parser.add_argument('--faces', type=int, default=400)
parser.add_argument('--device', default='cpu')
parser.add_argument('--threads', type=int, default=2)
parser.add_argument('--repeats', type=int, default=3)
parser.add_argument('--pairs', type=int, nargs='+', default=[512, 1024, 2048, 4096],
                    help='block sizes of score_all to try')
args = parser.parse_args()
os.environ.update(OMP_NUM_THREADS=str(args.threads), OMP_WAIT_POLICY='PASSIVE')

import torch
import torch.nn.functional as F

from vfassoc.models.all_pairs import score_all
from vfassoc.models.fusion import FusionConfig, FusionEncoder

torch.manual_seed(0)
device = torch.device(args.device)
if device.type == 'cpu': torch.set_num_threads(args.threads)
model = FusionEncoder(FusionConfig()).to(device).eval()
with torch.no_grad(): # weights that matter, as after training: a fresh encoder gives nearly one score to all pairs
    for p in model.parameters(): p.add_(torch.randn_like(p)*p.std()*.3 if p.numel() > 1 else 0)
    model.modality.mul_(10)
v, f = (F.normalize(torch.randn(n, 256, device=device), dim=1)*4 for n in (args.voices, args.faces))
sync = torch.cuda.synchronize if device.type == 'cuda' else lambda: None


@torch.no_grad()
def naive(batch):
    out = torch.empty(len(v)*len(f), device=device)
    for i in range(0, len(out), batch):
        k = torch.arange(i, min(i + batch, len(out)), device=device)
        out[k] = torch.softmax(model(v[k//len(f)], f[k % len(f)]), 1)[:, 1]
    return out.view(len(v), len(f)).cpu().numpy()


contenders = {f'forward, batches of {b}': (lambda b=b: naive(b)) for b in (256, 1024, 4096)}
contenders |= {f'score_all, blocks of {p}': (lambda p=p: score_all(model, v, f, pairs=p, quiet=True))
               for p in args.pairs}
contenders |= {f'score_all, bf16, blocks of {args.pairs[-1]}': lambda: score_all(model, v, f, torch.bfloat16,
                                                                                 args.pairs[-1], quiet=True)}
took, results = {k: [] for k in contenders}, {}
for turn in range(args.repeats):
    for name in random.Random(turn).sample(list(contenders), len(contenders)):
        sync()
        t = time.perf_counter()
        results[name] = contenders[name]()
        sync()
        took[name].append(time.perf_counter() - t)
n = len(v)*len(f)
best = min((k for k in took if k.startswith('forward')), key=lambda k: statistics.median(took[k]))
print(f'{device}, {args.threads} threads, {len(v)} x {len(f)} pairs, {args.repeats} turns, load '
      f'{os.getloadavg()[0]:.1f}; ratio: within a turn, to {best}')
plain = results[best]
print(f'scores: mean {plain.mean():.3f}, standard deviation {plain.std():.3f}')
for name, t in took.items():
    ratio = statistics.median(b/a for a, b in zip(t, took[best]))
    same = (results[name].argsort(1, kind='stable') == plain.argsort(1, kind='stable')).all(1).mean()
    print(f'{name:<34}{n/statistics.median(t):12,.0f} pairs/s  {ratio:5.2f} x   largest difference '
          f'{abs(results[name] - plain).max():.1e}, same ranking for {100*same:.0f} % of probes')
