"""The `vfassoc` command; each subcommand calls one function of the library. Plumbing, by hand (not exported)."""
import argparse, contextlib, functools, json, os, signal, sys, tempfile, threading, traceback
from pathlib import Path

from tqdm import tqdm

from vfassoc import __version__
from vfassoc.core import (ConfigError, RunError, Terminated, VfassocError, current_name, end_workers, load_settings,
                          printable, require, to_dict, user_path)
from vfassoc.inference.commands import add_commands

START = """\
Voice-face association: given a voice, which face; given a face, which voice.

New here?  `vfassoc demo` generates a corpus, trains, evaluates and writes a report, in a few minutes on two cores.

Your own corpus (videos, or a folder in the VoxCeleb1 layout, see data/README.md), step by step:
  vfassoc ingest videos -o data/mine               cut videos of talking faces into clips and face crops
  vfassoc prepare data/mine                        check every file, print the counts
  vfassoc train cid-demo --corpus mine --run mine  train the recipe `cid-demo` on it, into runs/mine
  vfassoc evaluate mine                            score it on the test identities
  vfassoc report evaluate --run mine               write tables and figures as one HTML file
  vfassoc rank mine voice.wav photos/              which face? (`vfassoc rank --demo` needs no corpus)
"""


WAIT = 'wait for another command that writes to the same place (default: print which command it is, and stop)'


# read for one release
OLD_WORDS = {'synth': 'synthesize', 'features': 'extract', 'lists': 'trials', 'grid': 'sweep', 'cost': 'flops'}

CORPUS = 'corpus: a name under `data`, or a path'
RUN = 'run: a name under `runs`, or a path'
MANY = dict(action='append', metavar='KEY=VALUE')


def command(sub, fn, text):
    "Add the command that is named like `fn`, with - for _, and calls it; return its parser."
    old = [old for old, new in OLD_WORDS.items() if new == fn.__name__]
    q = sub.add_parser(fn.__name__.rstrip('_').replace('_', '-'), aliases=old, help=text,
                       description=text[0].upper() + text[1:] + '.')
    q.add_argument('--wait', action='store_true', default=argparse.SUPPRESS, help=WAIT)
    q.set_defaults(fn=fn)
    return q


def changes(pairs, where):
    "Parse ['train.seed=3'] into {'train.seed': 3}; raise `ConfigError` for a text without `=`."
    from vfassoc.training.recipes import parse_value
    out = {}
    for p in pairs or ():
        key, eq, value = p.partition('=')
        if not eq or not key: raise ConfigError(f'{where}: {p!r} is not KEY=VALUE; write e.g. train.seed=3')
        out[key] = parse_value(value)
    return out


def synthesize(a, s):
    from vfassoc.core import from_dict
    from vfassoc.synthetic.corpus import SynthConfig, notice_session, write_corpus
    from vfassoc.training.run import corpus_path
    root, fields = corpus_path(a.corpus, s), {'seed': s.seed, **changes(a.set, 'synthesize')}
    notice_session(fields, 'synthesize --set')
    for name, value in (('session', a.session), ('session_coupling', a.session_coupling)):
        if value is not None: fields[name] = value
    write_corpus(root, from_dict(SynthConfig, fields, 'synthesize'), s.workers)
    print(root)


def _add_synthesize(sub):
    q = command(sub, synthesize, 'generate a synthetic corpus with known latent variables')
    q.add_argument('corpus', help=CORPUS)
    q.add_argument('--set', **MANY,
                   help='a field of SynthConfig, e.g. identities=400, coupling=0.5, seed=1; may be repeated')
    q.add_argument('--session', type=float, metavar='S',
                   help='strength of what voice and face of one video share (room, device, mood, health); default 0')
    q.add_argument('--session-coupling', type=float, metavar='C',
                   help='correlation of the voice side and the face side of a session, 0 to 1; default 1')


def prepare(a, s):
    from vfassoc.corpus.layout import hints
    from vfassoc.corpus.manifest import issues, summary
    from vfassoc.training.run import open_corpus
    m = open_corpus(a.corpus, s, a.check, a.shared)
    print(f'{m.root}\n\n{summary(m).to_string()}\n')
    odd = issues(m)
    print(odd.to_string(index=False) if len(odd) else 'every file is usable as it is')
    for line in hints(m.root, m.report['set aside']): print(f'\n{line}')


