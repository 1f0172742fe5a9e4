"""Synthetic blood smears: laboratories that differ in look, cell classes that differ in nucleus and granules.

Shapes are drawn in micrometres at twice the resolution and averaged down; colours are the light that passes
through layers of dye, so background, red cells, cytoplasm, granules and nucleus are laid over each other.
"""

import csv
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dorl_jax.data.drawing import (
    Canvas,
    Colour,
    Density,
    Drawing,
    Layer,
    Point,
    Points,
    blob,
    direction,
    lay,
    optical_density,
    scatter,
    within,
)
from dorl_jax.errors import InputError, suggest

CLASSES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")


@dataclass(frozen=True)
class Laboratory:
    """How one laboratory's smears look.

    Colours are RGB, 0..255, as seen on a white background; `background` is the light itself.

    Attributes:
      name: of its folder.
      background: where nothing lies.
      nucleus: of the dense nucleus; others are paler shares of it.
      cytoplasm: of neutrophils and eosinophils.
      blue_cytoplasm: of lymphocytes and monocytes.
      orange_granule: of eosinophils.
      dark_granule: of basophils, and of the platelets' grains.
      red_cell: of red blood cells.
      side: of the image, in pixels.
      pixels_per_micrometre: magnification.
      blur: standard deviation of the focus, in pixels.
      noise: standard deviation of the camera's noise, in grey levels.
      crowding: mean number of red cells a 1000 square micrometres.
      uneven_light: largest relative fall of the light across the image.
    """

    name: str
    background: Colour
    nucleus: Colour
    cytoplasm: Colour
    blue_cytoplasm: Colour
    orange_granule: Colour
    dark_granule: Colour
    red_cell: Colour
    side: int
    pixels_per_micrometre: float
    blur: float
    noise: float
    crowding: float
    uneven_light: float


LABORATORIES = (
    Laboratory(
        name="cream",
        background=(253, 232, 210),
        nucleus=(78, 38, 128),
        cytoplasm=(226, 190, 214),
        blue_cytoplasm=(168, 178, 222),
        orange_granule=(212, 126, 116),
        dark_granule=(52, 24, 104),
        red_cell=(214, 168, 174),
        side=180,
        pixels_per_micrometre=6.0,
        blur=0.6,
        noise=1.5,
        crowding=12.0,
        uneven_light=0.05,
    ),
    Laboratory(
        name="grey",
        background=(206, 216, 214),
        nucleus=(136, 104, 238),
        cytoplasm=(226, 218, 248),
        blue_cytoplasm=(186, 200, 246),
        orange_granule=(236, 156, 184),
        dark_granule=(84, 66, 190),
        red_cell=(224, 190, 180),
        side=200,
        pixels_per_micrometre=9.0,
        blur=1.6,
        noise=3.0,
        crowding=15.0,
        uneven_light=0.12,
    ),
    Laboratory(
        name="yellow",
        background=(247, 240, 128),
        nucleus=(112, 26, 62),
        cytoplasm=(222, 186, 186),
        blue_cytoplasm=(186, 176, 190),
        orange_granule=(196, 88, 34),
        dark_granule=(58, 14, 52),
        red_cell=(246, 240, 232),
        side=112,
        pixels_per_micrometre=5.2,
        blur=1.0,
        noise=2.5,
        crowding=4.0,
        uneven_light=0.06,
    ),
    Laboratory(
        name="rose",
        background=(250, 244, 250),
        nucleus=(120, 32, 140),
        cytoplasm=(240, 188, 218),
        blue_cytoplasm=(196, 172, 226),
        orange_granule=(226, 116, 128),
        dark_granule=(76, 12, 92),
        red_cell=(238, 160, 150),
        side=150,
        pixels_per_micrometre=6.8,
        blur=0.4,
        noise=4.0,
        crowding=8.0,
        uneven_light=0.03,
    ),
    Laboratory(
        name="pale",
        background=(232, 226, 238),
        nucleus=(146, 112, 190),
        cytoplasm=(228, 216, 232),
        blue_cytoplasm=(198, 202, 232),
        orange_granule=(226, 162, 140),
        dark_granule=(104, 76, 156),
        red_cell=(220, 196, 192),
        side=160,
        pixels_per_micrometre=6.4,
        blur=2.0,
        noise=2.0,
        crowding=9.0,
        uneven_light=0.15,
    ),
)


