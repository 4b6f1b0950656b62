"""Where the rows of a training's history go: a table, and TensorBoard."""

import csv
from pathlib import Path

__all__ = ["History", "TrainingLog"]

History = dict[str, list[float]]
"""Columns by name, of one entry for each row."""


class TrainingLog:
    """Files that the history of a training is written to, row by row.

    Args:
        table: CSV file, written as a whole at every row: that of a resumed run holds what was there before.
        folder: Folder for TensorBoard. What a killed run wrote after its last checkpoint is hidden when it
            is resumed.

    Raises:
        ImportError: If TensorBoard is asked for and not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     TrainingLog(f"{folder}/log.csv").write({"iteration": [1], "loss": [0.5]})
        ...     Path(folder, "log.csv").read_text().split()
        ['iteration,loss', '1,0.5']
    """

    def __init__(self, table: str | Path | None = None, folder: str | Path | None = None) -> None:
        self.table = None if table is None else Path(table)
        self.folder = None if folder is None else Path(folder)
        self._writer = None

    def write(self, history: History) -> None:
        """Take the last row of a history."""
        if self.table is not None:
            _write_csv(self.table, history)
        if self.folder is not None:
            if self._writer is None:
                self._writer = _summary_writer(self.folder, purge_step=int(history["iteration"][-1]))
            for name, values in history.items():
                if name != "iteration":
                    self._writer.add_scalar(name, values[-1], int(history["iteration"][-1]))
            self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()


def _write_csv(path: Path, history: History) -> None:
    """The history as a table, a row for each entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(history)
        table.writerows(zip(*history.values(), strict=True))


def _summary_writer(folder: Path, purge_step: int):  # noqa: ANN202 (an optional package's class)
    """TensorBoard's writer."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "A log for TensorBoard needs the package tensorboard. Install it with pip install 'sdeuq[train]'."
        ) from error
    return SummaryWriter(str(folder), purge_step=purge_step)
