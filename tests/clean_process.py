"""Functions in processes of their own that start at once: a server that has imported the library forks them.

This holds of functions, of commands, of the kernels of reports, and of the workers of Dask.
Such a process has no threads, no random state and no process group of the tests, as a new interpreter has none; it only
spares the seconds in which torch is imported. It can be killed as any other."""
import atexit, contextlib, multiprocessing, os, signal, socket, sys, time, weakref
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['pandas', 'pytest', 'torch', 'torch._dynamo', 'IPython', 'ipykernel.kernelapp',
                                'matplotlib.pyplot', 'matplotlib_inline.backend_inline', 'vfassoc.cli',
                                'vfassoc.evaluation.run', 'vfassoc.experiments.comparison',
                                'vfassoc.experiments.diagnostics', 'vfassoc.experiments.tsne',
                                'vfassoc.experiments.tuning', 'vfassoc.methods.registry', 'vfassoc.training.run'])
_started = weakref.WeakSet()


@atexit.register
def _end_all():
    "Nobody stays behind, and nobody is waited for."
    for p in list(_started):
        with contextlib.suppress(Exception): p.kill()


def _enter(function, args, env, said, cwd=None):
    "What the process does first: this environment, one thread, everything that is written goes to the file `said`."
    import torch
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [p for p in env.get('PYTHONPATH', '').split(os.pathsep) if p]
    if cwd: os.chdir(cwd)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
    to = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2): os.dup2(to, stream)
    sys.stdout, sys.stderr = (open(stream, 'w', buffering=1, closefd=False) for stream in (1, 2))
    torch.set_num_threads(1)
    function(*args)


def start(function, args, env, said, cwd=None):
    "Begin `function(*args)` in a process of its own; what it writes goes to the file `said`."
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', **env}
    p = CONTEXT.Process(target=_enter, args=(function, args, env, str(said), cwd and str(cwd)))
    p.start()
    _started.add(p)
    return p


def run_all(calls, folder, timeout=300):
    "Run all `calls` (function of a module, arguments, environment) at the same time; return exit statuses and outputs."
    folder.mkdir(parents=True, exist_ok=True)
    said = [folder/f'said{k}.txt' for k in range(len(calls))]
    with contextlib.ExitStack() as end:
        ps = []
        for (fn, args, env), to in zip(calls, said):
            ps.append(start(fn, args, env, to))
            end.callback(ps[-1].kill) # nobody stays behind
        for p in ps: p.join(timeout)
    for p in ps: p.join()
    return [p.exitcode for p in ps], [to.read_text() if to.exists() else '' for to in said]


class Another:
    "A function in a process of its own, begun at once; what it prints is in `said`."
    def __init__(self, folder, fn, *args, cwd=None, **env):
        self.file = folder/f'said-{time.monotonic_ns()}.txt'
        self.p = start(fn, args, env, self.file, cwd)

    @property
    def said(self): return self.file.read_text() if self.file.exists() else ''

    def until(self, ready, seconds=120):
        "Wait until `ready()`; an end before that is a failure."
        end = time.monotonic() + seconds
        while not ready():
            assert self.p.is_alive() and time.monotonic() < end, self.said[-3000:]
            time.sleep(.02)

    def end(self, seconds=120):
        "Its exit status."
        self.p.join(seconds)
        self.p.kill()
        self.p.join()
        return self.p.exitcode


def command(*args):
    "What `python -m vfassoc` does, as leader of a process group that can be killed whole."
    from vfassoc.cli import main
    os.setsid()
    sys.argv = ['vfassoc', *map(str, args)]
    sys.exit(main())


# ---- kernels

def _kernel(argv):
    "What `python -m ipykernel_launcher` does."
    import matplotlib
    from ipykernel import kernelapp
    os.setsid()
    os.environ['JPY_PARENT_PID'] = str(os.getppid())
    matplotlib.rcParams['backend'] = os.environ.setdefault('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
    sys.argv = ['ipykernel_launcher', *argv]
    sys.path.insert(0, os.getcwd())
    kernelapp.launch_new_instance()


def _leads(pid):
    "Has a process a group of its own, or ended?"
    try: return os.getpgid(pid) == pid
    except ProcessLookupError: return True


class _Popen:
    "What jupyter_client holds of a process."
    stdin = stdout = stderr = None

    def __init__(self, process): self.process, self.pid = process, process.pid
    def poll(self): return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, signum):
        if self.process.is_alive(): os.kill(self.pid, signum)

    def kill(self): self.process.kill()
    def terminate(self): self.process.terminate()


def launch_kernel(cmd, env=None, cwd=None, **kw):
    "Instead of jupyter_client's: a kernel that has imported the library already."
    assert cmd[1:3] == ['-m', 'ipykernel_launcher'], cmd
    p = start(_kernel, (cmd[3:],), env or {}, os.devnull, cwd=cwd or os.getcwd())
    while p.is_alive() and not _leads(p.pid): time.sleep(.005) # its group is its own before anyone kills it
    return _Popen(p)


# ---- groups of processes

def free_port():
    "A port of this machine that nobody listens on."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def dask_cluster():
    "Two workers of Dask, forked as well."
    import dask, distributed
    forkserver.ensure_running() # before Dask asks it to import other things
    with dask.config.set({'distributed.worker.multiprocessing-method': 'forkserver'}), \
         distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


def run_ranks(function, args, folder, n=2, **env):
    "Run `function(*args)` in `n` processes of one gloo group, like torchrun; assert that all of them end well."
    group = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port()), 'WORLD_SIZE': str(n), **env}
    codes, outs = run_all([(function, args, {**group, 'RANK': str(r), 'LOCAL_RANK': str(r)}) for r in range(n)], folder)
    assert codes == [0]*n, (codes, outs[0][-3000:])
