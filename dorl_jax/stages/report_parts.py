"""What the report is put together from."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from dorl_jax.evaluation import plots
from dorl_jax.html import png_uri


@dataclass(frozen=True)
class Chart:
    """A figure for light and for dark paper, as data URIs; width and height in CSS pixels."""

    light: str
    dark: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Tile:
    """Pictures of one cell, as data URIs, and what is written beneath."""

    images: list[tuple[str, str]]
    """(data URI, what it shows)"""
    caption: str
    marked: bool = False


def chart(draw: Callable[[plots.Theme], bytes], alt: str) -> Chart:
    """The figure in both themes."""
    light, dark = draw(plots.LIGHT), draw(plots.DARK)
    width, height = struct.unpack(">II", light[16:24])  # of the PNG's header, two pixels a CSS pixel
    return Chart(png_uri(light), png_uri(dark), width // 2, height // 2, alt)
