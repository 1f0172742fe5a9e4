"""Stage 5: one vector a cell. Store -> latent vectors in Parquet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from dorl_jax.config import Settings, setting
from dorl_jax.data.manifest import Manifest
from dorl_jax.data.views import small_crop
from dorl_jax.evaluation.latents import write_latents
from dorl_jax.evaluation.of_cells import latents_of
from dorl_jax.models import Cae
from dorl_jax.models.layers import AnyArray
from dorl_jax.store import Store
from dorl_jax.training.checkpoints import load_model


@dataclass(frozen=True)
class EmbedSettings(Settings):
    """The representation of every cell."""

    batch_size: int = setting(64, "cells a step", least=1)


@nnx.jit
def _encode(model: Cae, batch: Mapping[str, AnyArray]) -> jax.Array:
    foreground, crops = (batch[name].astype(jnp.float32) / 255 for name in ("foreground", "crop"))
    return model.encode(batch["feature"].astype(jnp.float32), foreground, crops, batch.get("area"))


def embed(
    manifest: Manifest,
    store_folder: Path,
    model_folder: Path,
    out: Path,
    settings: EmbedSettings,
    *,
    unseen: Sequence[str] = (),
    labels_seen: bool = False,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Encode every cell of the store, nothing masked, and write `out/latents.parquet`.

    Args:
      manifest: the cells of the store.
      store_folder: see `extract`.
      model_folder: of the autoencoder.
      out: folder.
      settings: see there.
      unseen: laboratories of which no training saw anything; it is written beside the vectors, for what is tested on
        them.
      labels_seen: whether a training saw the classes of the others.
      provenance: what else makes the vectors what they are (see `DoRL.provenance`); it is written beside them.
      progress: show a bar.

    Raises:
      InputError: the store is of other cells.
    """
    store, model = Store(store_folder), load_model(model_folder, Cae)
    store.require_ids([cell.id for cell in manifest.cells])
    vectors = []
    # A vector that needs no crop gets one that costs nothing.
    size, crop_size = settings.batch_size, model.config.crop_size or 1
    fields = ("feature", "foreground", *(("area",) if "size" in model.config.vector else ()))
    with tqdm(total=len(store), desc="embedding", unit="cell", disable=not progress) as bar:
        for start in range(0, len(store), size):
            count = min(size, len(store) - start)
            places = np.minimum(np.arange(start, start + size), len(store) - 1).tolist()  # one compiled shape
            batch = {name: np.stack([store[name][place] for place in places]) for name in fields}
            batch["crop"] = np.stack([small_crop(store["crop"][place], crop_size) for place in places])
            vectors.append(np.asarray(_encode(model, batch))[:count])
            bar.update(count)
    path = out / "latents.parquet"
    latents = latents_of(manifest, np.concatenate(vectors), unseen, labels_seen)
    write_latents(replace(latents, parts=model.config.part_sizes), path, provenance)
    return path
