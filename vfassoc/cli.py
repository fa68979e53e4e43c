"""The `vfassoc` command: thin; every subcommand calls one function of the library. Plumbing, written by hand (not exported)."""
import argparse, contextlib, json, os, signal, sys, tempfile, threading, traceback
from pathlib import Path

from tqdm import tqdm

from vfassoc import __version__
from vfassoc.core import (ConfigError, RunError, Terminated, VfassocError, current_name, end_workers, load_settings,
                          printable,
                          require, to_dict, user_path)

START = """\
Voice-face association: given a voice, which face; given a face, which voice.

New here?  `vfassoc demo` draws a corpus, trains, evaluates and writes a report, in a few minutes on two cores.

Your own corpus (a folder in the VoxCeleb1 tree, see data/README.md), step by step:
  vfassoc prepare data/mine                     look at every file once, print what is there
  vfassoc train cid-demo --corpus mine --run mine  train the recipe `cid-demo` on it, into runs/mine
  vfassoc evaluate mine                         score it on the test identities
  vfassoc report evaluate --run mine            tables and figures, as one HTML file
"""


WAIT = 'if another command writes where this one is to write, wait until it has ended (default: say who it is, and stop)'


# read for one release
OLD_WORDS = {'synth': 'synthesize', 'features': 'extract', 'lists': 'trials', 'grid': 'sweep', 'cost': 'flops'}


def changes(pairs, where):
    "['train.seed=3'] to {'train.seed': 3}."
    from vfassoc.training.recipes import parse_value
    out = {}
    for p in pairs or ():
        key, eq, value = p.partition('=')
        if not eq or not key: raise ConfigError(f'{where}: {p!r} is not KEY=VALUE')
        out[key] = parse_value(value)
    return out


def synthesize(a, s):
    from vfassoc.core import from_dict
    from vfassoc.synthetic.corpus import SynthConfig, write_corpus
    from vfassoc.training.run import corpus_path
    root = corpus_path(a.corpus, s)
    write_corpus(root, from_dict(SynthConfig, {'seed': s.seed, **changes(a.set, 'synthesize')}, 'synthesize'),
                 s.workers)
    print(root)


def prepare(a, s):
    from vfassoc.corpus.layout import hints
    from vfassoc.corpus.manifest import issues, summary
    from vfassoc.training.run import open_corpus
    m = open_corpus(a.corpus, s, a.check, a.shared)
    print(f'{m.root}\n\n{summary(m).to_string()}\n')
    odd = issues(m)
    print(odd.to_string(index=False) if len(odd) else 'every file is usable as it is')
    for line in hints(m.root, m.report['set aside']): print(f'\n{line}')


def voxceleb1(a, s):
    from vfassoc.corpus.voxceleb1 import GUIDE, link_with_split, missing_media, read_index, read_split_tables
    from vfassoc.training.run import corpus_path, open_corpus
    if not a.corpus: return print(GUIDE, end='')
    if bool(a.tables) != bool(a.output): raise ConfigError('voxceleb1: --tables FOLDER and -o NAME belong together')
    if a.tables:
        used, left = read_split_tables(*(Path(a.tables)/f'vox1_{s}.csv' for s in ('train', 'val', 'test')))
        return print(f'{link_with_split(corpus_path(a.corpus, s), corpus_path(a.output, s), used)}: {len(used)} '
                     f'people; {len(left)} whose Set is none are left out')
    if not a.index:
        raise ConfigError('voxceleb1: --corpus needs --index, a table of all utterances; `vfassoc voxceleb1` alone '
                          'says where things come from')
    t = missing_media(open_corpus(a.corpus, s), read_index(a.index))
    print(t.to_string())
    print('\nnothing is missing' if not t.missing.sum()
          else '\nVideos of two people count as missing if they are left out: `vfassoc prepare CORPUS --shared keep` '
               'keeps them.')


def pack(a, s):
    from vfassoc.core import from_dict
    from vfassoc.corpus.packed import PackConfig, pack as run
    from vfassoc.training.run import corpus_path, open_corpus
    cfg = from_dict(PackConfig, changes(a.set, 'pack'), 'pack')
    print(run(open_corpus(a.corpus, s), corpus_path(a.output, s), cfg, s.workers))


