"""A folder for TensorBoard's embedding projector, with a sheet of thumbnails."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from dorl_jax.errors import InputError
from dorl_jax.exports.thumbnails import thumbnails
from dorl_jax.files import replacing, write_text
from dorl_jax.vectors import Vectors

# The projector takes sheets of at most so many pixels a side, and thumbnails of one size.
SHEET = 8192
SIDES = (64, 48, 32)
MOST = (SHEET // SIDES[-1]) ** 2


def write_projector(vectors: Vectors, folder: Path, workers: int = 0) -> None:
    """Write `vectors.tsv`, `metadata.tsv`, `sprite.png` and, last, `projector_config.pbtxt`.

    `tensorboard --logdir FOLDER` shows them, and projector.tensorflow.org loads the two tables by hand. Without a
    column `source` there is no sheet.

    Args:
      vectors: at most 65,536 cells, which is what a sheet of 32-pixel thumbnails holds.
      folder: made if it is not there.
      workers: processes that decode images; 0 for threads, -1 for half the cores.

    Raises:
      InputError: too many cells.
    """
    if len(vectors) > MOST:
        raise InputError(f"{len(vectors)} cells are more than the {MOST} that the projector's sheet holds: use --most")
    text = "\n".join("\t".join(f"{number:.7g}" for number in row) for row in vectors.values.tolist())
    write_text(folder / "vectors.tsv", text + "\n")
    write_text(folder / "metadata.tsv", _metadata(vectors.columns))
    sprite = ""
    if "source" in vectors.columns.column_names:
        side = next(side for side in SIDES if len(vectors) <= (SHEET // side) ** 2)
        _write_sprite(vectors, folder / "sprite.png", side, workers)
        sprite = f'  sprite {{ image_path: "sprite.png" single_image_dim: {side} single_image_dim: {side} }}\n'
    write_text(
        folder / "projector_config.pbtxt",
        'embeddings {\n  tensor_name: "cells"\n  tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"\n'
        f"  tensor_shape: {len(vectors)} tensor_shape: {vectors.values.shape[1]}\n{sprite}}}\n",
    )


def _metadata(columns: pa.Table) -> str:
    """Tab-separated with a line of names; the projector takes that line for one only where there are two columns."""
    plain = [name for name in columns.column_names if not pa.types.is_nested(columns[name].type)]
    names = plain if len(plain) > 1 else [*plain, "place"]
    texts = [[_cell(value) for value in columns[name].to_pylist()] for name in plain]
    if len(plain) == 1:
        texts.append([str(place) for place in range(columns.num_rows)])
    lines = ["\t".join(map(_cell, names)), *("\t".join(row) for row in zip(*texts, strict=True))]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """A value without what would end its cell or line."""
    return "" if value is None else " ".join(str(value).split())


def _write_sprite(vectors: Vectors, path: Path, side: int, workers: int) -> None:
    """A square sheet, filled row by row: so the projector counts."""
    across = math.ceil(math.sqrt(len(vectors)))
    sheet = np.full((across * side, across * side, 3), 255, np.uint8)
    for place, picture in enumerate(thumbnails(vectors, side, workers)):
        top, left = (side * part for part in divmod(place, across))
        sheet[top : top + side, left : left + side] = picture
    with replacing(path) as partial:
        Image.fromarray(sheet).save(partial, "PNG")