def _add_prepare(sub):
    q = command(sub, prepare, 'scan a corpus: check every file, count, split, write the manifest')
    q.add_argument('corpus', help='corpus in the VoxCeleb1 layout: a name under `data`, or a path')
    q.add_argument('--check', choices=('quick', 'full'), default='quick',
                   help='quick: read the headers and ends of files; full: decode everything (default: quick)')
    q.add_argument('--shared', choices=('exclude', 'keep'),
                   help='rule for videos that appear under two identities; stored with the corpus (at first: exclude)')


def voxceleb1(a, s):
    from vfassoc.corpus.voxceleb1 import GUIDE, link_with_split, missing_media, read_index, read_split_tables
    from vfassoc.training.run import corpus_path, open_corpus
    if not a.corpus: return print(GUIDE, end='')
    if bool(a.tables) != bool(a.output): raise ConfigError('voxceleb1: --tables FOLDER and -o NAME belong together')
    if a.tables:
        used, left = read_split_tables(*(Path(a.tables)/f'vox1_{s}.csv' for s in ('train', 'val', 'test')))
        return print(f'{link_with_split(corpus_path(a.corpus, s), corpus_path(a.output, s), used)}: {len(used)} '
                     f'identities; {len(left)} with Set none are left out')
    if not a.index:
        raise ConfigError('voxceleb1: --corpus needs --index, a table of all utterances; `vfassoc voxceleb1` alone '
                          'lists the sources')
    t = missing_media(open_corpus(a.corpus, s), read_index(a.index))
    print(t.to_string())
    print('\nnothing is missing' if not t.missing.sum()
          else '\nVideos of two identities count as missing if they are left out: `vfassoc prepare CORPUS --shared '
               'keep` keeps them.')


def _add_voxceleb1(sub):
    q = command(sub, voxceleb1, 'describe how to obtain VoxCeleb1, list what is missing, or link it with another split')
    q.add_argument('--corpus', help=f'{CORPUS}; compare it with the index')
    q.add_argument('--index', metavar='FILE',
                   help='utterances.tsv or .tsv.gz with columns identity, video, utterance, seconds, part')
    q.add_argument('--tables', metavar='FOLDER',
                   help="folder of vox1_train.csv, vox1_val.csv, vox1_test.csv: link the corpus with FAA's split")
    q.add_argument('-o', '--output', metavar='NAME',
                   help='with --tables: the new corpus, a name under `data`, or a path')


def vectors(a, s):
    from vfassoc.core import from_dict
    from vfassoc.corpus.manifest import issues, summary
    from vfassoc.corpus.vectors import VectorConfig, read_people, read_vectors, write_vectors
    from vfassoc.training.run import corpus_path
    cfg = from_dict(VectorConfig, {'seed': s.seed, **changes(a.set, 'vectors')}, 'vectors')
    people = read_people(a.people) if a.people else None
    m = write_vectors(corpus_path(a.output, s), read_vectors(*a.table), cfg, people)
    print(f'{m.root}\n\n{summary(m).to_string()}\n')
    print(issues(m).to_string(index=False))


def _add_vectors(sub):
    q = command(sub, vectors, 'make a corpus of voice and face vectors, which needs no media')
    q.add_argument('table', nargs='+', help='.npz, .parquet or .csv: one file with voices and faces, or one of each')
    q.add_argument('-o', '--output', required=True, metavar='NAME',
                   help='the new corpus: a name under `data`, or a path')
    q.add_argument('--people', metavar='FILE', help='.csv with gender, nationality, age, split of each identity')
    q.add_argument('--set', **MANY,
                   help='train=0.7, valid=0.1, fold=0, seed=0, languages=["Urdu"]; may be repeated')


def import_(a, s):
    from vfassoc.core import from_dict
    from vfassoc.corpus.vectors import VectorConfig
    from vfassoc.exchange.imports import import_features, media_account, trial_account
    from vfassoc.training.run import corpus_path
    cfg = from_dict(VectorConfig, {'seed': s.seed, **changes(a.set, 'import')}, 'import')
    root = corpus_path(a.output, s)
    found, m = import_features(a.form, a.folder, root, cfg, a.lists, a.truth, a.people)
    if m: print(f'{media_account(found, m).to_string()}\n')
    if found.trials: print(f'{trial_account(found).to_string(index=False)}\n')
    for line in [*found.notes, *(m.report['notes'] if m else [])]: print(line)
    print(root)


