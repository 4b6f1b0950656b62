"""Reports: one self-contained HTML page, and the same as Markdown with its pictures beside it."""

import base64
import html
import io
import numbers
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from uq.markdown import inline_html, to_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "format_number"]


def format_number(value: object, digits: int = 4) -> str:
    """Write a number for a reader: integers in full, reals to some significant digits; text as it is.

    Args:
        value: A number, or anything with a text form. Tensors and arrays of one element are read as numbers.
        digits: Significant digits of reals, at least 1.

    Returns:
        The text.

    Example:
        >>> format_number(0.000123456), format_number(12345678), format_number(1234.5678), format_number("-")
        ('0.0001235', '12 345 678', '1235', '-')
    """
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        value = item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace(",", " ") if abs(int(value)) >= 10_000 else str(int(value))
    real = float(value)
    if real == 0 or 1e-4 <= abs(real) < 10 ** max(digits, 5):
        return f"{real:.{max(digits, 1)}g}" if abs(real) < 10**digits else f"{real:.0f}"
    return f"{real:.{max(digits, 1) - 1}e}" if abs(real) != float("inf") else str(real)


class Report:
    """A page built from top to bottom: headings, text, tables and figures, then written once.

    Args:
        title: Heading of the page.
        subtitle: One line below it.

    Raises:
        ValueError: If the title is empty.

    Example:
        >>> report = Report("Cantilever", "tip deflection under a random load")
        >>> report.heading("Result")
        >>> report.text("The mean is known to **1 %**.")
        >>> report.table(["quantity", "mean [mm]"], [["deflection", 12.5]], "Tip.")
        >>> print(report.markdown())
        # Cantilever
        <BLANKLINE>
        *tip deflection under a random load*
        <BLANKLINE>
        ## Result
        <BLANKLINE>
        The mean is known to **1 %**.
        <BLANKLINE>
        **Table 1.** Tip.
        <BLANKLINE>
        | quantity | mean [mm] |
        |:---|---:|
        | deflection | 12.5 |
        <BLANKLINE>
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        """Start a page; see the class."""
        if not title.strip():
            raise ValueError("`title` must not be empty; got an empty string.")
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[_Heading | _Text | _Table | _Figure] = []

    def heading(self, text: str, level: int = 2) -> None:
        """Begin a section (level 2) or a subsection (level 3).

        Args:
            text: The heading.
            level: 2 or 3; level 1 is the title.

        Raises:
            ValueError: If the level is another one.
        """
        if level not in (2, 3):
            raise ValueError(f"`level` must be 2 or 3; got {level}. Level 1 is the title of the report.")
        self._blocks.append(_Heading(text, level, len(self._blocks)))

    def text(self, markdown: str) -> None:
        """Add paragraphs, lists or fenced code, written in Markdown (see :func:`uq.markdown.to_html`).

        Args:
            markdown: The text; blocks are separated by empty lines.
        """
        self._blocks.append(_Text(markdown))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """Add a table; numbers are written by :func:`format_number` and set flush right.

        Args:
            columns: Names of the columns, with units in brackets.
            rows: One sequence of cells per row; text cells may hold inline Markdown.
            caption: One or two sentences above the table.

        Raises:
            ValueError: If a row has another number of cells than there are columns.
        """
        for i, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(f"`rows` must have {len(columns)} cells each; got {len(row)} in row {i}.")
        self._blocks.append(_Table(tuple(columns), tuple(map(tuple, rows)), caption, self._count(_Table) + 1))

    def figure(self, figure: "Figure", caption: str, *, dpi: int = 150) -> None:
        """Add a picture of a matplotlib figure as it is now; later changes to it do not show.

        Args:
            figure: The figure; it is neither changed nor closed.
            caption: What the reader should see in it, with units.
            dpi: Resolution of the picture [1/inch].

        Raises:
            TypeError: If ``figure`` is not a matplotlib figure.
        """
        if not hasattr(figure, "savefig"):
            raise TypeError(f"`figure` must be a matplotlib Figure; got {type(figure).__name__}.")
        stream = io.BytesIO()
        # Without the software tag the same figure gives the same bytes.
        figure.savefig(stream, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
        self._blocks.append(_Figure(stream.getvalue(), caption, self._count(_Figure) + 1))

    def markdown(self, figures: str = "figures") -> str:
        """The page as Markdown.

        Args:
            figures: Folder of the pictures, relative to the Markdown file.

        Returns:
            The text.
        """
        head = f"# {self.title}\n" + (f"\n*{self.subtitle}*\n" if self.subtitle else "")
        return "\n".join([head, *(block.markdown(figures) + "\n" for block in self._blocks)])

    def html(self) -> str:
        """The page as one HTML document that needs no other file and no network.

        Returns:
            The document.
        """
        style = resources.files("uq").joinpath("report.css").read_text(encoding="utf-8")
        title = html.escape(self.title)
        subtitle = f'<p class="subtitle">{inline_html(self.subtitle)}</p>' if self.subtitle else ""
        sections = [block for block in self._blocks if isinstance(block, _Heading) and block.level == 2]
        links = "".join(f'<a href="#{block.anchor}">{inline_html(block.words)}</a>' for block in sections)
        contents = f"<nav>{links}</nav>" if len(sections) > 2 else ""
        body = "\n".join(block.html() for block in self._blocks)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>\n{style}</style></head>\n"
            f"<body>\n<h1>{inline_html(self.title)}</h1>\n{subtitle}\n{contents}\n{body}\n</body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write ``path`` (HTML), the Markdown beside it, and its pictures in ``<name>_figures``.

        Each file is replaced as a whole: a reader never sees half of one. The folder is made where needed.

        Args:
            path: Where the HTML goes; it must end in ``.html``.

        Returns:
            The path of the HTML file.

        Raises:
            ValueError: If the path does not end in ``.html``.
        """
        path = Path(path)
        if path.suffix != ".html":
            raise ValueError(f"`path` must end in '.html'; got '{path}'.")
        folder = path.with_name(f"{path.stem}_figures")
        path.parent.mkdir(parents=True, exist_ok=True)
        for block in self._blocks:
            if isinstance(block, _Figure):
                folder.mkdir(exist_ok=True)
                _replace(folder / block.file, block.png)
        _replace(path.with_suffix(".md"), self.markdown(folder.name).encode())
        _replace(path, self.html().encode())
        return path

    def _count(self, kind: type) -> int:
        """Number of blocks of a kind so far."""
        return sum(isinstance(block, kind) for block in self._blocks)