def draw_cell(
    label: str, laboratory: Laboratory, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "side side 3"], UInt8[np.ndarray, "side side"]]:
    """One white blood cell among red ones, and its true mask.

    Args:
      label: one of `CLASSES`.
      laboratory: the look.
      rng: the only source of chance.

    Returns:
      The image, RGB, and the mask: 0 background, 128 cytoplasm, 255 nucleus.

    Raises:
      InputError: unknown label.
    """
    if label not in _KINDS:
        raise InputError(f"no synthetic cell {label!r}{suggest(label, CLASSES)}; there are: {', '.join(CLASSES)}")
    canvas = Canvas(laboratory.side, laboratory.pixels_per_micrometre)
    density = np.zeros((laboratory.side, laboratory.side, 3), np.float32)
    _red_cells(density, canvas, laboratory, rng)
    _platelets(density, canvas, laboratory, rng)
    middle = canvas.micrometres / 2 + rng.uniform(-0.08, 0.08, 2) * canvas.micrometres
    body, nucleus = _KINDS[label](density, canvas, laboratory, middle, rng)

    light = optical_density(laboratory.background) - np.log(_uneven_light(laboratory, rng))[..., None]
    image = 255 * np.exp(-(density * rng.normal(1, 0.06) + light))
    image *= rng.normal(1, 0.012, 3).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), laboratory.blur * rng.uniform(0.7, 1.3))
    image += rng.standard_normal(image.shape, dtype=np.float32) * laboratory.noise
    mask = np.where(nucleus >= 128, 255, np.where(body >= 128, 128, 0)).astype(np.uint8)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), mask


def write_laboratories(root: Path, cells_per_class: int = 24, laboratories: int = 2, seed: int = 0) -> Path:
    """Write the first `laboratories` of `LABORATORIES` as folders with images, masks and `labels.csv`.

    The folders are what `manifest.read_laboratories` reads. The pixels follow from the arguments alone. They
    are written beside `root` and renamed at the end, so `root` is whole or absent.

    Args:
      root: a new or empty folder.
      cells_per_class: of every one of `CLASSES`, in every laboratory.
      laboratories: 1 to `len(LABORATORIES)`.
      seed: 0 or more.

    Returns:
      `root`.

    Raises:
      InputError: `root` holds something already, or a number out of range.
    """
    root = Path(root)
    if not 1 <= laboratories <= len(LABORATORIES):
        raise InputError(f"{laboratories} synthetic laboratories wanted; there are 1 to {len(LABORATORIES)}")
    if cells_per_class < 1:
        raise InputError(f"{cells_per_class} synthetic cells a class wanted; at least 1 is needed")
    if seed < 0:
        raise InputError(f"seed {seed} for the synthetic cells: it must not be negative")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} exists already: remove it or name another folder for the synthetic cells")
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for place, laboratory in enumerate(LABORATORIES[:laboratories]):
            _write_laboratory(partial / laboratory.name, laboratory, cells_per_class, (seed, place))
        # mkdtemp makes a folder for the owner alone.
        partial.chmod(0o755)
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


_COLUMNS = ("file", "class", "fine", "orig_label", "width", "height", "mask", "duplicate_of", "note")


