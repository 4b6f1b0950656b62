"""One form for every benchmark: figures beside their bars, on the screen, in a JSON file, in the exit status.

A benchmark module defines sections, functions ``section(smoke) -> Iterator[Figure]``, and ends with

.. code-block:: python

    if __name__ == "__main__":
        raise SystemExit(main("noise", [known_answers, throughput]))

so that ``python -m benchmarks.noise --check`` prints every figure beside its bar, writes
``benchmarks/results/noise.json`` and exits non-zero when one falls short.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["Figure", "at_least", "at_most", "environment", "equal", "main", "reported", "within"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number or fact, and the bar that it must clear.

    Attributes:
        name: What was measured.
        value: What came out.
        bar: The requirement in words, empty where the figure is only reported.
        passed: Whether the bar is cleared; True where there is none.
        detail: Conditions: sizes, units, spread.
    """

    name: str
    value: float | str
    bar: str = ""
    passed: bool = True
    detail: str = ""


Section = Callable[[bool], Iterator[Figure]]


def at_most(name: str, value: float, limit: float, detail: str = "") -> Figure:
    """A figure that must not exceed ``limit``; NaN fails."""
    return Figure(name, float(value), f"<= {limit:g}", bool(value <= limit), detail)


def at_least(name: str, value: float, limit: float, detail: str = "") -> Figure:
    """A figure that must reach ``limit``; NaN fails."""
    return Figure(name, float(value), f">= {limit:g}", bool(value >= limit), detail)


def within(name: str, value: float, low: float, high: float, detail: str = "") -> Figure:
    """A figure that must lie in ``[low, high]``; NaN fails."""
    return Figure(name, float(value), f"in [{low:g}, {high:g}]", bool(low <= value <= high), detail)


def equal(name: str, value: object, expected: object, detail: str = "") -> Figure:
    """A fact that must equal ``expected``."""
    return Figure(name, str(value), f"= {expected}", value == expected, detail)


def reported(name: str, value: float | str, detail: str = "") -> Figure:
    """A figure without a bar."""
    return Figure(name, value, detail=detail)


def environment() -> dict[str, str | int]:
    """Where the figures come from: device, versions, commit."""
    packages = ("torch", "numpy", "scipy", "scikit-fem", "zarr", "xarray", "dask", "triton")
    versions = {name: _version(name) for name in packages}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain") else ""),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "dolfinx": _dolfinx_version(),
    } | {name: version for name, version in versions.items() if version}


def main(
    name: str,
    sections: Sequence[Section],
    slow: Sequence[Section] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Run a benchmark from the command line and return its exit status.

    ``--check`` makes the status non-zero when a figure falls short, ``--smoke`` takes small sizes,
    ``--slow`` runs the long sections too, ``--only NAME`` (repeatable) runs the named sections alone, long
    ones or not, and leaves what the file holds of the others, ``--out FILE`` says where the JSON goes.
    """
    options = _parse(name, [*sections, *slow], argv)
    chosen = [*sections, *slow] if options.slow or options.only else sections
    chosen = [section for section in chosen if not options.only or section.__name__ in options.only]
    names, where = [section.__name__ for section in chosen], environment()
    kept = _kept(options.out, set(names), smoke=options.smoke) if options.only else []
    records, failed = [], 0
    for section in chosen:
        print(f"\n{section.__name__.replace('_', ' ')}", flush=True)
        began = time.perf_counter()
        figures = []
        for figure in section(options.smoke):
            print(_row(figure), flush=True)
            figures.append(figure)
        failed += sum(not figure.passed for figure in figures)
        seconds = round(time.perf_counter() - began, 1)
        record = {"section": section.__name__, "commit": where["commit"], "seconds": seconds}
        records.append(record | {"figures": [asdict(figure) for figure in figures]})
        # After every section, so that a run that is stopped keeps what it has measured.
        held = {"benchmark": name, "smoke": options.smoke, **where, "sections": kept + records}
        _write(options.out, held)
    total = sum(len(record["figures"]) for record in records)
    print(f"\n{total - failed} of {total} figures clear their bars.")
    print(f"Written to {options.out}.", file=sys.stderr)
    return int(options.check and failed > 0)


def _parse(name: str, sections: Sequence[Section], argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of a benchmark."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--check", action="store_true", help="exit non-zero when a figure falls short")
    parser.add_argument("--smoke", action="store_true", help="small sizes; bars may then fail")
    parser.add_argument("--slow", action="store_true", help="run the long sections, too")
    parser.add_argument("--only", action="append", choices=[section.__name__ for section in sections])
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    return parser.parse_args(argv)


def _kept(path: Path, again: set[str], *, smoke: bool) -> list[dict[str, object]]:
    """The sections of an earlier run that are not run again; none of a run of another size."""
    if not path.exists():
        return []
    held = json.loads(path.read_text())
    return (
        [each for each in held["sections"] if each["section"] not in again] if held["smoke"] == smoke else []
    )


def _row(figure: Figure) -> str:
    """One line of the table on the screen."""
    value = figure.value if isinstance(figure.value, str) else f"{figure.value:.4g}"
    mark = ("ok  " if figure.passed else "FAIL") if figure.bar else "    "
    return f"  {mark} {figure.name:<66} {value:>14}  {figure.bar:<20} {figure.detail}".rstrip()


def _write(path: Path, record: dict[str, object]) -> None:
    """JSON with NaN and infinities spelt as strings, replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_finite(record), indent=1) + "\n")
    partial.replace(path)


def _finite(value: object) -> object:
    """The same structure, with the floats that JSON cannot carry as strings."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str:
    """Installed version, empty where the package is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _dolfinx_version() -> str:
    """Version of DOLFINx, which is not a PyPI distribution."""
    try:
        import dolfinx
    except ImportError:
        return "none"
    return str(dolfinx.__version__)


def _git(*arguments: str) -> str:
    """Output of a git command, empty outside a checkout."""
    done = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _processor() -> str:
    """Model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
