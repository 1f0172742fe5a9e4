"""Shapes and dyes: what synthetic smears are drawn with.

Shapes are given in micrometres, drawn at twice the resolution and averaged down. Dyes absorb light: colours
are kept as optical densities, -log(intensity), and a layer replaces what is under it as far as it covers it.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Colour = tuple[int, int, int]
Point = Float[np.ndarray, "2"]
Points = Float[np.ndarray, "n 2"]
# What is drawn on, and the coverage (0..255) at the image's resolution that comes of it.
Drawing = UInt8[np.ndarray, "drawn drawn"]
Layer = UInt8[np.ndarray, "side side"]
Density = Float[np.ndarray, "side side 3"]

_OVERSAMPLING = 2
# Fixed point of OpenCV's polygon coordinates: 1/16 pixel.
_SHIFT = 4


class Canvas:
    """Draws shapes given in micrometres into coverage layers (0..255) at the image's resolution."""

    def __init__(self, side: int, pixels_per_micrometre: float) -> None:
        self.side = side
        self.micrometres = side / pixels_per_micrometre
        self._scale = pixels_per_micrometre * _OVERSAMPLING
        self.pixels_per_micrometre = pixels_per_micrometre

    def empty(self) -> Drawing:
        """Nothing drawn yet; `finish` brings it to the image's resolution."""
        return np.zeros((self.side * _OVERSAMPLING,) * 2, np.uint8)

    def fill(self, drawing: Drawing, outline: Points, value: int = 255) -> None:
        """A filled polygon of (x, y) corners."""
        corners = np.round((outline * self._scale - 0.5) * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(drawing, [corners], value, cv2.LINE_8, _SHIFT)

    def stroke(self, drawing: Drawing, path: Points, width: float, value: int = 255) -> None:
        """A line of round ends through the points."""
        corners = np.round((path * self._scale - 0.5) * 2**_SHIFT).astype(np.int32)
        thickness = max(1, round(width * self._scale))
        cv2.polylines(drawing, [corners], False, value, thickness, cv2.LINE_8, _SHIFT)

    def dots(self, drawing: Drawing, centres: Points, radii: Float[np.ndarray, " n"], value: int = 255) -> None:
        """Filled circles."""
        fixed = 2**_SHIFT
        places = np.round((centres * self._scale - 0.5) * fixed).astype(int).tolist()
        for (x, y), radius in zip(places, (radii * self._scale * fixed).astype(int).tolist(), strict=True):
            cv2.circle(drawing, (x, y), radius, value, -1, cv2.LINE_8, _SHIFT)

    def finish(self, drawing: Drawing) -> Layer:
        """The drawing averaged down."""
        return cv2.resize(drawing, (self.side, self.side), interpolation=cv2.INTER_AREA)

    def texture(self, rng: np.random.Generator, grain: float) -> Float[np.ndarray, "side side"]:
        """Smooth noise of about unit variance with spots of `grain` micrometres."""
        cells = max(2, round(self.micrometres / grain))
        noise = rng.standard_normal((cells, cells), dtype=np.float32)
        return cv2.resize(noise, (self.side, self.side), interpolation=cv2.INTER_CUBIC)


def optical_density(colour: Colour) -> Float[np.ndarray, "3"]:
    """Of a colour seen on white, RGB 1..255."""
    return -np.log(np.asarray(colour, np.float32) / 255)


def lay(
    density: Density,
    layer: Layer,
    colour: Colour,
    amount: Float[np.ndarray, "side side"] | float = 1.0,
) -> None:
    """Replace what lies under the layer by `amount` of a dye."""
    cover = (layer.astype(np.float32) / 255)[..., None]
    dye = np.asarray(amount, np.float32)[..., None] * optical_density(colour)
    density += cover * (dye - density)


def blob(
    rng: np.random.Generator,
    middle: Point,
    radius: float,
    roughness: float = 0.04,
    stretch: float = 1.0,
    angle: float = 0.0,
    waves: int = 5,
) -> Points:
    """A closed outline about `middle`: an ellipse whose radius wavers by about `roughness` of itself."""
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    orders = np.arange(2, 2 + waves)
    sizes = rng.normal(0, roughness, waves) / np.sqrt(orders - 1)
    phases = rng.uniform(0, 2 * np.pi, waves)
    length = radius * (1 + (sizes[:, None] * np.cos(orders[:, None] * turn + phases[:, None])).sum(0))
    x, y = length * np.cos(turn) * np.sqrt(stretch), length * np.sin(turn) / np.sqrt(stretch)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1) + middle


def scatter(rng: np.random.Generator, middle: Point, radius: float, count: int) -> Points:
    """Points spread evenly over a disc."""
    turn, out = rng.uniform(0, 2 * np.pi, count), radius * np.sqrt(rng.random(count))
    return np.stack([out * np.cos(turn), out * np.sin(turn)], -1) + middle


def direction(turn: float) -> Point:
    """The unit vector at an angle (radians) from the x axis."""
    return np.array([np.cos(turn), np.sin(turn)])


def within(layer: Layer, body: Layer) -> Layer:
    """The part of a layer that lies on the body."""
    return np.minimum(layer, body)