def _write_laboratory(folder: Path, laboratory: Laboratory, cells_per_class: int, seed: tuple[int, int]) -> None:
    rows = []
    for number, label in enumerate(CLASSES):
        for kind in ("images", "masks"):
            (folder / kind / label).mkdir(parents=True)
        for index in range(cells_per_class):
            image, mask = draw_cell(label, laboratory, np.random.default_rng((*seed, number, index)))
            file = f"{label}/{index:03d}.png"
            for kind, pixels in (("images", cv2.cvtColor(image, cv2.COLOR_RGB2BGR)), ("masks", mask)):
                if not cv2.imwrite(str(folder / kind / file), pixels):
                    raise OSError(f"cannot write {folder / kind / file}")
            side = laboratory.side
            rows.append((f"images/{file}", label, label, label, side, side, f"masks/{file}", "", "synthetic"))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(_COLUMNS)
        writer.writerows(rows)


def _uneven_light(laboratory: Laboratory, rng: np.random.Generator) -> Float[np.ndarray, "side side"]:
    """Relative brightness, 1 at the bright side."""
    x, y = direction(rng.uniform(0, 2 * np.pi))
    line = np.linspace(-0.5, 0.5, laboratory.side, dtype=np.float32)
    fall = rng.uniform(0, laboratory.uneven_light)
    return (1 - fall * (0.5 + (x * line + y * line[:, None]) / np.sqrt(2))).astype(np.float32)


def _red_cells(
    density: Density,
    canvas: Canvas,
    laboratory: Laboratory,
    rng: np.random.Generator,
) -> None:
    count = rng.poisson(laboratory.crowding * canvas.micrometres**2 / 1000)
    layer = canvas.empty()
    for place in rng.uniform(-3, canvas.micrometres + 3, (count, 2)):
        radius, stretch, angle = rng.normal(3.6, 0.25), rng.uniform(1, 1.25), rng.uniform(0, np.pi)
        outline = blob(rng, place, radius, 0.02, stretch, angle)
        depth = int(rng.uniform(150, 255))
        pallor = rng.uniform(0.25, 0.5)
        canvas.fill(layer, outline, depth)
        canvas.fill(layer, place + pallor * (outline - place), int(depth * rng.uniform(0.35, 0.8)))
    soft = cv2.GaussianBlur(canvas.finish(layer), (0, 0), 0.35 * canvas.pixels_per_micrometre)
    edge = canvas.finish((layer > 0).astype(np.uint8) * 255)
    lay(density, edge, laboratory.red_cell, soft.astype(np.float32) / 255)


def _platelets(
    density: Density,
    canvas: Canvas,
    laboratory: Laboratory,
    rng: np.random.Generator,
) -> None:
    layer = canvas.empty()
    for place in rng.uniform(0, canvas.micrometres, (rng.poisson(0.8), 2)):
        canvas.fill(layer, blob(rng, place, rng.uniform(0.7, 1.3), 0.1))
    if layer.any():
        amount = np.clip(0.5 + 0.25 * canvas.texture(rng, 0.5), 0.1, 1)
        lay(density, canvas.finish(layer), laboratory.dark_granule, amount)


Body = tuple[Layer, Layer]


def _lay_body(
    density: Density,
    canvas: Canvas,
    rng: np.random.Generator,
    outline: Points,
    colour: Colour,
    amount: float = 1.0,
    unevenness: float = 0.12,
) -> Layer:
    """The cytoplasm: a little denser at its rim and cloudy within."""
    drawn = canvas.empty()
    canvas.fill(drawn, outline)
    layer = canvas.finish(drawn)
    inside = cv2.GaussianBlur(layer, (0, 0), 0.8 * canvas.pixels_per_micrometre).astype(np.float32) / 255
    cloud = 1 + unevenness * canvas.texture(rng, 1.2) + 0.5 * unevenness * canvas.texture(rng, 0.4)
    lay(density, layer, colour, amount * np.clip(cloud + 0.35 * (1 - inside), 0.2, 2))
    return layer


def _lay_nucleus(
    density: Density,
    canvas: Canvas,
    rng: np.random.Generator,
    drawn: Drawing,
    colour: Colour,
    amount: float = 1.0,
    clumps: float = 0.15,
) -> Layer:
    """The nucleus: chromatin in clumps of some tenths of a micrometre, paler between."""
    layer = canvas.finish(drawn)
    chromatin = 1 + clumps * canvas.texture(rng, 0.9) + 0.6 * clumps * canvas.texture(rng, 0.4)
    lay(density, layer, colour, amount * np.clip(chromatin, 0.3, 1.8))
    return layer


