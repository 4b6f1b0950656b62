"""Set up everything that `make demo` and `make test` need, and do nothing when nothing is left to do.

Looks for a Python that has DOLFINx; else installs it with apt on Debian and Ubuntu; else with conda or mamba;
else goes on without it. Then makes a virtual environment on that Python and installs sdeuq into it, editable.

Standard library only, and written for any Python 3 so that one too old is told so in a sentence.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".setup"
CONDA_ENV = STATE / "conda"
OLDEST = (3, 11)
APT_PACKAGES = ["python3-dolfinx-real", "python3-venv", "python3-dev", "g++"]
NUMPY_1 = (
    "numpy==1.26.4"  # the newest NumPy 1: a DOLFINx built against NumPy 1 cannot be imported with NumPy 2
)
TORCH_WITHOUT_GPU = "torch==2.13.0"
PROBE = """
import importlib.util, json, sys
found = importlib.util.find_spec("dolfinx") is not None
numpy = None
if found:
    try:
        import dolfinx, numpy as np
        numpy = np.__version__
    except Exception:
        found = False
print(json.dumps({"version": list(sys.version_info[:2]), "dolfinx": found, "numpy": numpy}))
"""


class SetUpError(Exception):
    """One clear sentence on what could not be had."""


def say(message: str) -> None:
    """Print a line at once, so that it precedes the output of the commands that follow."""
    print(f"set-up: {message}", flush=True)


def run(command: list[str], *, quiet: bool = False, silent: bool = False) -> bool:
    """Whether a command succeeds; ``quiet`` drops its chatter, ``silent`` its complaints too."""
    out = subprocess.DEVNULL if quiet or silent else None
    err = subprocess.DEVNULL if silent else None
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err).returncode == 0


def probe(python: str) -> dict | None:
    """Version, DOLFINx and NumPy of an interpreter; None where it cannot run or is too old."""
    try:
        # The working directory is left so that a folder of this repository cannot be taken for a package.
        answer = subprocess.run(
            [python, "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=os.sep,
            timeout=120,
            check=True,
        )
        facts = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return facts if tuple(facts["version"]) >= OLDEST else None


def candidates() -> list[str]:
    """Interpreters to look at: the one named by PYTHON, those on PATH, the system's, conda's; each once."""
    names = [os.environ.get("PYTHON", ""), "python3", *(f"python3.{minor}" for minor in range(11, 20))]
    paths = [shutil.which(name) for name in names if name]
    paths += ["/usr/bin/python3", "/usr/local/bin/python3", sys.executable]
    if os.environ.get("CONDA_PREFIX"):
        paths.append(os.path.join(os.environ["CONDA_PREFIX"], "bin", "python"))
    paths.append(str(CONDA_ENV / "bin" / "python"))
    own = str(ROOT / ".venv")
    return list(
        dict.fromkeys(path for path in paths if path and os.path.exists(path) and not path.startswith(own))
    )


def find_python(*, with_dolfinx: bool) -> tuple[str, dict] | None:
    """The first interpreter that is new enough and, where asked, has DOLFINx."""
    for path in candidates():
        facts = probe(path)
        if facts is not None and (facts["dolfinx"] or not with_dolfinx):
            return path, facts
    return None


def as_root() -> list[str] | None:
    """The prefix that runs a command as root without asking; None where there is none."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and run(["sudo", "-n", "true"], silent=True):
        return ["sudo", "-n"]
    return None


def apt_install(packages: list[str]) -> bool:
    """Install Debian packages; False where there is no apt or no right to use it, or apt fails."""
    if shutil.which("apt-get") is None:
        return False
    prefix = as_root()
    if prefix is None:
        say(f"no right to install packages; you may run: sudo apt-get install {' '.join(packages)}")
        return False
    say(f"installing {' '.join(packages)} with apt (some minutes)")
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    run([*apt, "update"], quiet=True)  # a mirror that fails may not matter: the next line tells
    return run([*apt, "install", "-y", "--no-install-recommends", *packages], quiet=True)


def conda_create() -> bool:
    """Create the conda environment; False where there is no conda, mamba or micromamba, or it fails."""
    tool = next((name for name in ("mamba", "micromamba", "conda") if shutil.which(name)), None)
    if tool is None:
        return False
    say(f"creating {CONDA_ENV.relative_to(ROOT)} with {tool} (some minutes)")
    file = str(ROOT / "environment.yml")
    command = [tool, "create"] if tool == "micromamba" else [tool, "env", "create"]
    return run([*command, "--yes", "--prefix", str(CONDA_ENV), "--file", file])


def install_dolfinx() -> tuple[str, dict] | None:
    """Install DOLFINx with apt, else conda; the Python that has it, or None."""
    system = probe("/usr/bin/python3") if os.path.exists("/usr/bin/python3") else None
    # Debian's DOLFINx is built for Debian's Python: of no use where that one is too old.
    debian_serves = system is not None or not os.path.exists("/usr/bin/python3")
    if debian_serves and apt_install(APT_PACKAGES):
        found = find_python(with_dolfinx=True)
        if found:
            return found
    return find_python(with_dolfinx=True) if conda_create() else None


