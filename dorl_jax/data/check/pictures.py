"""Sheets of small pictures: cells of every class of every laboratory, and images of one cell side by side."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dorl_jax.data.check.report import Copies, Report
from dorl_jax.data.images import ImageError, read_image, read_mask
from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.manifest import resolve_label
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError
from dorl_jax.sheets import INK, PAPER, fit_image, fit_mask, outline, write

_TILE, _GAP = 72, 4
_LEFT, _TOP = 150, 26
_OUTLINE = (0, 160, 90)


def contact_sheet(listings: Sequence[Listing], taxonomy: Taxonomy, each: int = 3) -> UInt8[np.ndarray, "h w 3"]:
    """A row for each laboratory, a column for each class, `each` cells in it, spread evenly over the laboratory's.

    Masks are outlined. Every image is fitted into its tile; its size stands beneath the laboratory's name.
    """
    wide = each * (_TILE + _GAP) + 3 * _GAP
    size = (_LEFT + len(taxonomy.classes) * wide, _TOP + len(listings) * (_TILE + 3 * _GAP))
    sheet = Image.new("RGB", size, PAPER)
    for column, label in enumerate(taxonomy.classes):
        write(sheet, (_LEFT + column * wide, 6), label.replace("_", " "))
    for line, listing in enumerate(listings):
        top = _TOP + line * (_TILE + 3 * _GAP)
        write(sheet, (_GAP, top + 4), listing.name)
        cells = _by_class(listing, taxonomy)
        sizes = []
        for column, label in enumerate(taxonomy.classes):
            own = cells.get(label, [])
            places = sorted({round(place) for place in np.linspace(0, len(own) - 1, min(each, len(own)))})
            for number, place in enumerate(places):
                tile, shape = _tile(own[place])
                sheet.paste(Image.fromarray(tile), (_LEFT + column * wide + number * (_TILE + _GAP), top))
                sizes += [shape] if shape else []
        if sizes:
            height, width = sorted(sizes)[len(sizes) // 2]
            write(sheet, (_GAP, top + 22), f"{width} x {height} px")
    return np.asarray(sheet)


def copies_sheet(
    copies: Sequence[Copies], listings: Sequence[Listing], most: int = 24, each: int = 6
) -> UInt8[np.ndarray, "h w 3"]:
    """A line for each cell that is there several times: its images, and their names."""
    row_of = {f"{listing.name}/{row.file}": row for listing in listings for row in listing.rows}
    shown = copies[:most]
    sheet = Image.new("RGB", (each * (_TILE + _GAP) + 620, max(1, len(shown)) * (_TILE + _GAP)), PAPER)
    for line, one in enumerate(shown):
        top = line * (_TILE + _GAP)
        for number, cell in enumerate(one.cells[:each]):
            tile, _ = _tile(row_of[cell])
            sheet.paste(Image.fromarray(tile), (number * (_TILE + _GAP), top))
        said = "same pixels" if one.exact else f"distance {one.distance:.2f}"
        names = [f"{cell} ({label})" for cell, label in zip(one.cells, one.labels, strict=True)]
        for number, text in enumerate([said, *names[:3]]):
            write(sheet, (each * (_TILE + _GAP) + _GAP, top + 17 * number), text)
    return np.asarray(sheet)


def histograms(report: Report) -> dict[str, list[str]]:
    """Of each laboratory the three channels as points of an SVG polyline in a box of 256 x 64."""
    drawn: dict[str, list[str]] = {}
    for one in report.laboratories:
        highest = max((max(channel) for channel in one.histogram), default=1.0) or 1.0
        drawn[one.name] = [
            " ".join(
                f"{256 * (place + 0.5) / len(channel):.1f},{64 - 62 * share / highest:.1f}"
                for place, share in enumerate(channel)
            )
            for channel in one.histogram
        ]
    return drawn


def _by_class(listing: Listing, taxonomy: Taxonomy) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in listing.rows:
        if row.duplicate_of:
            continue
        try:
            label = resolve_label(row, listing, taxonomy)
        except InputError:  # told in the report
            continue
        if label is not None:
            found.setdefault(label, []).append(row)
    return found


def _tile(row: Row) -> tuple[UInt8[np.ndarray, "t t 3"], tuple[int, int] | None]:
    """The image fitted into a tile with its mask outlined, and its height and width; a crossed tile if unreadable."""
    tile = np.full((_TILE, _TILE, 3), 235, np.uint8)
    try:
        image = read_image(row.image)
    except ImageError:  # told in the report
        cv2.line(tile, (0, 0), (_TILE, _TILE), INK)
        cv2.line(tile, (0, _TILE), (_TILE, 0), INK)
        return tile, None
    small = fit_image(image, _TILE)
    if row.mask is not None:
        try:
            mask = read_mask(row.mask)
        except ImageError:
            mask = None
        if mask is not None and mask.shape == image.shape[:2]:
            outline(small, fit_mask(mask, _TILE), _OUTLINE)
    tall, wide = small.shape[:2]
    top, left = (_TILE - tall) // 2, (_TILE - wide) // 2
    tile[top : top + tall, left : left + wide] = small
    return tile, image.shape[:2]
