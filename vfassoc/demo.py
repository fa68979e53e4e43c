"""The main job, end to end, in two synthetic worlds; every step is one call. Plumbing, by hand (not exported)."""
import time
from dataclasses import dataclass, field
from pathlib import Path

from vfassoc.core import RunError, Settings, claim
from vfassoc.corpus.manifest import summary
from vfassoc.corpus.source import features_path
from vfassoc.evaluation.other_videos import OTHER
from vfassoc.experiments.runner import find_report, run_report
from vfassoc.experiments.sweeps import OK, Grid, run_grid
from vfassoc.experiments.tables import TITLES, as_text, paper_tables, read_scores
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.synthetic.twin import TwinConfig, invent_index, write_twin
from vfassoc.training.extract import make_features
from vfassoc.training.run import open_corpus

# two strata and no 1:N matching: an evaluation with intervals takes 5 s of CPU instead of 67 (192 voices, 576 faces)
PROTOCOL = dict(strata=('U', 'G'), candidates=(), shortlists=(), gallery=1_000)
STEPS = ('drawing media', 'CID and CMPC on media', 'FAA on their features', 'drawing vectors and comparing methods',
         'writing the report')


@dataclass(frozen=True)
class Demo:
    "Sizes and lengths of the two parts, media and scale."
    media:SynthConfig = SynthConfig(identities=160, session=1., session_coupling=.9)
    media_samples:int = 4_480 # videos that CID and CMPC see
    faa_samples:int = 8_000 # videos that FAA sees, on features
    world:TwinConfig = TwinConfig(split='random', faces=3, session=.7, deviates=0.) # of the part scale
    people:int = 300 # in it
    samples:int = 38_400 # videos that each of its methods sees
    seeds:int = 3 # of each
    changes:dict = field(default_factory=dict) # of every run: dotted keys of a recipe

    def media_grid(self, seed:int) -> Grid:
        "CID and CMPC, end to end from media, with as many prototypes for each identity as in their recipes."
        n, people = self.media_samples, round(self.media.train*self.media.identities)
        return Grid('cid-demo', {
            'CID': {},
            'CMPC': {'recipe': 'cmpc-demo', 'method.num_prototypes': [people//2, people, 3*people//2],
                     'method.cid_samples': n//6}},
            (seed,), {'corpus': 'demo-media', 'train.total_samples': n, 'train.lr_warmup': n//12,
                      'train.validation_positives': 'other_videos', **self.changes}, PROTOCOL)

    def faa_grid(self, seed:int) -> Grid:
        "FAA on what the encoders of CID make of the media."
        people = round(self.media.train*self.media.identities)
        return Grid('faa-demo', {'FAA': {}}, (seed,), {
            'corpus': 'demo-media', 'data.feature_file': 'demo-media.npz', 'method.min_clusters': people//2,
            'train.total_samples': self.faa_samples, 'train.lr_warmup': self.faa_samples//20,
            'train.validation_positives': 'other_videos', **self.changes}, PROTOCOL)

    def scale_grid(self, seed:int) -> Grid:
        "Methods on vectors; the best one of ours anneals CMPC's instance term and draws positives from its clusters."
        n, people = self.samples, round(.7*self.people)
        tau = {'method.tau': .1}
        cmpc = {**tau, 'recipe': 'cmpc-twin', 'method.num_prototypes': [people//2, people, 3*people//2],
                'method.cid_samples': n//8}
        return Grid('cid-twin', {
            'CID': tau, 'CMPC': cmpc,
            'CMPC, annealed, positives from its clusters': {
                **cmpc, 'method.recalibration': False, 'method.instance_schedule': 'cosine',
                'method.instance_weight': 0., 'method.instance_samples': 7*n//16, 'data.positives': 'cluster'},
            'FAA, alignment alone': {
                'recipe': 'faa-demo', 'data': {}, 'model.voice_dim': 192, 'model.face_dim': 512,
                'method.use_fusion': False, 'method.min_clusters': people//2},
            'oracle positives (labels)': {**tau, 'data.positives': 'oracle'}},
            tuple(range(seed, seed + self.seeds)), {
                'corpus': 'demo-scale', 'train.total_samples': n, 'train.batch_size': 128, 'train.lr_warmup': n//12,
                'train.optimizer': 'adamw', 'train.peak_lr': 1e-3, 'train.lr_start': 1e-4, 'train.lr_end': 1e-5,
                'train.weight_decay': .01, 'train.validation_positives': 'mixture', **self.changes}, PROTOCOL)


def run_demo(settings:Settings, demo:Demo=Demo()):
    "Run both parts and their report; skip what an earlier call finished."
    with claim(settings.figures/'demo'/'demo'): _steps(settings, demo)


def _finish(grid:Grid, root:Path, settings:Settings, jobs:int=0) -> list[Path]:
    "Run what is not finished of a grid; return its runs. Raises `RunError` for one that fails."
    table = run_grid(grid, root, settings, jobs)
    if len(bad := table[~table.result.isin(OK)]):
        raise RunError(f'{bad.path.iloc[0]}: {bad.result.iloc[0]}; the same command goes on from here')
    return list(map(Path, table.path))


def _steps(settings, demo):
    start, step = time.perf_counter(), iter(range(1, len(STEPS) + 1))
    def say():
        n = next(step)
        print(f'\n[{n}/{len(STEPS)}, {time.perf_counter() - start:.0f} s] {STEPS[n - 1]}', flush=True)
    report, seed = find_report('demo'), settings.seed
    say()
    write_corpus(settings.data/'demo-media', demo.media, settings.workers)
    print(summary(open_corpus('demo-media', settings)).to_string())
    say()
    media = _finish(demo.media_grid(seed), settings.runs/'demo-media', settings)
    say()
    if not (file := features_path('demo-media.npz', settings)).exists():
        make_features(str(media[0]), 'demo-media', file, settings)
    media += _finish(demo.faa_grid(seed), settings.runs/'demo-faa', settings, jobs=1)
    say()
    if not (world := settings.data/'demo-scale').exists(): write_twin(world, invent_index(demo.people), demo.world)
    scale = _finish(demo.scale_grid(seed), settings.runs/'demo-scale', settings)
    say()
    _, page = run_report(report, settings.figures/'demo'/'demo', dict(
        media=[str(r.resolve()) for r in media], scale=str((settings.runs/'demo-scale').resolve()),
        figures=str((settings.figures/'demo').resolve())))
    for name, runs in (('Media', media), ('Scale', scale)):
        table = paper_tables(read_scores(runs), keep_empty=False)[TITLES[OTHER]]
        print(f'\n{name}, positives of other videos, percent [95 % interval]\n\n{as_text(table)}')
    print(f'\nreport: {page.resolve()} (opens in a browser, without a network)\n{time.perf_counter() - start:.0f} s')
