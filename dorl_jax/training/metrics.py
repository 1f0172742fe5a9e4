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
        rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                whole = [line for line in file if line.endswith("\n")]  # a kill may have torn the last
            rows = [row for row in csv.DictReader(whole) if _step(row) <= first_step]
        self._columns = list(rows[0]) if rows else []
        self._earlier, self._names = rows, set[str]()
        if rows:
            self._write(rows)
        else:  # no file rather than an empty one
            path.unlink(missing_ok=True)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row; the first row fixes the columns.

        A run that goes on, on other devices for instance, may measure something else: columns are added for it then,
        and what it does not measure stays empty.

        Raises:
          ValueError: the values have other names than those of the first row of this run.
        """
        row = {"step": str(step), **{name: f"{value:.6g}" for name, value in values.items()}}
        if not self._names:
            self._names = set(row)
            new = [name for name in row if name not in self._columns]
            if new:
                self._columns += new
                self._write([*self._earlier, row])
                return
        if row.keys() != self._names:
            raise ValueError(
                f"{self._path} has the columns {', '.join(self._columns)}; the row of step {step} has {', '.join(row)}"
            )
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _write(self, rows: list[dict[str, str]]) -> None:
        with replacing(self._path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def _step(row: Mapping[str, str | None]) -> float:
    """The row's step; infinity for a row torn by a kill."""
    step = row.get("step") or ""
    return float(step) if step.isdigit() and all(value is not None for value in row.values()) else float("inf")