@dataclass(frozen=True, slots=True)
class _Heading:
    """A section or subsection."""

    words: str
    level: int
    position: int

    @property
    def anchor(self) -> str:
        return f"{re.sub(r'[^a-z0-9]+', '-', self.words.lower()).strip('-')}-{self.position}"

    def markdown(self, figures: str) -> str:
        return f"{'#' * self.level} {self.words}"

    def html(self) -> str:
        return f'<h{self.level} id="{self.anchor}">{inline_html(self.words)}</h{self.level}>'


@dataclass(frozen=True, slots=True)
class _Text:
    """Paragraphs and lists."""

    source: str

    def markdown(self, figures: str) -> str:
        return self.source.strip()

    def html(self) -> str:
        return to_html(self.source)


@dataclass(frozen=True, slots=True)
class _Table:
    """A table with a numbered caption."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    caption: str
    number: int

    def _right(self, column: int) -> bool:
        """Whether a column holds numbers."""
        cells = [row[column] for row in self.rows]
        return any(_is_number(cell) for cell in cells) and all(
            _is_number(cell) or str(cell) in ("", "-") for cell in cells
        )

    def markdown(self, figures: str) -> str:
        def line(cells: Sequence[object]) -> str:
            return f"| {' | '.join(format_number(cell).replace('|', chr(92) + '|') for cell in cells)} |"

        rule = "".join("|---:" if self._right(i) else "|:---" for i in range(len(self.columns))) + "|"
        head = f"**Table {self.number}.** {self.caption}\n\n" if self.caption else ""
        return head + "\n".join([line(self.columns), rule, *map(line, self.rows)])

    def html(self) -> str:
        style = [' class="number"' if self._right(i) else "" for i in range(len(self.columns))]

        def line(tag: str, cells: Sequence[object]) -> str:
            cell = "".join(
                f"<{tag}{style[i]}>{inline_html(format_number(value))}</{tag}>"
                for i, value in enumerate(cells)
            )
            return f"<tr>{cell}</tr>"

        caption = f"<figcaption><b>Table {self.number}.</b> {inline_html(self.caption)}</figcaption>"
        return (
            f'<figure class="table">{caption if self.caption else ""}\n'
            f"<table><thead>{line('th', self.columns)}</thead>\n"
            f"<tbody>{''.join(line('td', row) for row in self.rows)}</tbody></table></figure>"
        )


@dataclass(frozen=True, slots=True)
class _Figure:
    """A picture with a numbered caption."""

    png: bytes
    caption: str
    number: int

    @property
    def file(self) -> str:
        return f"figure-{self.number:02d}.png"

    def markdown(self, figures: str) -> str:
        return f"![Figure {self.number}]({figures}/{self.file})\n\n**Figure {self.number}.** {self.caption}"

    def html(self) -> str:
        data = base64.b64encode(self.png).decode("ascii")
        return (
            f'<figure><img alt="Figure {self.number}: {html.escape(self.caption)}" '
            f'src="data:image/png;base64,{data}">\n'
            f"<figcaption><b>Figure {self.number}.</b> {inline_html(self.caption)}</figcaption></figure>"
        )


def _is_number(cell: object) -> bool:
    """Whether a cell is set as a number."""
    return (isinstance(cell, numbers.Real) and not isinstance(cell, bool)) or getattr(cell, "ndim", None) == 0


def _replace(path: Path, content: bytes) -> None:
    """Write a file under another name, then move it into place."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