def trials(a, s):
    from vfassoc.evaluation.published import list_table, resolve_lists
    from vfassoc.evaluation.run_published import baseline_run, corpus_lists, listed_media
    from vfassoc.evaluation.trial_files import read_lists
    from vfassoc.training.run import open_corpus, run_path
    if bool(a.corpus) == bool(a.meta):
        raise ConfigError('trials: give either --corpus NAME, or --meta vox1_meta.csv for the lists alone')
    if a.baseline:
        if not a.meta: raise ConfigError('trials: --baseline needs --meta vox1_meta.csv')
        path = run_path(a.run or f'{a.baseline}-vectors', s)
        baseline_run(a.baseline, path, a.folder, a.meta, changes(a.set, 'trials'), seed=s.seed, strict=a.strict)
        return print(path)
    if a.run or a.set: raise ConfigError('trials: --run and --set belong to --baseline')
    if a.corpus: *_, account, other = corpus_lists(a.folder, open_corpus(a.corpus, s), a.strict)
    else:
        named, other = read_lists(a.folder, a.strict)
        tables = listed_media(named, a.meta)
        account = list_table(resolve_lists(named, *tables, identity_names(a.meta), a.strict), *tables)
    if other: print(f'no lists: {", ".join(other)}\n')
    print(account.drop(columns=['left_out', 'remarks']).to_string(index=False, na_rep='-'))
    print('\n' + '\n'.join(f'{r.list}: {x}' for r in account.itertuples() for x in (r.left_out, r.remarks) if x))
    print(f'{account.used.sum():,} of {account.lines.sum():,} lines are used')


def identity_names(meta):
    from vfassoc.corpus.layout import read_metadata
    d = read_metadata(meta)
    return dict(zip(d['name'], d.index))


def extract(a, s):
    from vfassoc.training.extract import make_features
    options, weights = changes(a.set, 'extract'), {p.partition('=')[0]: p.partition('=')[2] for p in a.set or ()
                                                   if '_weights=' in p} # a path may look like a number
    known = ('voice_weights', 'face_weights', 'seconds', 'size')
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f'extract: unknown option {unknown[0]!r}; known: {", ".join(known)}')
    print(make_features(a.encoder, a.corpus, a.output, s, options={**options, **weights}))


def train(a, s):
    from vfassoc.training.recipes import load_recipe
    from vfassoc.training.run import run_path, train as run
    c = changes(a.set, 'train') | ({'corpus': a.corpus} if a.corpus else {})
    recipe = load_recipe(a.recipe, {'train.seed': s.seed, **c})
    if a.show: return print(json.dumps(to_dict(recipe), indent=1))
    path = run_path(a.run or Path(a.recipe).stem, s)
    r = run(recipe, path, s)
    best = f'; best validation AUC {r.state.best:.3f} in epoch {r.state.best_epoch}' if r.state.best is not None else ''
    print(f'{path}: {r.reason}{best}')
    return 0 if r.finished else 128 + (r.by or signal.SIGINT)


def flops(a, s):
    from vfassoc.methods.registry import method_class
    from vfassoc.training.flops import SPLITS, cost as count, disk
    from vfassoc.training.recipes import load_recipe
    recipe = load_recipe(a.recipe, changes(a.set, 'flops'))
    if a.tera is not None:
        current_name('--tera', {'--tera': '--tflops'})
        a.tflops = a.tera
    require(0 < a.tflops < 1e9, 'flops', 'tflops', a.tflops, 'above 0, below 1e9')
    size = SPLITS[method_class(recipe.method).paper_split]
    for k, x in {**count(recipe, size, a.tflops), **disk(size, recipe.data.face_size)}.items(): print(f'{k:<28} {x:,}')
    print(f'for {size.videos:,} training videos of VoxCeleb1; counted, not timed')


def evaluate(a, s):
    from vfassoc.evaluation.run import evaluate_run
    from vfassoc.experiments.tables import as_text, paper_table, read_scores
    from vfassoc.training.run import run_path
    c = changes(a.set, 'evaluate')
    paths = [run_path(r, s) for r in a.run]
    if a.lists:
        from vfassoc.evaluation.run_published import evaluate_on_lists
        for p in paths: evaluate_on_lists(p, a.lists, s, c, a.corpus or '', a.strict)
    elif a.strict: raise ConfigError('evaluate: --strict belongs to --lists')
    else:
        for p in paths: evaluate_run(p, s, c, corpus=a.corpus or '')
    print(as_text(paper_table(read_scores(paths, 'lists' if a.lists else 'metrics'))))


