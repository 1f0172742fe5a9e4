"""A training's run in Weights & Biases, the same one however often the training is killed and continued."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dorl_jax.errors import InputError
from dorl_jax.files import write_text


class WandbTracker:
    """Logs numbers as `train/...` and `validation/...`, and pictures (see `tracking.Tracker`)."""

    def __init__(self, folder: Path, project: str, name: str, settings: Mapping[str, Any]) -> None:
        """Start the run, or go on with it.

        Args:
          folder: of the training; the run's id is kept in its `wandb_id.txt`, Weights & Biases' own files in `wandb`.
          project: the run belongs to.
          name: of the run.
          settings: shown with it.

        Raises:
          InputError: the package is not installed, or Weights & Biases does not take the run.
        """
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                "the setting `wandb` needs a package that is not installed: pip install 'dorl-jax[wandb]', "
                "or leave `wandb` empty"
            ) from error
        id_file = folder / "wandb_id.txt"
        if not id_file.is_file():
            write_text(id_file, uuid.uuid4().hex[:12] + "\n")
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                config=dict(settings),
                allow_val_change=True,  # a continued training may be given another number of steps
                dir=str(folder),
            )
        except wandb.Error as error:
            raise InputError(
                f"Weights & Biases does not take a run of the project {project!r}: {error}; log in by "
                "`wandb login`, set WANDB_MODE=offline, or leave the setting `wandb` empty"
            ) from error
        self._image = wandb.Image
        # A run keeps the steps it was told before the training was killed, and refuses to be told them again.
        self._next_step = self._run.step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, {f"train/{name}": value for name, value in values.items()})

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, {f"validation/{name}": value for name, value in values.items()})

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        if step >= self._next_step:
            self._log(step, {name: self._image(image)})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._next_step:
            self._run.log(values, step=step)
