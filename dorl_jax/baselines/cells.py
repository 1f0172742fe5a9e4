"""What baselines learn from: the cells of a run as the stage `extract` left them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from dorl_jax.data.manifest import Manifest
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.of_cells import latents_of
from dorl_jax.evaluation.sources import laboratories_of
from dorl_jax.store import Rows, Store


@dataclass(frozen=True)
class Cells:
    """Cells with their arrays, in the manifest's order.

    Attributes:
      manifest: laboratory, label and group of each.
      store: of the same cells, with the fields "feature", "crop", "foreground" and "area".
      unseen: laboratories whose cells do not train anything; the segmenter neither.
      labels_seen: whether the segmenter saw the classes of the others.
    """

    manifest: Manifest
    store: Store
    unseen: tuple[str, ...] = ()
    labels_seen: bool = False

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
    def training(self) -> list[int]:
        """Places of the cells that may train without their labels."""
        return [place for place, cell in enumerate(self.manifest.cells) if cell.laboratory not in self.unseen]

    @property
    def domains(self) -> Int32[np.ndarray, " t"]:
        """Number of the laboratory of each cell that trains, in the manifest's order."""
        number = {name: place for place, name in enumerate(self.manifest.without(self.unseen).laboratories)}
        return np.array([number[self.manifest.cells[place].laboratory] for place in self.training], np.int32)

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

    def area(self, place: int) -> float:
        """Of the cell, in pixels of its image."""
        return float(self.store["area"][place])

    def latents(
        self, vectors: Float32[np.ndarray, "n d"], source: str = "", parts: Mapping[str, int] | None = None
    ) -> Latents:
        """The vectors as those of these cells.

        Args:
          vectors: in the order of the cells.
          source: whose labels they know, a laboratory or `all_but` one; "" for none.
          parts: what they are made of: name -> numbers; None for one.
        """
        known = laboratories_of(source, self.manifest.laboratories)
        # The segmenter, at least, was trained on the others.
        latents = latents_of(self.manifest, np.asarray(vectors, np.float32), self.unseen, self.labels_seen)
        assert latents.seen is not None
        seen = np.where(np.isin(latents.laboratories, known), "labelled", latents.seen)
        return replace(latents, seen=seen, parts=parts, serves=source)


def open_cells(manifest: Manifest, store_folder: Path, unseen: Sequence[str] = (), labels_seen: bool = False) -> Cells:
    """The cells of a run.

    Args:
      manifest: its cells.
      store_folder: what the stage `extract` wrote of them.
      unseen: laboratories whose cells do not train anything.
      labels_seen: whether the segmenter saw the classes of the others.

    Raises:
      InputError: no store, one of other cells, or an unknown laboratory.
    """
    manifest.without(unseen)  # a wrong name is told before anything is read
    store = Store(store_folder)
    store.require_ids([cell.id for cell in manifest.cells])
    return Cells(manifest, store, tuple(unseen), labels_seen)
