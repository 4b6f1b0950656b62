"""Sphinx configuration: pages in Markdown, the API from docstrings, a gallery of the examples."""

import importlib
import pkgutil
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

project = "sdeuq"
author = "The sdeuq authors"
project_copyright = "The sdeuq authors"
release = installed_version("sdeuq")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py", "gallery/*.json", "gallery/*.zip"]
exclude_patterns += ["gallery/**/*.codeobj.json"]

html_theme = "furo"
html_title = "sdeuq"
html_static_path: list[str] = []

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples"),
    "gallery_dirs": "gallery",
    # The main job takes minutes, and spawned workers cannot import a script that the gallery runs.
    "filename_pattern": r"(sde_monte_carlo|sobol_function)\.py$",
    "ignore_pattern": r"__init__\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "plot_gallery": "True",
    "min_reported_time": 10**6,
    "abort_on_example_error": True,
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib",),
}

PACKAGES = {
    "sde": "noise, equations, solvers, ensembles",
    "inference": "learned dynamics and samplers",
    "uq": "inputs, designs, Monte Carlo, fields, generators, reports",
    "fem_bridge": "finite elements, submodels, boundary generators",
}
#: Modules that need an optional package to be imported at all.
NEEDS = {"fem_bridge.assembly.dolfinx": "dolfinx", "inference.pyro_bridge": "pyro"}


def public_modules(package: str) -> list[str]:
    """The public modules below a package, those that can be imported here."""
    root = importlib.import_module(package)
    names = [found.name for found in pkgutil.walk_packages(root.__path__, f"{package}.")]
    public = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    return [name for name in public if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]


def own_names(module_name: str, taken: set[int]) -> list[str]:
    """Names in a module's ``__all__`` that no earlier section documents."""
    module = importlib.import_module(module_name)
    fresh = []
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        documented = callable(value) and getattr(value, "__doc__", None)
        if documented and id(value) not in taken:
            taken.add(id(value))
            fresh.append(name)
    return fresh


def summary(value: object) -> str:
    """The first line of a docstring, up to the blank line."""
    return " ".join((value.__doc__ or "").strip().split("\n\n")[0].split())


def section(module_name: str, names: list[str], underline: str) -> list[str]:
    """reStructuredText of one module: its text, a list of its names, then each name."""
    module = importlib.import_module(module_name)
    lines = [
        module_name,
        underline * len(module_name),
        "",
        f".. automodule:: {module_name}",
        "   :no-members:",
        "",
    ]
    lines += [f".. currentmodule:: {module_name}", ""]
    lines += [f"* :obj:`{name}`: {summary(getattr(module, name))}" for name in names] + [""]
    for name in names:
        kind = "autoclass" if isinstance(getattr(module, name), type) else "autofunction"
        lines += [f".. {kind}:: {name}", *(["   :members:"] if kind == "autoclass" else []), ""]
    return lines


def write_api(_app: object) -> None:
    """One page per package, generated from ``__all__``: the package's own names first, then its modules'."""
    folder = HERE / "api" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        taken: set[int] = set()
        page = section(package, own_names(package, taken), "=")
        for module in public_modules(package):
            names = own_names(module, taken)
            if names:
                page += section(module, names, "-")
        file, text = folder / f"{package}.rst", "\n".join(page)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def setup(app):
    app.connect("builder-inited", write_api)