def choose_python(dolfinx: str) -> tuple[str, dict]:
    """The interpreter to build on, and what it has."""
    found = None
    if dolfinx != "no":
        found = find_python(with_dolfinx=True) or install_dolfinx()
        if found is None:
            say("DOLFINx cannot be had here; going on with the scikit-fem assembler, which needs pip alone.")
    found = found or find_python(with_dolfinx=False)
    if found is None:
        have = ".".join(map(str, sys.version_info[:2]))
        raise SetUpError(
            f"Python 3.11 or newer is needed; found {have}. Name one: make PYTHON=/path/to/python3."
        )
    path, facts = found
    return path, {**facts, "dolfinx": facts["dolfinx"] and dolfinx != "no"}


def make_venv(python: str, facts: dict, venv: Path) -> None:
    """Create the virtual environment, or keep the one that is there and fits."""
    there = probe(str(venv / "bin" / "python"))
    if there and (there["version"], there["dolfinx"]) == (facts["version"], facts["dolfinx"]):
        return
    if venv.exists():
        if not (venv / "sdeuq.json").exists():
            raise SetUpError(f"{venv.name} does not fit and was not made by this set-up; remove it first.")
        shutil.rmtree(venv)
    version = ".".join(map(str, facts["version"]))
    say(f"creating {venv.name} on Python {version} ({python})")
    options = ["--system-site-packages"] if facts["dolfinx"] else []
    command = [python, "-m", "venv", *options, str(venv)]
    if not run(command, silent=True):
        shutil.rmtree(venv, ignore_errors=True)
        if not (apt_install([f"python{version}-venv"]) and run(command)):
            shutil.rmtree(venv, ignore_errors=True)
            raise SetUpError(f"{python} has no venv module; install it (Debian: python{version}-venv).")
    (venv / "sdeuq.json").write_text("{}")


def torch_requirement(python: str) -> list[str]:
    """What pip is asked for: the TORCH variable, else a build for this machine, else nothing with conda."""
    if os.environ.get("TORCH"):
        return os.environ["TORCH"].split()
    if python.startswith(str(CONDA_ENV)):
        return []
    gpu = shutil.which("nvidia-smi") and run(["nvidia-smi", "-L"], silent=True)
    return ["torch>=2.11"] if gpu else [TORCH_WITHOUT_GPU]


def install(python: str, facts: dict, venv: Path, extras: str) -> None:
    """Install sdeuq, editable, and its dependencies into the virtual environment."""
    constraints = STATE / f"constraints-{venv.name}.txt"
    numpy_1 = facts["dolfinx"] and facts["numpy"].startswith("1.")
    constraints.write_text(NUMPY_1 + "\n" if numpy_1 else "")
    say(f"installing sdeuq[{extras}] into {venv.name} (some minutes the first time)")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    command = [*pip, "-c", str(constraints), *torch_requirement(python), "-e", f"{ROOT}[{extras}]"]
    if not run(command):
        raise SetUpError("pip could not install the dependencies (its message is above); is there a network?")
    if facts["dolfinx"]:
        after = probe(str(venv / "bin" / "python"))
        if not (after and after["dolfinx"]):
            raise SetUpError(f"DOLFINx of {python} fails in {venv.name}; make DOLFINX=no goes on without it.")
    if shutil.which("c++") is None and shutil.which("g++") is None:
        say("no C++ compiler: the noise kernel falls back to PyTorch, with the same numbers, slower.")


def fingerprint(venv: Path, extras: str, dolfinx: str) -> str:
    """Hash of everything that the outcome depends on and a user may change."""
    digest = hashlib.sha256()
    for file in (ROOT / "pyproject.toml", Path(__file__), ROOT / "environment.yml"):
        digest.update(file.read_bytes())
    interpreter = os.path.realpath(venv / "bin" / "python")
    choices = [extras, dolfinx, interpreter, os.environ.get("TORCH", ""), os.environ.get("PYTHON", "")]
    digest.update("\0".join(choices).encode())
    return digest.hexdigest()


def up_to_date(venv: Path, extras: str, dolfinx: str) -> bool:
    """Whether the last set-up still holds."""
    try:
        state = json.loads((venv / "sdeuq.json").read_text())
    except (OSError, ValueError):
        return False
    if state.get(extras) != fingerprint(venv, extras, dolfinx) or not os.access(
        venv / "bin" / "python", os.X_OK
    ):
        return False
    # DOLFINx may have come since: one that appears is taken up.
    return state["dolfinx"] or dolfinx == "no" or find_python(with_dolfinx=True) is None


def set_up(venv: Path, extras: str, dolfinx: str) -> None:
    """Bring the virtual environment up to date."""
    STATE.mkdir(exist_ok=True)
    with open(STATE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once would install over each other
        if up_to_date(venv, extras, dolfinx):
            return
        python, facts = choose_python(dolfinx)
        make_venv(python, facts, venv)
        install(python, facts, venv, extras)
        file = venv / "sdeuq.json"
        done = json.loads(file.read_text()) if file.exists() else {}
        done.update({"dolfinx": facts["dolfinx"], extras: fingerprint(venv, extras, dolfinx)})
        file.write_text(json.dumps(done))
        assembler = "DOLFINx and scikit-fem" if facts["dolfinx"] else "scikit-fem alone"
        say(f"done; finite elements by {assembler}.")


def main() -> int:
    """Parse the command line and set up; 0 on success."""
    parser = argparse.ArgumentParser(description="Set up the environment of sdeuq.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extras", default="all,dev")
    parser.add_argument("--dolfinx", choices=("auto", "no"), default="auto")
    options = parser.parse_args()
    try:
        set_up(ROOT / options.venv, options.extras, options.dolfinx)
    except SetUpError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