def _add_import(sub):
    q = command(sub, import_, 'import public features and challenge sets, to a corpus of vectors and trial tables')
    q.add_argument('form', metavar='FORM', help='msm, fop, sbnet, fame, flag, ... (a wrong name lists all)')
    q.add_argument('folder', metavar='PATH', help='their folder, as their project has it')
    q.add_argument('-o', '--output', required=True, metavar='NAME',
                   help='the new corpus: a name under `data`, or a path')
    q.add_argument('--lists', metavar='FOLDER', help='lists that belong to the features: labels, paths, keys')
    q.add_argument('--truth', metavar='FOLDER', help='labels of a challenge, where they are public')
    q.add_argument('--people', metavar='FILE', help='table of people, for their gender')
    q.add_argument('--set', **MANY, help='train=0.7, valid=0.1, fold=0, seed=0, languages=["Urdu"]; may be repeated')


def twin(a, s):
    from vfassoc.core import from_dict
    from vfassoc.corpus.manifest import issues, summary
    from vfassoc.synthetic.twin import TwinConfig, read_twin_index, write_twin
    from vfassoc.training.run import corpus_path
    cfg = from_dict(TwinConfig, {'seed': s.seed, **changes(a.set, 'twin')}, 'twin')
    m = write_twin(corpus_path(a.output, s), read_twin_index(a.index or s.data/'voxceleb'), cfg)
    print(f'{m.root}\n\n{summary(m).to_string()}\n')
    print(issues(m).to_string(index=False))


def _add_twin(sub):
    q = command(sub, twin, "draw VoxCeleb1's twin: its identities, videos and utterances, with simulated vectors")
    q.add_argument('-o', '--output', required=True, metavar='NAME',
                   help='the new corpus: a name under `data`, or a path')
    q.add_argument('--index', metavar='FOLDER',
                   help='folder with utterances.tsv.gz and cmpc/vox1_meta.csv (default: voxceleb under `data`)')
    q.add_argument('--set', **MANY,
                   help='a field of TwinConfig, e.g. identities=300, session=1, session_coupling=0.5, deviates=0.04, '
                        'split=faa, seed=1; may be repeated')


def pack(a, s):
    from vfassoc.core import from_dict
    from vfassoc.corpus.packed import PackConfig, pack as run
    from vfassoc.training.run import corpus_path, open_corpus
    cfg = from_dict(PackConfig, changes(a.set, 'pack'), 'pack')
    print(run(open_corpus(a.corpus, s), corpus_path(a.output, s), cfg, s.workers))


def _add_pack(sub):
    q = command(sub, pack, 'copy the usable media of a corpus into few large files, which are faster to read')
    q.add_argument('corpus', help='corpus in folders: a name under `data`, or a path')
    q.add_argument('-o', '--output', required=True, metavar='NAME',
                   help='the packed corpus: a name under `data`, or a path; train on it with --corpus NAME')
    q.add_argument('--set', **MANY,
                   help='pixels=112 (decode faces now; 0 keeps the image files), shard_mb=512; may be repeated')


def ingest(a, s):
    from vfassoc.core import from_dict
    from vfassoc.video.extraction import ExtractConfig
    from vfassoc.video.ingest import IngestConfig, convert_tree, ingest as run
    p = user_path(a.output, 'output')
    out = p if p.is_absolute() or len(p.parts) > 1 or p.is_dir() else s.data/p
    jobs = s.workers if a.jobs is None else a.jobs
    if a.as_is:
        if a.videos or a.set or a.identity or a.several:
            raise ConfigError('ingest: --as-is converts --audio and --images and takes no other option')
        print(convert_tree(out, a.audio or (), a.images or (), jobs).to_string(index=False))
        return print(out)
    given = changes(a.set, 'ingest')
    outer = {k: given.pop(k) for k in ('valid', 'test', 'seed') if k in given}
    if a.several: given['several'] = a.several
    table = a.identity if a.identity and a.identity not in ('none', 'folder', 'file') else None
    cfg = from_dict(IngestConfig, {'seed': s.seed, **outer, 'extract': given,
                                   'identity': 'table' if table else a.identity or 'none'}, 'ingest')
    minutes = run(out, a.videos, a.audio or (), a.images or (), cfg, table, jobs, a.scheduler)
    print(f'{minutes.to_string(index=False)}\n')
    if cfg.identity == 'none': print('no identities given: nobody is tested on; --identity says whose file it is')
    print(f'faces, minutes and a timeline to look at: {out/"ingest"}\n{out}')


