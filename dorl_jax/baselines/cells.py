"""What baselines learn from: the cells of a run as the stage `extract` left them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from dorl_jax.data.manifest import Manifest
from dorl_jax.evaluation.latents import Latents
from dorl_jax.store import Rows, Store


@dataclass(frozen=True)
class Cells:
    """Cells with their arrays, in the manifest's order.

    Attributes:
      manifest: laboratory, label and group of each.
      store: of the same cells, with the fields "feature", "crop", "foreground" and "empty".
    """

    manifest: Manifest
    store: Store

    def __len__(self) -> int:
        return len(self.manifest.cells)

    @property
    def ids(self) -> list[str]:
        return [cell.id for cell in self.manifest.cells]

    @property
    def laboratories(self) -> np.ndarray:
        """Names, one a cell."""
        return np.array([cell.laboratory for cell in self.manifest.cells])

    @property
    def labels(self) -> np.ndarray:
        """Names of the common classes, one a cell."""
        return np.array([cell.label for cell in self.manifest.cells])

    @property
    def domains(self) -> np.ndarray:
        """Number of each cell's laboratory, in the manifest's order."""
        number = {name: place for place, name in enumerate(self.manifest.laboratories)}
        return np.array([number[cell.laboratory] for cell in self.manifest.cells], np.int32)

    @property
    def features(self) -> Rows:
        """Tokens (grid, grid, C) of each cell."""
        return self.store["feature"]

    @property
    def crops(self) -> Rows:
        """uint8 (S, S, 3), each cell alone on grey."""
        return self.store["crop"]

    def foreground(self, place: int) -> UInt8[np.ndarray, "g g"]:
        """Share of each token that is cell, 0..255."""
        return self.store["foreground"][place]

    def latents(self, vectors: Float32[np.ndarray, "n d"]) -> Latents:
        """The vectors as those of these cells."""
        return Latents(
            ids=np.array(self.ids),
            laboratories=self.laboratories,
            labels=self.labels,
            vectors=np.asarray(vectors, np.float32),
        )


def open_cells(manifest: Manifest, store_folder: Path) -> Cells:
    """The cells of a run.

    Raises:
      InputError: no store, or one of other cells.
    """
    store = Store(store_folder)
    store.require_ids([cell.id for cell in manifest.cells])
    return Cells(manifest, store)
