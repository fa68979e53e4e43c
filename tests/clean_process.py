"""Functions in processes of their own that start at once: a server that has imported the library forks them.

Such a process has no threads, no random state and no process group of the tests, as a new interpreter has none; it only
spares the seconds in which torch is imported. It can be killed as any other."""
import contextlib, multiprocessing, os, socket, sys

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['pandas', 'pytest', 'torch', 'vfassoc.models.two_tower', 'vfassoc.methods.registry',
                                'vfassoc.training.loop'])


def _enter(function, args, env, said):
    "What the process does first: this environment, one thread, everything that is written goes to the file `said`."
    import torch
    os.environ.clear()
    os.environ.update(env)
    to = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2): os.dup2(to, stream)
    sys.stdout, sys.stderr = (open(stream, 'w', buffering=1, closefd=False) for stream in (1, 2))
    torch.set_num_threads(1)
    function(*args)


def run_all(calls, folder, timeout=300):
    "Run all `calls` (function of a module, arguments, environment) at the same time; return exit statuses and outputs."
    folder.mkdir(parents=True, exist_ok=True)
    said = [folder/f'said{k}.txt' for k in range(len(calls))]
    ps = [CONTEXT.Process(target=_enter, args=(fn, args, {**os.environ, 'CUDA_VISIBLE_DEVICES': '', **env}, str(to)))
          for (fn, args, env), to in zip(calls, said)]
    with contextlib.ExitStack() as end:
        for p in ps:
            p.start()
            end.callback(p.kill) # nobody stays behind
        for p in ps: p.join(timeout)
    for p in ps: p.join()
    return [p.exitcode for p in ps], [to.read_text() if to.exists() else '' for to in said]


def free_port():
    "A port of this machine that nobody listens on."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def run_ranks(function, args, folder, n=2, **env):
    "Run `function(*args)` in `n` processes of one gloo group, like torchrun; assert that all of them end well."
    group = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port()), 'WORLD_SIZE': str(n), **env}
    codes, outs = run_all([(function, args, {**group, 'RANK': str(r), 'LOCAL_RANK': str(r)}) for r in range(n)], folder)
    assert codes == [0]*n, (codes, outs[0][-3000:])
