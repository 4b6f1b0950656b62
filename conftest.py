"""What holds for every test: what is absent is skipped with a reason, and no test changes global state."""

import importlib.util
import shutil
import sys
import warnings
from collections.abc import Generator

import numpy as np
import pytest
import torch

PACKAGES = ("sde", "inference", "uq", "fem_bridge", "examples", "benchmarks", "tests")


def missing(package: str) -> bool:
    """Whether an optional package is absent."""
    return importlib.util.find_spec(package) is None


#: Files that cannot be imported for their docstring examples where their optional package is absent.
collect_ignore = [
    file
    for file, package in (
        ("fem_bridge/assembly/dolfinx.py", "dolfinx"),
        ("fem_bridge/assembly/skfem.py", "skfem"),
        ("sde/noise/triton_kernel.py", "triton"),
        ("inference/pyro_bridge.py", "pyro"),
    )
    if missing(package)
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    needs = {
        "gpu": (not torch.cuda.is_available(), "needs a CUDA device"),
        "fem": (missing("dolfinx"), "needs DOLFINx (make setup says how to get it)"),
        "mpi": (missing("mpi4py") or shutil.which("mpiexec") is None, "needs mpi4py and mpiexec"),
    }
    for item in items:
        for marker, (absent, reason) in needs.items():
            if absent and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def global_state() -> dict[str, object]:
    """The global state of torch and NumPy that a pure library leaves alone."""
    name, keys, position, *_ = np.random.get_state()  # noqa: NPY002 - the legacy generator is what is watched
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": torch.get_default_device(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's anomaly mode": torch.is_anomaly_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's matmul precision": torch.get_float32_matmul_precision(),
        "cuDNN's flags": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "NumPy's random state": (name, keys.tobytes(), position),
        "NumPy's error handling": tuple(sorted(np.geterr().items())),
    }


def foreign_modules() -> set[str]:
    """Names of the loaded modules that are not ours."""
    return {name for name in tuple(sys.modules) if name.partition(".")[0] not in PACKAGES}


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that leaves torch, NumPy or the warning filters other than it found them."""
    before, filters, modules = global_state(), list(warnings.filters), foreign_modules()
    result = yield
    after = global_state()
    changed = [what for what in before if before[what] != after[what]]
    # Some third-party packages set filters when first imported, which is not the test's doing.
    if filters != list(warnings.filters) and modules == foreign_modules():
        changed.append("the warning filters")
    if changed:
        pytest.fail(f"{item.name} changed {', '.join(changed)}.", pytrace=False)
    return result
