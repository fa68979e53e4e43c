"The repository as git would hand it over, and a clean environment to try things in."
import os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent # nbdev, jupytext and the others stand beside the python that runs the tests

def files(root=ROOT) -> list[Path]:
    "What belongs to the repository: tracked files and those that git would offer to add; no builds, corpora or runs."
    out = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root,
                         capture_output=True, text=True, check=True).stdout
    return sorted(Path(p) for p in out.split('\0') if p and (root/p).is_file())

def notebooks(root=ROOT) -> list[Path]:
    "The book and its reports, relative to the repository."
    return [p for p in files(root) if p.suffix == '.ipynb' and p.parts[0] == 'nbs']

def modules(root=ROOT) -> list[Path]:
    "The library's source files, relative to the repository."
    return [p for p in files(root) if p.suffix == '.py' and p.parts[0] == 'vfassoc']

def copy_to(folder) -> Path:
    "A copy of the repository in `folder`."
    for p in files():
        (folder/p).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/p, folder/p)
    return folder

def call(*cmd, cwd, **env) -> str:
    "Run a command with this environment's programs first on the PATH; its output, or an error that shows it."
    base = {k: v for k,v in os.environ.items() if k not in ('PYTHONPATH', 'VFASSOC_SETTINGS')
            and not k.startswith('GIT_')}
    r = subprocess.run([str(c) for c in cmd], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       env={**base, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}', **env})
    assert r.returncode == 0, f'{" ".join(map(str, cmd))}: exit status {r.returncode}\n{r.stdout}'
    return r.stdout
