"""The shape of the library: who imports whom, what importing changes, what is public."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest

grimp = pytest.importorskip("grimp", reason="needs grimp (import-linter)")

PACKAGES = ("sde", "inference", "uq", "fem_bridge")
OPTIONAL = (
    "dolfinx",
    "petsc4py",
    "mpi4py",
    "ufl",
    "skfem",
    "meshio",
    "pyro",
    "matplotlib",
    "tqdm",
    "ot",
    "zarr",
    "xarray",
)
OPTIONAL += ("h5py", "dask", "distributed", "pandas", "triton", "sphinx", "lightning_fabric", "tensorboard")
UQ_MAY_IMPORT = ("sde.noise", "sde.shapes", "sde.checkpoint", "sde.progress", "sde.networks", "sde.samples")
#: The one file in which an optional package is imported at the top.
HOMES = {
    "dolfinx": "fem_bridge.assembly.dolfinx",
    "petsc4py": "fem_bridge.assembly.dolfinx",
    "ufl": "fem_bridge.assembly.dolfinx",
    "mpi4py": "fem_bridge.assembly.dolfinx",
    "triton": "sde.noise.triton_kernel",
    "pyro": "inference.pyro_bridge",
}

IMPORT_AND_COMPARE = """
import json, random, sys, warnings
import numpy as np, scipy, scipy.stats, torch, torch.distributions as D

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": str(np.random.get_state()),
        "python random state": str(random.getstate()),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "validation": D.Distribution._validate_args,
        "print options": str(np.get_printoptions()),
        "numpy errors": str(np.geterr()),
        "warning filters": str(warnings.filters),
        "excepthook": str(sys.excepthook),
    }

present, before = set(sys.modules), state()
for name in sys.argv[1:]:
    __import__(name)
after = state()
print(json.dumps({
    "changed": [key for key in before if before[key] != after[key]],
    "loaded": sorted({name.partition(".")[0] for name in set(sys.modules) - present}),
}))
"""


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


@pytest.fixture(scope="module")
def importing():
    """What importing the four packages in a fresh interpreter changes and loads."""
    command = [sys.executable, "-W", "error", "-c", IMPORT_AND_COMPARE, *PACKAGES]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def public_modules():
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield name
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if module.name not in HOMES.values() and not module.name.rpartition(".")[2].startswith("_"):
                yield module.name


def test_uq_takes_only_noise_shapes_and_checkpoints_from_sde(graph):
    imported = {
        target
        for module in graph.modules
        if module.partition(".")[0] == "uq"
        for target in graph.find_modules_directly_imported_by(module)
        if target.partition(".")[0] == "sde"
    }
    strangers = {
        name for name in imported if not any(f"{name}.".startswith(f"{ok}.") for ok in UQ_MAY_IMPORT)
    }
    assert not strangers


@pytest.mark.parametrize("optional", sorted(HOMES))
def test_optional_package_is_imported_in_its_home_only(graph, optional):
    importers = graph.find_modules_that_directly_import(optional) if optional in graph.modules else set()
    assert importers <= {HOMES[optional]}


def test_import_changes_no_global_state(importing):
    assert importing["changed"] == []


def test_import_loads_no_optional_package(importing):
    assert not set(importing["loaded"]) & set(OPTIONAL)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_at_most_forty_names(package):
    assert len(importlib.import_module(package).__all__) <= 40


def test_every_module_declares_its_public_names():
    silent = [name for name in public_modules() if not hasattr(importlib.import_module(name), "__all__")]
    assert not silent


def test_public_names_exist_and_are_documented():
    faults = []
    for name in public_modules():
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public, None)
            # Constants and type aliases cannot carry a docstring at run time.
            documentable = isinstance(value, type) or inspect.isroutine(value)
            if value is None or (documentable and not (value.__doc__ or "").strip()):
                faults.append(f"{name}.{public}")
    assert not faults
