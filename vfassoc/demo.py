"""The main job, end to end, on a generated corpus; every step is one call. Plumbing, by hand (not exported)."""
import time

from vfassoc.core import Settings, claim
from vfassoc.corpus.manifest import summary
from vfassoc.corpus.source import features_path
from vfassoc.evaluation.run import evaluate_run
from vfassoc.experiments.runner import find_report, run_report
from vfassoc.experiments.tables import as_text, paper_table, read_scores
from vfassoc.synthetic.corpus import SynthConfig, write_corpus
from vfassoc.training.extract import make_features
from vfassoc.training.loop import interruption
from vfassoc.training.recipes import load_recipe
from vfassoc.training.run import open_corpus, train

CORPUS = SynthConfig(identities=400) # 280 training, 40 validation, 80 test identities
# trained one after another, each into runs/NAME; FAA on the features of the first
RECIPES = ('cid-demo', 'cmpc-demo', 'faa-demo')


def run_demo(settings:Settings):
    "Run corpus, manifest, training, evaluation and report; skip the steps that an earlier call finished."
    with claim(settings.figures/'demo'/'demo'): _steps(settings)


def _steps(settings):
    start = time.perf_counter()
    def say(step, text):
        return print(f'\n[{step}/5, {time.perf_counter() - start:.0f} s] {text}', flush=True)
    report = find_report('evaluate')
    say(1, f'generating a corpus of {CORPUS.identities} identities in {settings.data/"demo"}')
    write_corpus(settings.data/'demo', CORPUS, settings.workers)
    say(2, 'scanning it')
    print(summary(open_corpus('demo', settings)).to_string())
    runs = [settings.runs/name for name in RECIPES]
    for name, run in zip(RECIPES, runs):
        recipe = load_recipe(name, {'train.seed': settings.seed})
        if recipe.data.feature_file and not (file := features_path(recipe.data.feature_file, settings)).exists():
            say(3, f'embedding the corpus with the towers of {runs[0]}, as features for {recipe.name}')
            make_features(str(runs[0]), recipe.corpus, file, settings)
        say(3, f'training {recipe.name} into {run}')
        result = train(recipe, run, settings)
        if not result.finished: raise interruption(result.by, f'{run}: {result.reason}')
        print(f'{result.reason}; best validation AUC {result.state.best:.3f} in epoch {result.state.best_epoch}')
    say(4, 'evaluating on unseen identities')
    for run in runs: evaluate_run(run, settings)
    say(5, 'writing the report')
    _, page = run_report(report, settings.figures/'demo'/'demo', dict(
        runs=[str(r.resolve()) for r in runs], figures=str((settings.figures/'demo').resolve()),
        title='The demo: a synthetic corpus'))
    print(f'\nPercent [95 % interval over test identities]; chance and ceiling '
          f'beside.\n\n{as_text(paper_table(read_scores(runs)))}\n')
    print(f'report: {page.resolve()} (opens in a browser, without a network)\n{time.perf_counter() - start:.0f} s')