def _add_ingest(sub):
    q = command(sub, ingest, 'make a corpus of videos, recordings or photographs')
    q.add_argument('videos', nargs='*', metavar='VIDEO', help='videos, or folders of them')
    q.add_argument('-o', '--output', required=True, metavar='NAME', help='the corpus: a name under `data`, or a path')
    q.add_argument('--audio', nargs='+', metavar='PATH', help='recordings, or folders of them: m4a, mp3, ...')
    q.add_argument('--images', nargs='+', metavar='PATH', help='photographs, or folders of them: webp, png, ...')
    q.add_argument('--identity', metavar='none|folder|file|TABLE.csv',
                   help='person of a file: unknown (default), its folder, its name, or a table with the columns file '
                        'and identity')
    q.add_argument('--several', choices=('drop', 'keep-largest'),
                   help='segments that show several faces (default: drop)')
    q.add_argument('--as-is', action='store_true',
                   help='only convert --audio to wav and --images to jpg, whole, at the same places')
    q.add_argument('--set', **MANY, help='a field of ExtractConfig, or valid, test, seed: margin=1.3; may be repeated')
    q.add_argument('--jobs', type=int, help='files at once (default: `workers` in settings.ini)')
    q.add_argument('--scheduler', default='', metavar='ADDRESS',
                   help='address of a Dask scheduler, for several machines that share a disk')


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


def _add_trials(sub):
    q = command(sub, trials, 'read published trial files and report every unused line; or score an untrained baseline '
                             'on them')
    q.add_argument('folder', help='folder of csv and txt files, or one such file')
    q.add_argument('--corpus', help=f'{CORPUS}; report the lines without media there')
    q.add_argument('--meta', metavar='vox1_meta.csv', help='without a corpus: the metadata alone')
    q.add_argument('--strict', action='store_true', help='a line that cannot be used is an error')
    q.add_argument('--baseline', choices=('random', 'gender'),
                   help='score random vectors, or vectors that encode gender only, as if all media were present')
    q.add_argument('--run', help=f'with --baseline: {RUN} (default: random-vectors, gender-vectors)')
    q.add_argument('--set', **MANY,
                   help='with --baseline: a field of ProtocolConfig, e.g. replicates=200; may be repeated')


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


def _add_extract(sub):
    q = command(sub, extract, 'embed a corpus once into a feature file, to train on it without encoders')
    q.add_argument('encoder', help="a run (name under `runs`, or a path), or `faa`: FAA's pretrained encoders")
    q.add_argument('--corpus', required=True, help=CORPUS)
    q.add_argument('-o', '--output', required=True, metavar='FILE.npz', help='a name under `data`, or a path')
    q.add_argument('--set', **MANY,
                   help='for `faa`: voice_weights=..., face_weights=..., seconds=5, size=112; may be repeated')


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


def _add_train(sub):
    q = command(sub, train, 'train a recipe; the same command resumes a stopped run')
    q.add_argument('recipe', help='cid-demo, cmpc-demo, cmpc-voxceleb1, ... (a wrong name lists all), or a JSON file')
    q.add_argument('--run', help='a name under `runs`, or a path (default: the name of the recipe)')
    q.add_argument('--corpus', help=f"{CORPUS} (default: the recipe's)")
    q.add_argument('--set', **MANY,
                   help='change a field, e.g. train.seed=3, train.total_samples=100000, method.tau=0.05; may be '
                        'repeated')
    q.add_argument('--show', action='store_true', help='print the recipe and stop')


def flops(a, s):
    from vfassoc.training.flops import SPLITS, cost as count, disk
    from vfassoc.training.recipes import load_recipe
    recipe = load_recipe(a.recipe, changes(a.set, 'flops'))
    if a.tera is not None:
        current_name('--tera', {'--tera': '--tflops'})
        a.tflops = a.tera
    require(0 < a.tflops < 1e9, 'flops', 'tflops', a.tflops, 'above 0, below 1e9')
    size = SPLITS[recipe.method.cls.paper_split]
    for k, x in {**count(recipe, size, a.tflops), **disk(size, recipe.data.face_size)}.items(): print(f'{k:<28} {x:,}')
    print(f'for {size.videos:,} training videos of VoxCeleb1; counted, not timed')


