"""What a training shows while it runs: CSV files, TensorBoard, pictures and, if wished for, Weights & Biases."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dorl_jax.errors import InputError
from dorl_jax.files import replacing
from dorl_jax.training.metrics import MetricsFile
from dorl_jax.training.weights_and_biases import WandbTracker

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 5.0
"""A killed training loses no more than this of its event files."""


@runtime_checkable
class Tracker(Protocol):
    """Takes what a training measures and draws. Numbers are finite; steps never fall."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a row of training numbers."""

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """Take a row of validation numbers."""

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Take an RGB picture; `name` is part of file names."""

    def close(self, failed: bool = False) -> None:
        """Write out what is waiting; `failed`: the training ended by an error."""


class Trackers:
    """Hands everything to several trackers. Leaving a `with` block closes them."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda tracker: tracker.log(step, values))

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda tracker: tracker.validated(step, values))

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._tell(lambda tracker: tracker.picture(step, name, image))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        """Raises `InputError` where a file cannot be written."""
        for tracker in self._trackers:
            try:
                call(tracker)
            except OSError as error:
                raise InputError(
                    f"what the training measures cannot be written ({error}): make room; its checkpoints are kept, and "
                    "the same command goes on from the last one"
                ) from error

    def close(self, failed: bool = False) -> None:
        with ExitStack() as stack:  # the others are closed, too, if one cannot be
            for tracker in self._trackers:
                stack.callback(self._close, tracker, failed)

    @staticmethod
    def _close(tracker: Tracker, failed: bool) -> None:
        try:
            tracker.close(failed)
        except OSError as error:
            if not failed:
                raise InputError(f"what the training measured cannot be written ({error}): make room") from error
            logger.warning("%s", error)  # the error that ended the training says more

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


def open_trackers(
    folder: Path, first_step: int, *, name: str, settings: Mapping[str, Any], wandb: str = ""
) -> Trackers:
    """Open what a training is shown in.

    Rows of steps that a continued training takes again are dropped from the CSV files, and hidden in TensorBoard.

    Args:
      folder: of the training; `metrics.csv`, `validation.csv`, `tensorboard` and `pictures` come into it, and for
        Weights & Biases `wandb_id.txt` and `wandb`.
      first_step: number of the step the training goes on behind; 0 for one that starts anew.
      name: of the training in Weights & Biases.
      settings: shown in Weights & Biases.
      wandb: project in Weights & Biases; empty: nothing goes there.

    Raises:
      InputError: Weights & Biases is wished for, but not installed or not to be reached.
    """
    # A training that starts anew measures step 0 again.
    kept = first_step or -1
    online: list[Tracker] = [WandbTracker(folder, wandb, name, settings)] if wandb else []
    return Trackers([FileTracker(folder, kept), TensorBoardTracker(folder / "tensorboard", kept), *online])


class FileTracker:
    """`metrics.csv`, `validation.csv` and `pictures/<name>_<step>.png` in a folder."""

    def __init__(self, folder: Path, kept: int) -> None:
        """Open; rows of steps after `kept` are dropped."""
        self._pictures = folder / "pictures"
        self._training = MetricsFile(folder / "metrics.csv", kept)
        self._validation = MetricsFile(folder / "validation.csv", kept)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._training.append(step, values)

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        self._validation.append(step, values)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        with replacing(self._pictures / f"{name}_{step:07d}.png") as partial:
            Image.fromarray(image).save(partial, "PNG")

    def close(self, failed: bool = False) -> None:
        pass  # every row and picture is on disk already


class TensorBoardTracker:
    """Event files of TensorBoard: scalars `train/...` and `validation/...`, and pictures."""

    def __init__(self, folder: Path, kept: int) -> None:
        """Open a new event file; what earlier ones hold of steps after `kept` is hidden by TensorBoard."""
        from tensorboardX import SummaryWriter  # here, for it imports PyTorch where there is one

        # By itself a file is named after the second it is opened in, and a second one of that second would replace it.
        suffix = f".{time.time_ns()}"
        self._writer = SummaryWriter(
            str(folder), purge_step=kept + 1, flush_secs=_FLUSH_SECONDS, filename_suffix=suffix
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"validation/{name}", value, step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self, failed: bool = False) -> None:
        self._writer.close()