def sweep(a, s):
    from vfassoc.experiments.sweeps import OK, load_grid, run_grid
    from vfassoc.training.run import run_path
    path = run_path(a.run or Path(a.grid).stem, s)
    t = run_grid(load_grid(a.grid, changes(a.set, 'sweep')), path, s, a.jobs, a.scheduler)
    bad = t[~t.result.isin(OK)]
    print(f'{path}: {len(t) - len(bad)} of {len(t)} cells finished')
    if len(bad):
        raise RunError(f'{len(bad)} cells did not finish, the first ({bad.variant.iloc[0]}, seed {bad.seed.iloc[0]}): '
                       f'{bad.result.iloc[0]}')


def report(a, s):
    from vfassoc.experiments.runner import declared, find_report, parse_parameters, result_name, run_report
    from vfassoc.training.run import run_path
    nb = find_report(a.name)
    given = parse_parameters(nb, a.parameter or [])
    if a.grid: given['grid'] = str(run_path(a.grid, s).resolve())
    if a.run: given['runs'] = [str(run_path(r, s).resolve()) for r in a.run]
    out = result_name(a.output or s.figures/nb.stem)
    if 'figures' in declared(nb): given.setdefault('figures', str(out.resolve()))
    _, page = run_report(nb, out, given)
    print(page.resolve())


def results(a, s):
    from vfassoc.experiments.results import choose_sweeps, render_results
    sweeps = choose_sweeps(a.sweep or ())
    command = ' '.join(['vfassoc results', *(f'--sweep {x}' for x in a.sweep or ())])
    print(render_results(a.output, sweeps, s, a.jobs, command=command).resolve())


def demo(a, s):
    from vfassoc.demo import run_demo
    run_demo(s)