def _add_flops(sub):
    q = command(sub, flops, 'count the FLOPs of a recipe on VoxCeleb1, and its hours at a given rate')
    q.add_argument('recipe', help='cmpc-voxceleb1, faa-voxceleb1, ..., or a JSON file')
    q.add_argument('--set', **MANY, help='change a field; may be repeated')
    q.add_argument('--tflops', type=float, default=150.,
                   help='sustained rate of the machine, in 10^12 operations per second (default: 150)')
    q.add_argument('--tera', type=float, help=argparse.SUPPRESS)


def evaluate(a, s):
    from vfassoc.evaluation.run import evaluate_run
    from vfassoc.experiments.tables import as_text, paper_table, read_scores
    from vfassoc.exchange.trial_tables import has_trials
    from vfassoc.training.run import corpus_path, run_path
    c = changes(a.set, 'evaluate')
    paths = [run_path(r, s) for r in a.run]
    if a.languages:
        from vfassoc.exchange.languages import evaluate_languages, languages_text
        if not a.corpus or a.lists: raise ConfigError('evaluate: --languages needs --corpus, and no --lists')
        return print(languages_text(*evaluate_languages(paths, a.corpus, s, c)))
    if a.lists and has_trials(tables := corpus_path(a.lists, s)):
        if a.corpus or a.strict: raise ConfigError('evaluate: trial tables need no --corpus and no --strict')
        from vfassoc.exchange.row_trials import evaluate_on_tables, tables_text
        for p, result in ((p, evaluate_on_tables(p, tables, s, c)) for p in paths):
            print('\n'.join([f'{p}\n{tables_text(result)}', *result.notes]))
        return
    if a.lists:
        from vfassoc.evaluation.run_published import evaluate_on_lists
        for p in paths: evaluate_on_lists(p, a.lists, s, c, a.corpus or '', a.strict)
    elif a.strict: raise ConfigError('evaluate: --strict belongs to --lists')
    else:
        for p in paths: evaluate_run(p, s, c, corpus=a.corpus or '')
    print(as_text(paper_table(read_scores(paths, 'lists' if a.lists else 'metrics'))))


def _add_evaluate(sub):
    q = command(sub, evaluate, 'score runs on test identities: verification, matching, retrieval, with intervals')
    q.add_argument('run', nargs='+', help=RUN)
    q.add_argument('--set', **MANY, help='a field of ProtocolConfig, e.g. seed=1, replicates=2000; may be repeated')
    q.add_argument('--corpus', help=f"{CORPUS} (default: the run's)")
    q.add_argument('--lists', metavar='FOLDER',
                   help='score on published trials (matching, verification, galleries) instead of drawn ones; writes '
                        'lists.json. Or an imported corpus, with its trial tables; writes trial_tables.json')
    q.add_argument('--strict', action='store_true', help='with --lists: a line that cannot be used is an error')
    q.add_argument('--languages', action='store_true',
                   help='with --corpus: score each language of it apart, heard or unheard by each run, and the means')


def _tables_of(corpora, s):
    from vfassoc.exchange.trial_tables import read_trials
    from vfassoc.training.run import corpus_path
    return [t for c in corpora for t in read_trials(corpus_path(c, s))]


def submit(a, s):
    from vfassoc.exchange.submissions import (check_texts, join_submissions, submission_of, submission_text,
                                              write_submission)
    from vfassoc.training.run import load_run, run_path
    runs = [load_run(run_path(r, s), s.torch_device) for r in a.run]
    tables = [_tables_of([r.recipe.corpus], s) for r in runs]
    output = user_path(a.output, 'output')
    texts = join_submissions([submission_of(r, t) for r, t in zip(runs, tables)])
    checked = check_texts(texts, sum(tables, []), output)
    write_submission(output, texts)
    print(f'{submission_text(checked)}\n{output}')


def _add_submit(sub):
    q = command(sub, submit, 'write the score files of a challenge (FAME, FLAG) as a zip file, and check it')
    q.add_argument('run', nargs='+', help=f'{RUN}; one for each trained language')
    q.add_argument('-o', '--output', required=True, metavar='FILE.zip', help='the zip file')


def check_submission(a, s):
    from vfassoc.exchange.submissions import check_submission as run, submission_text
    print(submission_text(run(user_path(a.file, 'file'), _tables_of(a.corpus, s))))


