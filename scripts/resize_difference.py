"""Print how far ways to resize are from exact averaging, for a folder of images, as a Markdown table.

    python scripts/resize_difference.py FOLDER [--sizes 224 112 64] [--most 60]

Differences are in grey levels (0..255), from two references in float64: the mean over the area of each new pixel, and a
triangle twice as wide, which is what "antialiased bilinear" means elsewhere. Both are exact only where an image
shrinks; the triangle is bilinear interpolation where it grows. The time is that of one image.
"""

import argparse
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from dorl_jax.data.images import ImageError, read_image
from dorl_jax.data.resize import resize_image

Resize = Callable[[np.ndarray, int], np.ndarray]


@cache
def area_weights(source: int, target: int) -> np.ndarray:
    """(target, source): the share of each old pixel in each new one."""
    edges = np.arange(target + 1)[:, None] * source / target
    pixels = np.arange(source)
    shares = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(shares, 0) * target / source


@cache
def triangle_weights(source: int, target: int) -> np.ndarray:
    """(target, source): falling from 1 at the new pixel's centre to 0 at its neighbours', or at the old ones'."""
    scale = max(source / target, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * source / target
    weights = np.maximum(1 - np.abs(np.arange(source) + 0.5 - centres) / scale, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def exactly(image: np.ndarray, size: int, weights: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """The image at `size` in float64."""
    rows, columns = weights(image.shape[0], size), weights(image.shape[1], size)
    return np.einsum("ij,jkc,lk->ilc", rows, image.astype(np.float64), columns, optimize=True)


METHODS: dict[str, Resize] = {
    "bilinear (halving first)": lambda image, size: resize_image(image, size),
    "cv2_bilinear": lambda image, size: resize_image(image, size, method="cv2_bilinear"),
    "OpenCV's INTER_AREA": lambda image, size: cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA),
}


def milliseconds(method: Resize, images: list[np.ndarray], size: int) -> float:
    """The best of five rounds, an image."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for image in images:
            method(image, size)
        rounds.append((time.perf_counter() - start) / len(images))
    return 1000 * min(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 112, 64], help="sides of the new squares")
    parser.add_argument("--most", type=int, default=60, help="about how many images are read, spread over the folder")
    settings = parser.parse_args()
    files = sorted(path for path in settings.folder.rglob("*") if path.is_file())
    images = []
    for path in files[:: max(1, len(files) // settings.most)]:
        try:
            images.append(read_image(path))
        except ImageError:  # a table or a text
            continue
    if not images:
        parser.error(f"no images in {settings.folder}")
    sides = sorted({image.shape[:2] for image in images})
    print(f"{len(images)} images, {sides[0][0]} x {sides[0][1]} to {sides[-1][0]} x {sides[-1][1]} pixels\n")
    print("| size | method | area: mean | area: largest | triangle: mean | triangle: largest | ms |")
    print("|---|---|---|---|---|---|---|")
    for size in settings.sizes:
        references = [
            [exactly(image, size, weights) for image in images] for weights in (area_weights, triangle_weights)
        ]
        for name, method in METHODS.items():
            found = [method(image, size) for image in images]
            cells = [str(size), name]
            for reference in references:
                apart = [np.abs(one - other) for one, other in zip(found, reference, strict=True)]
                cells += [f"{np.mean([part.mean() for part in apart]):.2f}", f"{max(part.max() for part in apart):.0f}"]
            print("| " + " | ".join([*cells, f"{milliseconds(method, images, size):.3f}"]) + " |")


if __name__ == "__main__":
    main()
