"""Sheets of cells with the outline of their mask and what they were called."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt8
from PIL import Image, ImageColor

from dorl_jax.data.images import read_image
from dorl_jax.data.sources import parse_source
from dorl_jax.dorl import DoRL
from dorl_jax.evaluation.familiarity import OUTSIDE
from dorl_jax.files import replacing
from dorl_jax.sheets import PREDICTED, TILE, fit_image, fit_mask, fit_square, lay_out, outline

# Cells on a sheet.
EACH = 64
_WIDTH = 2


def prediction_sheet(
    cells: Sequence[tuple[UInt8[np.ndarray, "_ _ 3"], Bool[np.ndarray, "_ _"]]], captions: Sequence[str]
) -> UInt8[np.ndarray, "tall wide 3"]:
    """Images, each with its mask's outline, and a caption beneath.

    Raises:
      ValueError: no cell, or not a caption for each.
    """
    colour = ImageColor.getrgb(PREDICTED)[:3]
    tiles = []
    for image, mask in cells:
        small = fit_image(image, TILE)
        outline(small, fit_mask(mask, TILE), colour, _WIDTH)
        tiles.append(fit_square(small, TILE))
    return lay_out(tiles, captions, [("mask", colour, _WIDTH), ("? no known laboratory is like it", None, 0)])


def write_sheets(dorl: DoRL, predictions: pa.Table, folder: Path, most: int) -> list[Path]:
    """Write `sheet_001.png` and so on, each of at most 64 cells.

    Masks are computed anew, for these cells alone.

    Args:
      dorl: the model that found the cells.
      predictions: see `dorl_jax.evaluation.prediction.prediction_table`; with the column `source`.
      folder: made if it is not there.
      most: of more cells so many, evenly spread over the table.

    Raises:
      ImageError: an image that can no longer be read.
    """
    rows = predictions.filter(pa.compute.is_valid(predictions["class"]))
    if not len(rows):
        return []
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    written = []
    for number, places in enumerate(_in_parts(chosen), start=1):
        part = rows.take(pa.array(places)).to_pylist()
        images = [read_image(parse_source(row["source"])) for row in part]
        sheet = prediction_sheet(list(dorl.masks(images)), [_caption(row) for row in part])
        path = folder / f"sheet_{number:03d}.png"
        with replacing(path) as partial:
            Image.fromarray(sheet).save(partial, "PNG")
        written.append(path)
    return written


def _in_parts(places: np.ndarray) -> Iterator[np.ndarray]:
    return (places[start : start + EACH] for start in range(0, len(places), EACH))


def _caption(row: dict[str, object]) -> str:
    """Class and probability, and whether no laboratory is near."""
    familiarity = row.get("familiarity")
    far = isinstance(familiarity, float) and familiarity < OUTSIDE
    return f"{'? ' if far else ''}{row['class']} {row['probability']:.2f}"