def _add_check_submission(sub):
    q = command(sub, check_submission, 'check a submission as its scorer would read it; with labels, score it')
    q.add_argument('file', metavar='FILE.zip', help='the zip file, or a folder')
    q.add_argument('--corpus', nargs='+', required=True, help='imported corpora with the trial tables that it answers')


def score(a, s):
    from vfassoc.evaluation.score import score as run
    from vfassoc.experiments.tables import as_text, paper_table, read_scores
    from vfassoc.training.run import run_path
    path = run_path(a.run or Path(a.file[0]).stem, s)
    result = run(path, a.file, a.lists or '', a.meta or '', a.corpus or '', a.trials or '', a.split, a.name or '',
                 s.seed if a.seed is None else a.seed, s, changes(a.set, 'score'), a.strict)
    print(as_text(paper_table(read_scores([path], 'lists' if a.lists else 'metrics'), keep_empty=False)))
    print('\n' + '\n'.join(printable(n) for n in [*result.notes, str(path)]))


def _add_score(sub):
    q = command(sub, score, "score somebody else's embeddings: no media, no training; the result is a row of reports")
    q.add_argument('file', nargs='+', metavar='FILE',
                   help='.npz, .parquet or .csv with named voice and face vectors: one file, or one for each')
    q.add_argument('--lists', metavar='FOLDER', help='score on published trials; needs --meta')
    q.add_argument('--meta', metavar='vox1_meta.csv', help='metadata of the people of the lists')
    q.add_argument('--corpus', help=f'draw trials from the test identities of a {CORPUS}')
    q.add_argument('--split', default='test', help='with --corpus: other identities, e.g. valid (default: test)')
    q.add_argument('--trials', metavar='TABLE', help='.csv or .parquet with columns voice, face, label')
    q.add_argument('--run', help=f'where to write; {RUN} (default: the name of FILE)')
    q.add_argument('--name', help='the row in tables (default: the name of the run)')
    q.add_argument('--seed', type=int, help='training seed of the vectors, for merging and pairing by seed')
    q.add_argument('--strict', action='store_true', help='media without a vector are an error')
    q.add_argument('--set', **MANY, help='a field of ProtocolConfig, e.g. replicates=2000; may be repeated')


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


def _add_sweep(sub):
    q = command(sub, sweep, 'train and score all variants and seeds of a sweep in parallel; the same command resumes')
    q.add_argument('grid', help='ablation-cmpc, ... (a wrong name lists all), or a JSON file')
    q.add_argument('--run', help='folder of all cells: a name under `runs`, or a path (default: the name of the sweep)')
    q.add_argument('--jobs', type=int, default=0, help='cells at a time (default: one per core; one on a GPU)')
    q.add_argument('--scheduler', default='', metavar='ADDRESS',
                   help='address of a Dask scheduler, for several machines with a shared disk')
    q.add_argument('--set', **MANY,
                   help='a field of the sweep, e.g. seeds=[0,1], changes.train.total_samples=5000; may be repeated')


def tune(a, s):
    from vfassoc.core import from_dict
    from vfassoc.experiments.tuning import TuneConfig, tune as run
    from vfassoc.training.recipes import load_recipe
    from vfassoc.training.run import run_path
    cfg = from_dict(TuneConfig, dict(trials=a.trials, sampler=a.sampler, seed=s.seed), 'tune')
    c = changes(a.set, 'tune') | ({'corpus': a.corpus} if a.corpus else {})
    recipe = load_recipe(a.recipe, {'train.seed': s.seed, **c})
    folder = run_path(a.run or f'tune-{Path(a.recipe).stem}', s)
    table = run(recipe, folder, s, cfg, a.jobs, a.scheduler)
    if not table.auc.notna().any():
        raise RunError(f'{folder}: no trial was scored (the last: {table.reason.iloc[-1]}); see trials.csv')
    best = table.loc[table.auc.idxmax()]
    print(f'{folder}: best of {a.trials} trials is {best.number}, validation AUC {100*best.auc:.1f} over other videos; '
          f'train it with `vfassoc train {folder/"best.json"}`')


