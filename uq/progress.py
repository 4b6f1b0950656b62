"""Progress of long runs on standard error."""

import sys
import time
from types import TracebackType
from typing import Self

__all__ = ["Progress"]

_INTERVAL = 5.0  # seconds between plain lines


class Progress:
    """A progress bar (tqdm) or, where tqdm is missing, one plain line every five seconds.

    Args:
        total: Number of units, or ``None`` where unknown.
        description: What is running.
        unit: Name of a unit.
        initial: Units that were done before.
        enabled: Show anything at all.

    Example:
        >>> with Progress(10, "samples", enabled=False) as progress:
        ...     progress.advance(10)
        >>> progress.done
        10
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        *,
        unit: str = "sample",
        initial: int = 0,
        enabled: bool = True,
    ) -> None:
        """Prepare the bar; it appears on entering the context."""
        self.total, self.description, self.unit = total, description, unit
        self.done = initial
        self._enabled = enabled
        self._bar = None
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._enabled:
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            self._bar = tqdm(
                total=self.total, desc=self.description, unit=self.unit, initial=self.done, file=sys.stderr
            )
        return self

    def advance(self, units: int, note: str = "") -> None:
        """Count ``units`` more as done, with a few words on how it stands."""
        self.done += units
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif self._enabled and time.monotonic() - self._printed > _INTERVAL:
            self._printed = time.monotonic()
            self._line(note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
        elif self._enabled:
            self._line("stopped by an error" if error is not None else "done")

    def _line(self, note: str) -> None:
        """One plain line."""
        of = "" if self.total is None else f" of {self.total}"
        print(
            f"{self.description}: {self.done}{of} {self.unit}s {note}".rstrip(), file=sys.stderr, flush=True
        )
