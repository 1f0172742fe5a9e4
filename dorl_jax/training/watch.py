"""The losses of steps whose results nobody has waited for yet, and what is wrong with them."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from dorl_jax.errors import InputError, name_some

# Steps that may be under way: enough that the device never waits, few enough that batches do not pile up on it.
_AHEAD = 2


class LossWatch:
    """Collects the losses of steps; they are fetched when they are wanted."""

    def __init__(
        self, name: str, divergence: float = 0.0, ids: Sequence[str] | None = None, least: float | None = None
    ) -> None:
        """Nothing seen yet.

        Args:
          name: of the training, for messages.
          divergence: a mean loss above this many times the least one so far is an error; 0 for never.
          ids: of the rows of the data, to name those of a broken step.
          least: least mean loss before, of a training that goes on.
        """
        self._name, self._divergence, self._ids = name, divergence, ids
        self._waiting: deque[tuple[int, dict[str, Array], np.ndarray | None]] = deque()
        self._rows: list[dict[str, float]] = []
        self.least = least

    def add(self, step: int, losses: dict[str, Array], places: np.ndarray | None) -> None:
        """Take the losses of a step, and wait until few enough steps are under way.

        Args:
          step: its number, from 1.
          losses: on the device.
          places: of its batch in the data.
        """
        self._waiting.append((step, losses, places))
        if len(self._waiting) > _AHEAD:
            jax.block_until_ready(self._waiting[-1 - _AHEAD][1])

    def check(self, last_good: Path | None) -> None:
        """Fetch what is waiting.

        Args:
          last_good: checkpoint that the message names.

        Raises:
          InputError: a loss is not finite; the message names the first such step, its cells and the checkpoint.
        """
        while self._waiting:
            step, losses, places = self._waiting.popleft()
            row = {name: float(value) for name, value in jax.device_get(losses).items()}
            bad = [name for name, value in row.items() if not math.isfinite(value)]
            if bad:
                raise self._stop(f"{', '.join(bad)} not finite at step {step}", places, last_good)
            self._rows.append(row)

    def means(self, step: int, last_good: Path | None) -> dict[str, float]:
        """Means over the steps since the last call.

        Args:
          step: number of the last of them.
          last_good: as for `check`.

        Raises:
          InputError: see `check`; the loss diverges.
        """
        places = self._waiting[-1][2] if self._waiting else None
        self.check(last_good)
        row = {name: float(np.mean([one[name] for one in self._rows])) for name in self._rows[0]}
        self._rows = []
        least = math.inf if self.least is None else self.least
        if self._divergence and row["loss"] > self._divergence * least:
            found = f"the loss, {row['loss']:.4g}, is over {self._divergence:g} times its least, {least:.4g}"
            raise self._stop(f"{found}, at step {step}", places, last_good)
        self.least = min(least, row["loss"])
        return row

    def look(self, step: int, numbers: Mapping[str, float], last_good: Path | None) -> None:
        """Look at what was observed of the model behind a step: the step itself may have broken it.

        Raises:
          InputError: a number is not finite; the message names the step and the checkpoint.
        """
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            raise self._stop(f"{', '.join(bad)} of validation not finite behind step {step}", None, last_good)

    def _stop(self, what: str, places: np.ndarray | None, last_good: Path | None) -> InputError:
        names = [] if places is None else [int(place) for place in places]
        cells = [self._ids[place] for place in names] if self._ids else names
        of = f" (batch of {name_some(cells, 8)})" if cells else ""
        kept = f"The last good checkpoint is {last_good}" if last_good else "There is no checkpoint yet"
        return InputError(
            f"{self._name}: {what}{of}. {kept}. Lower the learning rate and do the stage again (--redo), "
            "or look at these cells"
        )