def _add_tune(sub):
    q = command(sub, tune, 'search the settings of a method on validation identities; the same command resumes')
    q.add_argument('recipe', help='the base: cid-demo, cmpc-demo, ... (a wrong name lists all), or a JSON file')
    q.add_argument('--run', help='folder of the study: a name under `runs`, or a path (default: tune-RECIPE)')
    q.add_argument('--corpus', help=f"{CORPUS} (default: the recipe's)")
    q.add_argument('--trials', type=int, default=20, help='finished trials in all (default: 20)')
    q.add_argument('--sampler', default='tpe', help='tpe or random (default: tpe)')
    q.add_argument('--jobs', type=int, default=1, help='trials at a time (default: 1)')
    q.add_argument('--scheduler', default='', metavar='ADDRESS',
                   help='address of a Dask scheduler, for several machines with a shared disk')
    q.add_argument('--set', **MANY, help='change a field of the base, e.g. train.total_samples=5000; may be repeated')


def check(a, s):
    from vfassoc.experiments import cells, checks, regimes, worlds
    from vfassoc.training.run import run_path
    cfg = checks.CheckContext(run_path(a.run, s), s, worlds.find_sources(a.people or '', a.index or ''), a.budget)
    world, _, method = (a.only or '').partition('/')
    if a.check == 'regimes':
        chosen = worlds.choose_names(world, regimes.AXES, 'map')
        names = worlds.choose_names(method, regimes.MAPPED, 'method')
        plan = regimes.plan_maps(names, 3 if a.seeds is None else a.seeds, {k: regimes.AXES[k] for k in chosen})
        extra = regimes.EXTRA
    else:
        places = {k: worlds.WORLDS[k] for k in worlds.choose_names(world, worlds.WORLDS, 'world')}
        rows = {k: cells.METHODS[k] for k in worlds.choose_names(method, cells.METHODS, 'method')}
        settings = [a.setting] if a.setting else cells.SETTINGS
        seeds, extra = 5 if a.seeds is None else a.seeds, ()
        plan = checks.plan_cells(places, rows, cells.HEADLINE, seeds, settings)
    table = Path(a.table or checks.TABLES[a.check])
    done, of = checks.run_check(plan, table, cfg, a.jobs, a.limit_minutes, extra)
    print(f'{table}: {done} of {of} cells are finished; `vfassoc report {checks.REPORTS[a.check]}` shows them')


def _add_check(sub):
    q = command(sub, check, 'train and score every method in every world (reality), or the points of maps (regimes)')
    q.add_argument('check', choices=('reality', 'regimes'), help='reality: worlds and methods; regimes: maps')
    q.add_argument('--only', metavar='WORLD[/METHOD]',
                   help='one world (or map) and maybe one method, e.g. "twin, middle session/CMPC"')
    q.add_argument('--setting', choices=('published', 'tuned'), help='only cells of this setting (default: both)')
    q.add_argument('--seeds', type=int, help='seeds of each cell (default: 5; regimes 3)')
    q.add_argument('--budget', type=int, default=12, help='trials of each study of a tuned cell (default: 12)')
    q.add_argument('--limit-minutes', type=float, default=0., metavar='M', help='stop after M minutes (default: never)')
    q.add_argument('--jobs', type=int, default=0, help='cells at a time, one thread each (default: one per core)')
    q.add_argument('--run', default='check', help='folder of runs, studies and corpora: a name under `runs`, or a path')
    q.add_argument('--table', metavar='FILE', help='CSV of finished cells (default: in figures/published)')
    q.add_argument('--people', metavar='FOLDER', help='features.npz and people.csv of MAV-Celeb v1')
    q.add_argument('--index', metavar='FOLDER', help="VoxCeleb1's index, see `vfassoc twin --help`")


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


def _add_report(sub):
    q = command(sub, report, 'run a report notebook; write the executed notebook and one self-contained HTML page')
    q.add_argument('name', help='train, evaluate, compare, ... (a wrong name lists all), or the path of a notebook')
    q.add_argument('--run', action='append', help=f'{RUN}; may be repeated')
    q.add_argument('--grid', help='sweep, for the reports on a sweep: a name under `runs`, or a path')
    q.add_argument('-p', '--parameter', **MANY, help='a parameter of the report; may be repeated')
    q.add_argument('-o', '--output', help='where to write (default: `figures`/NAME)')


def results(a, s):
    from vfassoc.experiments.results import choose_sweeps, render_checks, render_results
    if a.checks: return print(render_checks(a.output, s).resolve())
    sweeps = choose_sweeps(a.sweep or ())
    command = ' '.join(['vfassoc results', *(f'--sweep {x}' for x in a.sweep or ())])
    print(render_results(a.output, sweeps, s, a.jobs, command=command).resolve())


