"""Trainings in progress on disk: their last states and the best, written in the background, whole or not at all.

This file and `checkpoints.py` are the only ones that know Orbax.
"""

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from dorl_jax.errors import InputError, name_some
from dorl_jax.training.checkpoints import damage_told

T = TypeVar("T")
logger = logging.getLogger(__name__)
# What a background write fails with: the file system's own errors, or the array library's words for them.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)


class TrainingCheckpoints:
    """States of one training: arrays, and plain values beside them.

    A state appears when all of it is on disk. Whatever happens while one is written, those before it stay.
    """

    def __init__(
        self,
        folder: Path,
        signature: Mapping[str, Any],
        *,
        keep: int = 2,
        keep_best: bool = False,
    ) -> None:
        """Open the folder of a training, new or to go on with.

        Args:
          folder: made if it is not there.
          signature: plain values that a training must share with the states it goes on from: settings, data.
          keep: number of newest states that are kept.
          keep_best: keep the newest of the states that were saved as the best so far, too.

        Raises:
          InputError: the folder cannot be made or written to.
        """
        self._folder, self._signature = folder.absolute(), json.loads(json.dumps(signature))
        self._keep_best = keep_best
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if keep_best:
            kept.append(policies.BestN(get_metric_fn=_rank, n=1))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=_rank if keep_best else None,  # by this the ranks are kept on disk
            create=True,
            cleanup_tmp_directories=True,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise InputError(f"checkpoints cannot be written to {folder}: {error.strerror or error}") from error

    def restore(self, state: T, step: int | None = None) -> tuple[T, Any] | None:
        """A state, placed as the given one is, and the plain values beside it.

        Args:
          state: arrays of the shapes and places that are wanted; the mesh may be another than the one that wrote.
          step: of which step; None for the newest. None is returned if there is none.

        Raises:
          InputError: it is of a training with another signature; the message names the differences. Or it is damaged.
        """
        step = self._manager.latest_step() if step is None else step
        if step is None:
            return None
        beside = self._read(step, "progress", ocp.args.JsonRestore())
        changed = _differences(beside["signature"], self._signature)
        if changed:
            raise InputError(
                f"{self._folder} holds a training with other settings or data: {name_some(changed)}. "
                "Remove the folder to train anew, or give the training another one"
            )
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(state))
        return _typed(self._read(step, "state", ocp.args.StandardRestore(target)), state), beside["values"]

    def _read(self, step: int, item: str, how: ocp.args.CheckpointArgs) -> Any:
        mend = "remove it, and the same command goes on from the one before"
        with damage_told(f"the checkpoint {self._folder / str(step)} is", mend):
            return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]

    def save(self, step: int, state: Any, values: Any, *, best: bool = False) -> None:
        """Begin to write a state; the one before is on disk when this returns.

        Args:
          step: number of steps it is behind.
          state: arrays. They may be given away as soon as this returns.
          values: plain values.
          best: it is the best so far.

        Raises:
          InputError: this state or the one before cannot be written (a full disk, for instance).
        """
        # A copy: it is written in the background, and the caller goes on with its own.
        beside = ocp.args.JsonSave(copy.deepcopy({"signature": self._signature, "values": values}))
        arrays = ocp.args.StandardSave(_plain(state))
        # Later is better among those that were the best in their time; the others come last.
        metrics = {"rank": float(step) if best else -1.0} if self._keep_best else None
        try:
            self._manager.save(step, args=ocp.args.Composite(state=arrays, progress=beside), metrics=metrics)
        except _WRITE_ERRORS as error:
            raise self._broken(error) from error

    def best_step(self) -> int | None:
        """The step of the best state; None if none was saved as such."""
        step = self._manager.best_step() if self._keep_best else None
        return step if step is not None and _rank(self._manager.metrics(step)) >= 0 else None

    def newest(self) -> Path | None:
        """Folder of the newest state that is whole."""
        step = self._manager.latest_step()
        return None if step is None else self._folder / str(step)

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
          InputError: it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except _WRITE_ERRORS as error:
            raise self._broken(error) from error

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being written, and let go of the folder."""
        try:
            self.wait()
            self._manager.close()
        except _WRITE_ERRORS as broken:
            if error is None:
                raise
            logger.warning("%s", broken)  # the error that ended the block says more

    def _broken(self, error: Exception) -> InputError:
        whole = sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())
        good = f"the last good one is {self._folder / str(whole[-1])}" if whole else "there is none yet"
        reason = " ".join(str(error).split())[:300]
        return InputError(
            f"a checkpoint cannot be written to {self._folder}: {reason}. Make room or choose another folder; "
            f"{good}, and the same command goes on from it"
        )


def _rank(metrics: Mapping[str, float]) -> float:
    return metrics["rank"]


def _plain(state: Any) -> dict[str, Any]:
    """The state's arrays under numbers: Orbax keeps plain trees only."""
    return {"leaves": {f"{index:05d}": leaf for index, leaf in enumerate(jax.tree.leaves(state))}}


def _typed(plain: Mapping[str, Any], like: T) -> T:
    leaves = [plain["leaves"][name] for name in sorted(plain["leaves"])]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = sorted(old.keys() | new.keys())
    return [f"{name} ({old.get(name)}, now {new.get(name)})" for name in names if old.get(name) != new.get(name)]
