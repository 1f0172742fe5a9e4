"""DoRL as a transformer of scikit-learn: images in, vectors out, before any of its classifiers.

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

model = make_pipeline(DoRLEmbedder("runs/mine"), LogisticRegression())
scores = cross_val_score(model, paths, labels)
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from dorl_jax.dorl import DoRL, Dtype
from dorl_jax.errors import InputError


class DoRLEmbedder(TransformerMixin, BaseEstimator):
    """Embeds images with the models of a run.

    It learns nothing from the data: `fit` loads the models. In a `Pipeline` that is fitted again and again, images are
    embedded every time; `Pipeline(..., memory="folder")` keeps their vectors. Pickled, or sent to another process, it
    carries the name of the run, not the models, and loads them there. The models of the last two runs stay in memory.

    Args:
      run: folder of the run.
      batch_size: images a step.
      dtype: of the arithmetic, "float32" or "bfloat16".
      workers: processes that decode files; 0 for threads, -1 for half the cores. In cross-validation over several
        processes take 0.
      progress: show a bar.

    Attributes:
      n_features_out_: components of a vector.
    """

    def __init__(
        self,
        run: str | os.PathLike[str] = "",
        *,
        batch_size: int = 16,
        dtype: Dtype = "float32",
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        self.run = run
        self.batch_size = batch_size
        self.dtype = dtype
        self.workers = workers
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> "DoRLEmbedder":
        """Load the models; the images are not looked at.

        Raises:
          InputError: no run at `run`, or one that is not trained to its end.
        """
        self.n_features_out_ = _load(self.run).width
        return self

    def transform(self, X: Any) -> Float32[np.ndarray, "n d"]:
        """The vector of every image.

        Args:
          X: paths (a list, an array, a column of a table), or images: uint8 (n, h, w, 3), or a list of (h, w, 3) of
            any sizes, RGB.

        Raises:
          InputError: anything else, or an image that cannot be read.
          NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        return _load(self.run).embed(
            _as_images(X),
            batch_size=self.batch_size,
            dtype=self.dtype,
            workers=self.workers,
            progress=self.progress,
        )

    def get_feature_names_out(self, input_features: Any = None) -> Shaped[np.ndarray, " d"]:
        """`dorl0`, `dorl1`, ...: the names that `set_output` gives the columns."""
        check_is_fitted(self)
        return np.array([f"dorl{number}" for number in range(self.n_features_out_)], dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        """With the age of the models: vectors that `Pipeline(memory=..)` keeps are found again by this state alone."""
        return {**super().__getstate__(), "written": _written(Path(self.run).absolute())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != "written"})

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_out_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _load(run: str | os.PathLike[str]) -> DoRL:
    """The models of a run, kept for the next fit: compiling them takes longer than embedding a fold."""
    if not os.fspath(run):
        raise InputError("DoRLEmbedder needs the folder of a run: DoRLEmbedder(run='runs/mine')")
    folder = Path(run).absolute()
    return _kept(folder, _written(folder))


def _written(folder: Path) -> tuple[int, ...]:
    """When the files were written that are written anew when a model is trained again."""
    models = (folder / stage / "model" / "model.json" for stage in ("finetune_sam", "train_cae"))
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in (folder / "settings.toml", *models))


@lru_cache(maxsize=2)
def _kept(folder: Path, written: tuple[int, ...]) -> DoRL:
    del written
    return DoRL.load(folder)


def _as_images(X: Any) -> Sequence[Any]:
    """Paths or arrays, one an image."""
    if isinstance(X, str | os.PathLike):
        raise InputError(f"expected a list of images, not {X!r}: take [{os.fspath(X)!r}] for one")
    array = X if isinstance(X, np.ndarray) else None
    if array is None and hasattr(X, "to_numpy"):  # of pandas or Polars
        array = X.to_numpy()
    if array is None:
        items = list(X)
    elif array.ndim == 4:
        items = list(array)
    elif array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1):
        items = array.reshape(-1).tolist()
    else:
        raise InputError(f"expected paths, or images (n, h, w, 3), not an array of shape {array.shape}")
    if not items:
        raise InputError("no images: an empty list has no vectors")
    return items