def _add_results(sub):
    q = command(sub, results, 'run unfinished sweeps and their reports, and write the published results as one page')
    q.add_argument('-o', '--output', default='RESULTS.md', metavar='FILE',
                   help='the page (default: RESULTS.md); its figures go to figures/published beside it')
    q.add_argument('--checks', action='store_true',
                   help='only the sections of `vfassoc check`, from the tables in figures/published beside the page')
    q.add_argument('--sweep', action='append', metavar='NAME[:REPORT,...]',
                   help='one of the sweeps (default: all), or another one with its reports; may be repeated')
    q.add_argument('--jobs', type=int, default=0, help='runs at a time (default: one per core; one on a GPU)')


def demo(a, s):
    from vfassoc.demo import run_demo
    run_demo(s)


def _add_demo(sub):
    command(sub, demo, 'draw two small worlds, train, evaluate and report, in a few minutes')


# one per command, in the order of `--help`
ADDERS = (_add_synthesize, _add_prepare, _add_ingest, _add_voxceleb1, _add_vectors, _add_import, _add_twin, _add_pack,
          _add_extract, _add_train, _add_flops, _add_evaluate, _add_score, _add_trials, _add_submit,
          _add_check_submission, _add_sweep, _add_tune, _add_check, _add_report, _add_results, _add_demo)


def parser():
    "Build the parser of the whole command line."
    p = argparse.ArgumentParser('vfassoc', description=START, formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog='The file settings.ini sets the folders of corpora, runs and figures. '
                                       '`vfassoc COMMAND --help` describes one command.')
    p.add_argument('--version', action='version', version=__version__)
    p.add_argument('--wait', action='store_true', help=WAIT)
    p.add_argument('--settings', metavar='FILE',
                   help='path of a settings.ini (default: the first one in the working folder or above it)')
    sub = p.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for add in ADDERS: add(sub)
    add_commands(functools.partial(command, sub))
    return p


PATHS = ('corpus', 'output', 'run', 'recipe', 'grid', 'encoder', 'name', 'folder', 'tables', 'index', 'meta', 'lists',
         'table', 'people', 'truth', 'file', 'settings', 'model', 'query', 'media', 'gallery', 'voice',
         'face', 'trials') # arguments that are names or paths


def check_text(a):
    "Raise `ConfigError` for an argument that is not UTF-8, or that cannot be a path."
    for k, v in vars(a).items():
        for x in (v if isinstance(v, list) else [v]):
            if not isinstance(x, str): continue
            if any('\ud800' <= c <= '\udfff' for c in x):
                raise ConfigError(f'{k} {x!r}: the text is not UTF-8; give another name')
            if k in PATHS: user_path(x, k)


def say(text):
    "Print one line on stderr, below unfinished progress bars."
    for bar in list(getattr(tqdm, '_instances', ())):
        with contextlib.suppress(Exception): bar.close()
    print(f'vfassoc: {printable(str(text))}', file=sys.stderr, flush=True)


def unexpected(e):
    "Print an unexpected error as one line; write its traceback to a file that the line names."
    what = ' '.join(f'{type(e).__name__}: {e}'.split())[:300].rstrip(': ')
    try:
        fd, file = tempfile.mkstemp('.txt', 'vfassoc-error-') # readable by its owner only
        with open(fd, 'w', encoding='utf-8', errors='backslashreplace') as f:
            f.write(f'{os.environ.get("VFASSOC_COMMAND")}\n\n{"".join(traceback.format_exception(e))}')
        where = f'the traceback is in {file}'
    except Exception: where = 'the traceback could not be written'
    say(f'{what}; this error was not expected; {where}')
    return 1


@contextlib.contextmanager
def surroundings(a, argv):
    "Set the process up: SIGTERM interrupts, locks name the command, thread errors take one line, any name prints."
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
    """Parse, call, and turn every failure into one line on stderr.

    Exit status: 2 for an error of the library, 1 for any other error (its traceback is in a file), 130 for Ctrl-C, 143
    for SIGTERM."""
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
        return 143 if isinstance(e, Terminated) else 130 # a second signal, during the handling of the first


if __name__ == '__main__': sys.exit(main())
