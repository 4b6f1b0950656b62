"""Sphinx configuration: pages in Markdown, the API from docstrings, a gallery of the examples."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
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
]
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "sdeuq"
html_static_path: list[str] = []

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # names in prose that several classes share

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
    lines = [module_name, underline * len(module_name), ""]
    lines += [inspect.cleandoc(module.__doc__ or ""), ""]
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
        write_if_changed(folder / f"{package}.rst", "\n".join(page))


def write_gallery(_app: object) -> None:
    """One page per example: its Markdown cells as text, its code as code, its figure where one is kept."""
    folder = HERE / "gallery"
    folder.mkdir(exist_ok=True)
    names = [path.stem for path in sorted((HERE.parent / "examples").glob("[!_]*.py"))]
    for name in names:
        page = example_page(name, (HERE.parent / "examples" / f"{name}.py").read_text())
        write_if_changed(folder / f"{name}.md", page)
    header = (HERE / "gallery.md").read_text()
    toctree = ["```{toctree}", ":maxdepth: 1", "", *names, "```", ""]
    write_if_changed(folder / "index.md", header + "\n" + "\n".join(toctree))


def example_page(name: str, source: str) -> str:
    """Markdown of one example, whose cells begin with ``# %% [markdown]`` or ``# %%``."""
    cells = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    page = []
    for kind, cell in zip(["", *cells[1::2]], cells[0::2], strict=True):
        if "markdown" in kind:
            page.append(re.sub(r"^# ?", "", cell, flags=re.MULTILINE).strip())
        elif cell.strip():
            page.append(f"```python\n{cell.strip()}\n```")
    if not page or not page[0].startswith("# "):
        page.insert(0, f"# {name}")
    figure = HERE / "images" / f"{name}.png"
    if figure.exists():
        page.insert(1, f"```{{image}} ../images/{name}.png\n:width: 100%\n```")
    page.append(f"Run it: `python -m examples.{name}`.")
    return "\n\n".join(page) + "\n"


def write_if_changed(file: Path, text: str) -> None:
    """Write a generated page; one that is the same keeps its date, so that it is not built again."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def setup(app):
    app.connect("builder-inited", write_api)
    app.connect("builder-inited", write_gallery)
