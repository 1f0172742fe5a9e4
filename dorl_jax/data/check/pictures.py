"""Sheets of small pictures: cells of every class of every laboratory, and images of one cell side by side."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dorl_jax.data.check.report import Copies, Report
from dorl_jax.data.images import ImageError, read_image, read_mask
from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.manifest import resolve_label
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError

_TILE, _GAP = 72, 4
_LEFT, _TOP = 150, 26
_PAPER, _INK, _OUTLINE = (255, 255, 255), (28, 37, 48), (0, 160, 90)


def contact_sheet(listings: Sequence[Listing], taxonomy: Taxonomy, each: int = 3) -> UInt8[np.ndarray, "h w 3"]:
    """A row for each laboratory, a column for each class, `each` cells in it, spread evenly over the laboratory's.

    Masks are outlined. Every image is fitted into its tile; its size stands beneath the laboratory's name.
    """
    wide = each * (_TILE + _GAP) + 3 * _GAP
    size = (_LEFT + len(taxonomy.classes) * wide, _TOP + len(listings) * (_TILE + 3 * _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    for column, label in enumerate(taxonomy.classes):
        _write(sheet, (_LEFT + column * wide, 6), label.replace("_", " "))
    for line, listing in enumerate(listings):
        top = _TOP + line * (_TILE + 3 * _GAP)
        _write(sheet, (_GAP, top + 4), listing.name)
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
            _write(sheet, (_GAP, top + 22), f"{width} x {height} px")
    return np.asarray(sheet)


def copies_sheet(
    copies: Sequence[Copies], listings: Sequence[Listing], most: int = 24, each: int = 6
) -> UInt8[np.ndarray, "h w 3"]:
    """A line for each cell that is there several times: its images, and their names."""
    row_of = {f"{listing.name}/{row.file}": row for listing in listings for row in listing.rows}
    shown = copies[:most]
    sheet = Image.new("RGB", (each * (_TILE + _GAP) + 620, max(1, len(shown)) * (_TILE + _GAP)), _PAPER)
    for line, one in enumerate(shown):
        top = line * (_TILE + _GAP)
        for number, cell in enumerate(one.cells[:each]):
            tile, _ = _tile(row_of[cell])
            sheet.paste(Image.fromarray(tile), (number * (_TILE + _GAP), top))
        said = "same pixels" if one.exact else f"distance {one.distance:.2f}"
        names = [f"{cell} ({label})" for cell, label in zip(one.cells, one.labels, strict=True)]
        for number, text in enumerate([said, *names[:3]]):
            _write(sheet, (each * (_TILE + _GAP) + _GAP, top + 17 * number), text)
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
        cv2.line(tile, (0, 0), (_TILE, _TILE), _INK)
        cv2.line(tile, (0, _TILE), (_TILE, 0), _INK)
        return tile, None
    height, width = image.shape[:2]
    scale = _TILE / max(height, width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    small = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if row.mask is not None:
        try:
            mask = read_mask(row.mask)
        except ImageError:
            mask = None
        if mask is not None and mask.shape == (height, width):
            cover = cv2.resize(mask.view(np.uint8) * 255, (wide, tall), interpolation=cv2.INTER_AREA)
            outlines, _ = cv2.findContours((cover > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            small = cv2.drawContours(small, outlines, -1, _OUTLINE, 1)
    top, left = (_TILE - tall) // 2, (_TILE - wide) // 2
    tile[top : top + tall, left : left + wide] = small
    return tile, (height, width)


def _write(sheet: Image.Image, place: tuple[int, int], text: str) -> None:
    ImageDraw.Draw(sheet).text(place, text, _INK, ImageFont.load_default(13))