def _lobes(
    canvas: Canvas, rng: np.random.Generator, middle: Point, count: int, radius: float, spread: float
) -> Drawing:
    """Lobes along an arc about `middle`, each tied to the next by a thin strand."""
    drawn = canvas.empty()
    start = rng.uniform(0, 2 * np.pi)
    step = min(2 * np.pi / count, 2 * np.pi / 4.2) * rng.uniform(0.9, 1.1)
    if count == 2:
        step = rng.uniform(0.75, 1.0) * np.pi
    turns = start + step * np.arange(count) + rng.normal(0, 0.12, count)
    out = spread * rng.uniform(0.85, 1.15, count)
    places = np.stack([out * np.cos(turns), out * np.sin(turns)], -1) + middle
    for place, turn in zip(places, turns, strict=True):
        size = radius * rng.uniform(0.85, 1.15)
        outline = blob(rng, place, size, 0.07, rng.uniform(1.1, 1.5), turn + np.pi / 2 + rng.normal(0, 0.3))
        canvas.fill(drawn, outline)
    along = np.linspace(turns[0], turns[-1], 24)
    reach = np.interp(along, turns, out)
    strand = np.stack([reach * np.cos(along), reach * np.sin(along)], -1) + middle
    canvas.stroke(drawn, strand, rng.uniform(0.45, 0.9))
    return drawn


def _neutrophil(
    density: Density,
    canvas: Canvas,
    laboratory: Laboratory,
    middle: Point,
    rng: np.random.Generator,
) -> Body:
    radius = rng.normal(6.3, 0.4)
    outline = blob(rng, middle, radius, 0.03, rng.uniform(1, 1.15), rng.uniform(0, np.pi))
    body = _lay_body(density, canvas, rng, outline, laboratory.cytoplasm)
    grains = canvas.empty()
    canvas.dots(grains, scatter(rng, middle, radius, 220), rng.uniform(0.1, 0.2, 220))
    # Fine granules: the cytoplasm's own colour, deeper.
    lay(density, within(canvas.finish(grains), body), laboratory.cytoplasm, 1.9)
    count = int(rng.choice([2, 3, 4, 5], p=[0.2, 0.4, 0.3, 0.1]))
    size = {2: 2.5, 3: 2.05, 4: 1.75, 5: 1.55}[count]
    drawn = _lobes(canvas, rng, middle, count, size * radius / 6.3, 0.44 * radius)
    return body, within(_lay_nucleus(density, canvas, rng, drawn, laboratory.nucleus), body)


def _eosinophil(
    density: Density,
    canvas: Canvas,
    laboratory: Laboratory,
    middle: Point,
    rng: np.random.Generator,
) -> Body:
    radius = rng.normal(6.6, 0.4)
    outline = blob(rng, middle, radius, 0.03, rng.uniform(1, 1.15), rng.uniform(0, np.pi))
    body = _lay_body(density, canvas, rng, outline, laboratory.cytoplasm)
    # In two depths, so that granules that touch stay apart by eye.
    for amount in (0.75, 1.1):
        grains = canvas.empty()
        canvas.dots(grains, scatter(rng, middle, 0.97 * radius, 150), rng.uniform(0.26, 0.42, 150))
        lay(density, within(canvas.finish(grains), body), laboratory.orange_granule, amount)
    count = int(rng.choice([2, 3], p=[0.9, 0.1]))
    away = rng.uniform(0, 0.15) * radius * direction(rng.uniform(0, 2 * np.pi))
    drawn = _lobes(canvas, rng, middle + away, count, 0.34 * radius, 0.42 * radius)
    return body, within(_lay_nucleus(density, canvas, rng, drawn, laboratory.nucleus, 0.95), body)


