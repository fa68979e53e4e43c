"Parts of several benchmarks: options of the command line, seconds of a call."
import argparse, time


def options(doc, **defaults):
    "Read the command line: an option for each name, of the type of its default; `doc` is the help."
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items(): p.add_argument(f'--{name}', type=type(default), default=default)
    return p.parse_args()


def timed(f):
    "Return the seconds of a call, and what it returned."
    start = time.perf_counter()
    out = f()
    return time.perf_counter() - start, out
