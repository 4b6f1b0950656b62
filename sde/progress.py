"""Progress of a long loop on the terminal, with tqdm where it is installed and without it otherwise."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Progress"]


_QUIET_SECONDS = 10.0  # between lines where nobody watches a terminal: logs stay short


class _Bar(Protocol):
    """What we use of a tqdm bar."""

    def update(self, n: float = 1) -> object: ...

    def set_postfix_str(self, s: str, refresh: bool = True) -> None: ...

    def close(self) -> None: ...


class Progress:
    """A progress bar on standard error, as a context manager.

    Args:
        total: Number of steps of the loop; ``None`` where it is not known beforehand.
        label: What is being done.
        start: Steps already done, by a run that is resumed.
        unit: Name of a step.
        show: ``False`` makes every call do nothing.

    Example:
        >>> with Progress(10, "training", show=False) as bar:
        ...     bar.update(10, "done")
    """

    def __init__(
        self, total: int | None, label: str, *, start: int = 0, unit: str = "it", show: bool = True
    ) -> None:
        """Store what the bar will show; nothing is printed before the block is entered."""
        self.total, self.label, self.start, self.unit, self.show = total, label, start, unit, show
        self._bar: _Bar | None = None

    def __enter__(self) -> Self:
        """Open the bar."""
        if self.show:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                self._bar = _PlainBar(self.total, self.label, self.start)
            else:
                self._bar = tqdm(
                    total=self.total,
                    desc=self.label,
                    initial=self.start,
                    unit=self.unit,
                    leave=True,
                    mininterval=0.1 if sys.stderr.isatty() else _QUIET_SECONDS,
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar; exceptions pass."""
        if self._bar is not None:
            self._bar.close()

    def update(self, steps: int, text: str = "") -> None:
        """Advance by ``steps`` and show ``text`` behind the bar."""
        if self._bar is None:
            return
        if text:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(steps)


class _PlainBar:
    """A line per tenth of the work, or at each doubling of work without end, for machines without tqdm."""

    def __init__(self, total: int | None, label: str, start: int) -> None:
        """Start the clock."""
        self.total, self.label, self.done, self.text = total, label, start, ""
        self.began, self.shown = time.perf_counter(), -1

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        """Remember the text of the next line."""
        self.text = s

    def update(self, n: float = 1) -> None:
        """Print a line when another tenth is complete, or the steps have doubled."""
        self.done += int(n)
        mark = self.done.bit_length() if self.total is None else 10 * self.done // max(1, self.total)
        if mark > self.shown:
            self.shown = mark
            of = "" if self.total is None else f"/{self.total}"
            seconds = time.perf_counter() - self.began
            print(f"{self.label}: {self.done}{of} in {seconds:.0f} s {self.text}", file=sys.stderr)

    def close(self) -> None:
        """Nothing is open."""