def parser():
    p = argparse.ArgumentParser('vfassoc', description=START, formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog='settings.ini says where data, runs and figures are. `vfassoc COMMAND --help` '
                                       'for each command.')
    p.add_argument('--version', action='version', version=__version__)
    p.add_argument('--wait', action='store_true', help=WAIT)
    p.add_argument('--settings', metavar='FILE',
                   help='a settings.ini (default: the first one at or above the working folder)')
    sub = p.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(fn, text, **args):
        q = sub.add_parser(fn.__name__, aliases=[old for old, new in OLD_WORDS.items() if new == fn.__name__],
                           help=text, description=text[0].upper() + text[1:] + '.')
        q.add_argument('--wait', action='store_true', default=argparse.SUPPRESS, help=WAIT)
        q.set_defaults(fn=fn)
        return q
    many = dict(action='append', metavar='KEY=VALUE')
    q = add(synthesize, 'draw a synthetic corpus whose every latent is known')
    q.add_argument('corpus', help='name under `data`, or a path')
    q.add_argument('--set', **many,
                   help='a field of SynthConfig, e.g. identities=400, coupling=0.5, seed=1; may be repeated')
    q = add(prepare, 'scan a corpus: check every file, count, split, and keep the manifest')
    q.add_argument('corpus', help='name under `data`, or a path: a folder in the VoxCeleb1 tree')
    q.add_argument('--check', choices=('quick', 'full'), default='quick',
                   help='quick reads headers and ends of files; full decodes everything')
    q.add_argument('--shared', choices=('exclude', 'keep'),
                   help='what to do with videos that are under two identities; remembered (at first: exclude)')
    q = add(voxceleb1, 'say where VoxCeleb1 comes from and where it goes, and what of it is missing')
    q.add_argument('--corpus', help='name under `data`, or a path: compare it with the index')
    q.add_argument('--index', metavar='FILE',
                   help='utterances.tsv or .tsv.gz: identity, video, utterance, seconds, part')
    q.add_argument('--tables', metavar='FOLDER',
                   help="with vox1_train.csv, vox1_val.csv, vox1_test.csv: make the same corpus under FAA's split")
    q.add_argument('-o', '--output', metavar='NAME', help='with --tables: name under `data`, or a path')
    q = add(pack, 'copy the usable media of a corpus into few large files, which are read faster')
    q.add_argument('corpus', help='name under `data`, or a path: a tree')
    q.add_argument('-o', '--output', required=True, metavar='NAME',
                   help='name under `data`, or a path; train on it with --corpus NAME')
    q.add_argument('--set', **many,
                   help='pixels=112 (decode faces now; 0 keeps their files), shard_mb=512; may be repeated')
    q = add(extract, 'embed a corpus once into a file of features, to train on without encoders')
    q.add_argument('encoder', help="a run (name under `runs`, or a path), or `faa`: FAA's pretrained encoders")
    q.add_argument('--corpus', required=True, help='name under `data`, or a path')
    q.add_argument('-o', '--output', required=True, metavar='FILE.npz', help='name under `data`, or a path')
    q.add_argument('--set', **many,
                   help='for `faa`: voice_weights=..., face_weights=..., seconds=5, size=112; may be repeated')
    q = add(train, 'train a recipe; the same command continues a run that was stopped')
    q.add_argument('recipe', help='cid-demo, cmpc-demo, cmpc-voxceleb1, ... (a wrong name lists all), or a JSON file')
    q.add_argument('--run', help='name under `runs`, or a path (default: the name of the recipe)')
    q.add_argument('--corpus', help="instead of the recipe's")
    q.add_argument('--set', **many,
                   help='change a field, e.g. train.seed=3, train.total_samples=100000, method.tau=0.05; may be '
                        'repeated')
    q.add_argument('--show', action='store_true', help='print the recipe and stop')
    q = add(flops, 'count the operations of a recipe on VoxCeleb1, and its hours at a given rate')
    q.add_argument('recipe', help='cmpc-voxceleb1, faa-voxceleb1, ..., or a JSON file')
    q.add_argument('--set', **many, help='change a field; may be repeated')
    q.add_argument('--tflops', type=float, default=150.,
                   help='10^12 operations a second that the machine sustains (default: 150)')
    q.add_argument('--tera', type=float, help=argparse.SUPPRESS)
    q = add(evaluate, 'score runs on test identities: verification, matching, retrieval, with intervals')
    q.add_argument('run', nargs='+', help='name under `runs`, or a path')
    q.add_argument('--set', **many, help='a field of ProtocolConfig, e.g. seed=1, replicates=2000; may be repeated')
    q.add_argument('--corpus', help="instead of the run's own")
    q.add_argument('--lists', metavar='FOLDER',
                   help='published lists (matching, verification, galleries) instead of drawn trials; into lists.json')
    q.add_argument('--strict', action='store_true', help='with --lists: a line that cannot be used is an error')
    q = add(trials, 'read published lists and account for every line; or score drawn vectors on them')
    q.add_argument('folder', help='with csv and txt files, or one of them')
    q.add_argument('--corpus', help='name under `data`, or a path: which lines have their media there?')
    q.add_argument('--meta', metavar='vox1_meta.csv', help='without a corpus: the metadata alone')
    q.add_argument('--strict', action='store_true', help='a line that cannot be used is an error')
    q.add_argument('--baseline', choices=('random', 'gender'),
                   help='score vectors that know nothing, or gender and nothing else, as if all media were there')
    q.add_argument('--run', help='with --baseline: name under `runs`, or a path (default: random-vectors, '
                                 'gender-vectors)')
    q.add_argument('--set', **many,
                   help='with --baseline: a field of ProtocolConfig, e.g. replicates=200; may be repeated')
    q = add(sweep, 'variants times seeds: train and score what is not finished, several at once; the same command goes '
                   'on')
    q.add_argument('grid', help='ablation-cmpc, ... (a wrong name lists all), or a JSON file')
    q.add_argument('--run', help='name under `runs`, or a path: a folder for all cells (default: the name of the grid)')
    q.add_argument('--jobs', type=int, default=0, help='cells at once (default: one per core; one on a GPU)')
    q.add_argument('--scheduler', default='', metavar='ADDRESS',
                   help='of a Dask scheduler, for several machines that share a disk')
    q.add_argument('--set', **many,
                   help='a field of the grid, e.g. seeds=[0,1], changes.train.total_samples=5000; may be repeated')
    q = add(report, 'run a report notebook: an executed notebook and an HTML page that opens without a network')
    q.add_argument('name', help='train, evaluate, compare, voxceleb1, ablation_cmpc, claims_cmpc, ablation_faa, '
                                'claims_faa, rho_histogram, tsne, or the path of a notebook')
    q.add_argument('--run', action='append', help='a run to report on; may be repeated')
    q.add_argument('--grid', help='a grid to report on, for the reports that read one')
    q.add_argument('-p', '--parameter', **many, help="a parameter of the report; may be repeated")
    q.add_argument('-o', '--output', help='where to write (default: `figures`/NAME)')
    q = add(results, 'run unfinished sweeps and their reports, and write what they publish as one page')
    q.add_argument('-o', '--output', default='RESULTS.md', metavar='FILE',
                   help='the page (default: RESULTS.md); its figures go to figures/published beside it')
    q.add_argument('--sweep', action='append', metavar='NAME[:REPORT,...]',
                   help='one of the sweeps (default: all), or another with its reports; may be repeated')
    q.add_argument('--jobs', type=int, default=0, help='runs at once (default: one per core; one on a GPU)')
    add(demo, 'the main job, end to end, on a corpus it draws itself')
    return p