def _lymphocyte(
    density: Density,
    canvas: Canvas,
    laboratory: Laboratory,
    middle: Point,
    rng: np.random.Generator,
) -> Body:
    radius = rng.normal(4.6, 0.4)
    outline = blob(rng, middle, radius, 0.03, rng.uniform(1, 1.12), rng.uniform(0, np.pi))
    body = _lay_body(density, canvas, rng, outline, laboratory.blue_cytoplasm, 1.1)
    share = rng.uniform(0.8, 0.9)
    place = middle + rng.uniform(0.3, 0.9) * (1 - share) * radius * direction(rng.uniform(0, 2 * np.pi))
    drawn = canvas.empty()
    canvas.fill(drawn, blob(rng, place, share * radius, 0.025, rng.uniform(1, 1.08), rng.uniform(0, np.pi)))
    return body, within(_lay_nucleus(density, canvas, rng, drawn, laboratory.nucleus, 1.05, 0.1), body)


def _monocyte(
    density: Density,
    canvas: Canvas,
    laboratory: Laboratory,
    middle: Point,
    rng: np.random.Generator,
) -> Body:
    radius = rng.normal(8.0, 0.5)
    outline = blob(rng, middle, radius, 0.055, rng.uniform(1, 1.2), rng.uniform(0, np.pi))
    body = _lay_body(density, canvas, rng, outline, laboratory.blue_cytoplasm, 0.85, 0.18)
    # A horseshoe or kidney: a thick arc, the thicker the shorter its opening.
    opening, half = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 0.72) * np.pi
    reach, width = 0.4 * radius, rng.uniform(0.52, 0.68) * radius
    centre = middle + 0.1 * radius * direction(opening + np.pi)
    drawn = canvas.empty()
    turns = opening + np.pi + np.linspace(-half, half, 7)
    for turn in turns:
        place = centre + reach * direction(turn)
        canvas.fill(drawn, blob(rng, place, width / 2 * rng.uniform(0.9, 1.1), 0.05))
    canvas.stroke(drawn, centre + reach * np.stack([np.cos(turns), np.sin(turns)], -1), 0.8 * width)
    nucleus = within(_lay_nucleus(density, canvas, rng, drawn, laboratory.nucleus, 0.72, 0.24), body)
    bubbles = canvas.empty()
    count = int(rng.integers(3, 10))
    canvas.dots(bubbles, scatter(rng, middle, 0.95 * radius, count), rng.uniform(0.3, 0.6, count))
    outside = within(within(canvas.finish(bubbles), body), 255 - nucleus)
    lay(density, outside, laboratory.blue_cytoplasm, 0.15)
    return body, nucleus


def _basophil(
    density: Density,
    canvas: Canvas,
    laboratory: Laboratory,
    middle: Point,
    rng: np.random.Generator,
) -> Body:
    radius = rng.normal(5.8, 0.4)
    outline = blob(rng, middle, radius, 0.045, rng.uniform(1, 1.12), rng.uniform(0, np.pi))
    body = _lay_body(density, canvas, rng, outline, laboratory.cytoplasm, 1.3)
    drawn = _lobes(canvas, rng, middle, int(rng.integers(2, 4)), 0.46 * radius, 0.34 * radius)
    nucleus = within(_lay_nucleus(density, canvas, rng, drawn, laboratory.nucleus, 0.62, 0.2), body)
    grains = canvas.empty()
    count = int(rng.integers(70, 150))
    canvas.dots(grains, scatter(rng, middle, 0.97 * radius, count), rng.uniform(0.25, 0.5, count))
    lay(density, within(canvas.finish(grains), body), laboratory.dark_granule, rng.uniform(0.9, 1.1))
    return body, nucleus


_KINDS: dict[str, Callable[..., Body]] = {
    "neutrophil": _neutrophil,
    "lymphocyte": _lymphocyte,
    "monocyte": _monocyte,
    "eosinophil": _eosinophil,
    "basophil": _basophil,
}
