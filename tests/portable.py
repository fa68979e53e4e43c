"""Run the numeric tests with the kernels of other processors, each variant in a process of its own.

    python tests/portable.py [--only VARIANTS] [-k EXPRESSION] [--list]      (or: make test-portable, ONLY=VARIANTS)

A variant is CORETYPE/CAPABILITY/THREADS. OPENBLAS_CORETYPE chooses the matrix products of numpy and scipy: unset (the
processor's own), Haswell, SkylakeX, Zen, Prescott. ATEN_CPU_CAPABILITY chooses torch's vector kernels: default, avx2,
avx512. THREADS is 1 or 2. `--only Haswell,Prescott/default,unset/1` runs the variants with all parts of one pattern.

Each process reports the kernels that numpy and torch really use. The table gives the reason for each skipped variant,
one that the processor cannot run, and the kernels of each variant that fell back to others. torch's own matrix products
come from MKL and oneDNN; OPENBLAS_CORETYPE does not change them. Variants of one thread run two at a time.
Exit status: 0 if all variants that ran passed, 1 if one failed, 2 if --only chooses none.
"""
import argparse, itertools, json, os, re, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORES, CAPABILITIES, THREADS = ('unset', 'Haswell', 'SkylakeX', 'Zen',
                                'Prescott'), ('default', 'avx2', 'avx512'), ('1', '2')
FILES = [f'tests/test_{name}.py' for name in ('losses', 'memory', 'nearest', 'clustering', 'evaluation', 'fusion')]
# these tests take most of the time (new processes, a drawn corpus, lists without a product), and test no kernel
LEAVE_OUT = 'not two_processes and not other_way_of_asking and not oracle_of_the_synthetic and not verification_holds'
NEEDS = {'Haswell': 'avx2', 'Zen': 'avx2', 'SkylakeX': 'avx512f', 'avx2': 'avx2', 'avx512': 'avx512f', '2': 2}
LOOK = '''import json, numpy, scipy.linalg, torch, threadpoolctl
info = [x for x in threadpoolctl.threadpool_info() if x['internal_api'] == 'openblas']
print(json.dumps(dict(blas=sorted({x['architecture'] for x in info}),
                      torch=torch.backends.cpu.get_cpu_capability(), threads=torch.get_num_threads())))'''


@dataclass
class Outcome:
    "What became of a variant."
    verdict:str # passed, FAILED, skipped
    kernels:str = '' # which were seen
    note:str = '' # pytest's closing line, or why it was skipped
    seconds:float = 0.


def flags() -> set[str]:
    "What the processor can do, as Linux names it; empty where that is not known."
    try: text = Path('/proc/cpuinfo').read_text()
    except OSError: return set()
    found = re.search(r'^flags\s*:(.*)$', text, re.M)
    return set(found[1].split()) if found else set()


def cannot(variant:tuple[str, str, str], known:set[str], processors:int) -> str:
    "Why the variant is left out here; '' if it is not."
    for part in variant:
        need = NEEDS.get(part)
        if isinstance(need, int) and processors < need: return f'{need} threads on {processors} processor'
        if isinstance(need, str) and known and need not in known: return f'the processor has no {need}'
        if isinstance(need, str) and not known: return 'what the processor can do is not known (no /proc/cpuinfo)'
    return ''


def chosen(only:str) -> list[tuple[str, str, str]]:
    "Variants that have all parts of one of the patterns, in the order of the table."
    every = list(itertools.product(CORES, CAPABILITIES, THREADS))
    if not only: return every
    patterns = [p.strip().split('/') for p in only.split(',')]
    return [v for v in every if any(set(p) <= set(v) for p in patterns)]


def environment(variant) -> dict[str, str]:
    "The variables of a variant."
    core, capability, threads = variant
    env = {k: v for k, v in os.environ.items()
           if k not in ('OPENBLAS_CORETYPE', 'ATEN_CPU_CAPABILITY', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')}
    env |= dict(ATEN_CPU_CAPABILITY=capability, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY='PASSIVE', MPLBACKEND='Agg')
    return env | ({} if core == 'unset' else {'OPENBLAS_CORETYPE': core})


def run(variant, extra:list[str]) -> Outcome:
    "The kernels that the variant gets, then its tests."
    if why := cannot(variant, flags(), os.cpu_count() or 1): return Outcome('skipped', note=why)
    start, env = time.monotonic(), environment(variant)
    look = subprocess.run([sys.executable, '-c', LOOK], env=env, cwd=ROOT, capture_output=True, text=True)
    if look.returncode:
        return Outcome('FAILED', note=(look.stderr.strip().splitlines() or ['no word'])[-1],
                       seconds=time.monotonic() - start)
    seen = json.loads(look.stdout)
    kernels = f"{'+'.join(seen['blas'])}, {seen['torch']}, {seen['threads']}"
    if seen['torch'].lower() != variant[1] or seen['threads'] != int(variant[2]):
        return Outcome('FAILED', kernels, 'torch does not use what it was told to', time.monotonic() - start)
    with tempfile.TemporaryDirectory(prefix='portable-') as tmp:
        command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '--basetemp', f'{tmp}/base', *FILES,
                   *extra]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        print('\n'.join(f"  {'/'.join(variant)}: {line}" for line in lines if line.startswith(('FAILED', 'ERROR')))
              or done.stdout[-2000:] + done.stderr[-2000:], flush=True)
    note = next((line.strip('= ') for line in reversed(lines) if re.search(r'\d+ (passed|failed|error)', line)),
                f'pytest ended with {done.returncode}')
    return Outcome('FAILED' if done.returncode else 'passed', kernels, note, time.monotonic() - start)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', help='patterns apart by commas, each some parts of a variant apart by /')
    parser.add_argument('-k', default=LEAVE_OUT, help="which tests, as pytest's -k")
    parser.add_argument('--list', action='store_true', help='print the variants and stop')
    args = parser.parse_args(argv)
    variants = chosen(args.only)
    if not variants:
        print(f'portable: --only chooses no variant ({args.only}); parts are '
              f'{", ".join(CORES + CAPABILITIES + THREADS)}', file=sys.stderr)
        return 2
    if args.list:
        print('\n'.join('/'.join(v) for v in variants))
        return 0
    found = {}

    def one(variant):
        found[variant] = got = run(variant, ['-k', args.k])
        print(f"[{len(found)}/{len(variants)}] {'/'.join(variant)}: "
              f"{got.verdict}{f' in {got.seconds:.0f} s' if got.seconds else ''}; {got.note}", flush=True)

    # two of one thread at a time: no processor is asked twice
    for threads, workers in (('1', min(2, os.cpu_count() or 1)), ('2', 1)):
        with ThreadPoolExecutor(workers) as pool: list(pool.map(one, [v for v in variants if v[2] == threads]))
    print(f"\n{'variant':<22}{'kernels: OpenBLAS, torch, threads':<38}{'result':<9}{'s':>5}  remark")
    for v in variants:
        print(f"{'/'.join(v):<22}{found[v].kernels or '-':<38}{found[v].verdict:<9}{found[v].seconds:>5.0f}  "
              f"{found[v].note}")
    count = {k: sum(o.verdict == k for o in found.values()) for k in ('passed', 'FAILED', 'skipped')}
    print(f"\nportable: {count['passed']} variants passed, {count['FAILED']} failed, {count['skipped']} skipped")
    return int(count['FAILED'] > 0)


if __name__ == '__main__': sys.exit(main())