PATHS = ('corpus', 'output', 'run', 'recipe', 'grid', 'encoder', 'name', 'folder', 'tables', 'index', 'meta', 'lists',
         'settings') # arguments that are names or paths


def check_text(a):
    "Refuse arguments that no file can hold or bear as its name."
    for k, v in vars(a).items():
        for x in (v if isinstance(v, list) else [v]):
            if not isinstance(x, str): continue
            if any('\ud800' <= c <= '\udfff' for c in x):
                raise ConfigError(f'{k} {x!r}: is not UTF-8; give another name')
            if k in PATHS: user_path(x, k)


def say(text):
    "One line on stderr, below progress bars that are not finished."
    for bar in list(getattr(tqdm, '_instances', ())):
        with contextlib.suppress(Exception): bar.close()
    print(f'vfassoc: {printable(str(text))}', file=sys.stderr, flush=True)


def unexpected(e):
    "An error that is not ours, as one line; the traceback goes to a file that the line names."
    what = ' '.join(f'{type(e).__name__}: {e}'.split())[:300].rstrip(': ')
    try:
        fd, file = tempfile.mkstemp('.txt', 'vfassoc-error-') # for its owner's eyes only
        with open(fd, 'w', encoding='utf-8', errors='backslashreplace') as f:
            f.write(f'{os.environ.get("VFASSOC_COMMAND")}\n\n{"".join(traceback.format_exception(e))}')
        where = f'the traceback is in {file}'
    except Exception: where = 'the traceback could not be written'
    say(f'{what}; this is not foreseen; {where}')
    return 1


@contextlib.contextmanager
def surroundings(a, argv):
    "What a command finds in its process: SIGTERM interrupts, locks say the command, threads fail in one line, odd names can be printed."
    def terminate(sig, frame): raise Terminated
    def in_thread(e):
        say(f'{e.exc_type.__name__} in {e.thread.name if e.thread else "a thread"}: '
            f'{" ".join(str(e.exc_value).split())[:200]}')
    line = printable(' '.join(['vfassoc', *(sys.argv[1:] if argv is None else argv)]))[:200]
    variables = {'VFASSOC_COMMAND': line.encode('utf-8', 'replace').decode(),
                 **({'VFASSOC_WAIT': '1'} if a.wait else {})}
    before = {k: os.environ.get(k) for k in variables}
    os.environ.update(variables)
    main_thread, hook = threading.current_thread() is threading.main_thread(), threading.excepthook
    old = signal.signal(signal.SIGTERM, terminate) if main_thread else None
    threading.excepthook = in_thread
    if hasattr(sys.stdout, 'reconfigure'): sys.stdout.reconfigure(errors='backslashreplace')
    try: yield
    finally:
        threading.excepthook = hook
        if main_thread: signal.signal(signal.SIGTERM, old or signal.SIG_DFL)
        for k, v in before.items():
            if v is None: os.environ.pop(k, None)
            else: os.environ[k] = v


def main(argv=None):
    """Parse, call, and turn every failure into one line on stderr. Exit status 2: repairable; 1: not foreseen, with a traceback in a file;
    130: Ctrl-C; 143: SIGTERM."""
    a = parser().parse_args(argv)
    try:
        with surroundings(a, argv):
            try:
                current_name(a.command, OLD_WORDS)
                check_text(a)
                return a.fn(a, load_settings(a.settings)) or 0
            except VfassocError as e:
                say(e)
                return 2
            except KeyboardInterrupt as e:
                end_workers()
                say(str(e) or 'interrupted')
                return 143 if isinstance(e, Terminated) else 130
            except BrokenPipeError: return 0
            except Exception as e: return unexpected(e)
    except KeyboardInterrupt as e:
        return 143 if isinstance(e, Terminated) else 130 # a second one, while the first was seen to


if __name__ == '__main__': sys.exit(main())
