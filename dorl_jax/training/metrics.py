"""A CSV of what a training measured, one row every few steps, that a continued run goes on with."""

import csv
from collections.abc import Mapping
from pathlib import Path

from dorl_jax.files import replacing


class MetricsFile:
    """Append rows to a CSV; rows of steps that are taken again are dropped first."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Open.

        Args:
          path: the CSV.
          first_step: number of the step the training goes on behind; later rows are of a run that was killed.
        """
        self._path = path
        self._rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if _step(row) <= first_step]
        self._write()

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row; the first row fixes the columns."""
        row = {"step": str(step), **{name: f"{value:.6g}" for name, value in values.items()}}
        self._rows.append(row)
        if len(self._rows) == 1:
            self._write()
        else:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, list(self._rows[0])).writerow(row)

    def _write(self) -> None:
        with replacing(self._path) as partial, partial.open("w", newline="") as file:
            if self._rows:
                writer = csv.DictWriter(file, list(self._rows[0]))
                writer.writeheader()
                writer.writerows(self._rows)


def _step(row: Mapping[str, str | None]) -> float:
    """The row's step; infinity for a row torn by a kill."""
    step = row.get("step") or ""
    return float(step) if step.isdigit() and all(value is not None for value in row.values()) else float("inf")
