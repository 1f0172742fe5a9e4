"""LISC: fields of view with an expert's outlines of leucocytes, Tehran."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dorl_jax.data.images import inspect_image, read_mask_values
from dorl_jax.data.listing import Row
from dorl_jax.data.sets.archives import files_of
from dorl_jax.data.sets.base import DataSet
from dorl_jax.data.sets.parts import Box
from dorl_jax.errors import InputError, name_some, suggest

_IMAGES, _MASKS, _EXPERT = "Main Dataset", "Ground Truth Segmentation", "areaforexpert1"
_WORDS = {"Baso": "basophil", "eosi": "eosinophil", "lymp": "lymphocyte", "mono": "monocyte", "neut": "neutrophil"}
# Cells of several kinds in one field, and the file does not say which is which.
_MIXED = "mixt"
# The masks are this much smaller than the fields on every side: 712 x 568 pixels, the fields 720 x 576.
_RIM = 4
# Read as the cell by `images.read_mask`.
_THRESHOLD = 64
# Of 720 x 576 pixels; smaller specks of an outline are no cell.
_SMALLEST_CELL = 200


def _read(roots: Sequence[Path]) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    mixed = dark = 0
    for image in files_of(roots, (".bmp",)):
        folder = image.parent
        if folder.parent.name != _IMAGES:
            continue
        label = next((known for known in (*_WORDS, _MIXED) if known.lower() == folder.name.lower()), None)
        if label is None:
            raise InputError(
                f"{image} lies in no folder of a label{suggest(folder.name, _WORDS)}: "
                f"LISC has {name_some((*_WORDS, _MIXED), 6)}"
            )
        if label == _MIXED:
            mixed += 1
            continue
        mask = folder.parent.parent / _MASKS / folder.name / _EXPERT / f"{image.stem}_expert.bmp"
        if not mask.is_file():
            raise InputError(f"no outlines of {image} at {mask}")
        levels = read_mask_values(mask)  # anything but 0 is a cell
        shift = _shift(image, mask, levels)
        frame = Box(*shift, shift[0] + levels.shape[1], shift[1] + levels.shape[0])
        # The library takes levels above 64 for the cell.
        readable = bool((levels[levels > 0] > _THRESHOLD).all())
        dark += not readable
        boxes = _cells(levels, shift)
        if not boxes:
            raise InputError(f"{mask} outlines no cell")
        field = f"{label}/{image.name}"
        for number, box in enumerate(boxes, 1):
            window = box.with_margin(frame)
            rows.append(
                Row(
                    file=field if len(boxes) == 1 else f"{field}#{number}",
                    image=window.of(image),
                    label=label,
                    mask=window.of(mask, shift) if readable else None,
                    group=field,
                    where=str(image),
                )
            )
    notes = []
    if mixed:
        notes.append(f"{mixed} fields of LISC with cells of several kinds are left out.")
    if dark:
        notes.append(f"The outlines of {dark} fields of LISC have levels of {_THRESHOLD} or less: not used as masks.")
    return rows, notes


def _shift(image: Path, mask: Path, levels: np.ndarray) -> tuple[int, int]:
    """Where the upper left pixel of the mask lies in the field."""
    facts = inspect_image(image)
    rims = (facts.width - levels.shape[1], facts.height - levels.shape[0])
    if rims == (0, 0):
        return 0, 0
    if rims == (2 * _RIM, 2 * _RIM):
        return _RIM, _RIM
    raise InputError(
        f"{mask} has {levels.shape[1]} x {levels.shape[0]} pixels, {image} {facts.width} x {facts.height}: "
        f"they have to be of one size, or the first {2 * _RIM} smaller"
    )


def _cells(levels: np.ndarray, shift: tuple[int, int]) -> list[Box]:
    """The outlined cells from left to right, in the coordinates of the field."""
    count, _, stats, _ = cv2.connectedComponentsWithStats((levels > 0).astype(np.uint8), connectivity=8)
    boxes = []
    for left, top, width, height, area in stats[1:count].tolist():
        if area >= _SMALLEST_CELL:
            x, y = left + shift[0], top + shift[1]
            boxes.append(Box(x, y, x + width, y + height))
    return sorted(boxes, key=lambda box: (box.left, box.top))


LISC = DataSet(
    name="lisc",
    title="LISC: Leukocyte Images for Segmentation and Classification",
    homepage="https://vl4ai.erc.monash.edu/pages/LISC.html",
    get="download LISC Database.zip; it holds fields of 720 x 576 pixels in 'LISC Database/Main Dataset/Baso/1.bmp' "
    "and outlines in 'LISC Database/Ground Truth Segmentation/Baso/areaforexpert1/1_expert.bmp'",
    download_urls=("http://users.cecs.anu.edu.au/~hrezatofighi/Data/LISC%20Database.zip",),
    reader=_read,
    words=_WORDS,
    citation="""@article{rezatofighi2011automatic,
  author = {Rezatofighi, Seyed Hamid and Soltanian-Zadeh, Hamid},
  title = {Automatic recognition of five types of white blood cells in peripheral blood},
  journal = {Computerized Medical Imaging and Graphics},
  volume = {35},
  number = {4},
  pages = {333--343},
  year = {2011},
  doi = {10.1016/j.compmedimag.2011.01.003}
}""",
    licence="for research and education, free of charge; no redistribution",
    expected={"": {"Baso": 53, "eosi": 39, "lymp": 52, "mono": 48, "neut": 50}},
    counted="groups",
    masks="some",
)
