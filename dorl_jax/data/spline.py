"""Cubic-spline resizing as scipy.ndimage.zoom does it, as two matrix products."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float64, UInt8
from scipy import ndimage


def zoom_image(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The image at `size` x `size` as by `scipy.ndimage.zoom(image, (size / h, size / w, 1), order=3)`.

    The first and last pixel centres of both grids fall together. SciPy's values are the exact ones up to rounding
    in float64, and so are these; only a value half-way between two grey levels may be rounded the other way.
    """
    height, width = image.shape[:2]
    lines = _zoom_matrix(height, size) @ image.reshape(height, -1).astype(np.float64)
    # One product of two matrices is far quicker than one a line.
    across = lines.reshape(size, width, 3).swapaxes(0, 1).reshape(width, -1)
    zoomed = (_zoom_matrix(width, size) @ across).reshape(size, size, 3).swapaxes(0, 1)
    return np.clip(zoomed + 0.5, 0, 255).astype(np.uint8, order="C")


# A matrix of this size takes 250 kB; boxes of cells come in some hundred lengths.
@lru_cache(maxsize=256)
def _zoom_matrix(source: int, target: int) -> Float64[np.ndarray, "target source"]:
    """What each of the `source` pixels of a line contributes to each of the `target` ones."""
    # Step by step as in SciPy: a last place beyond the last centre, be it by a rounding error, counts as outside,
    # and the line ends in a zero.
    step = (source - 1) / (target - 1) if target > 1 else 1.0
    places = np.arange(target) * step
    first = np.floor(places).astype(int)
    part = (places - first)[:, None]
    # The cubic B-spline at distances 1 + part, part, 1 - part and 2 - part.
    weights = np.hstack(
        [
            (1 - part) ** 3 / 6,
            2 / 3 - part**2 * (2 - part) / 2,
            2 / 3 - (1 - part) ** 2 * (1 + part) / 2,
            part**3 / 6,
        ]
    )
    weights[places > source - 1] = 0
    # Beyond the ends the spline's coefficients are mirrored at the end's centre.
    near = np.abs(first[:, None] + np.arange(-1, 3))
    near = np.minimum(np.where(near > source - 1, np.abs(2 * (source - 1) - near), near), source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], near), weights)
    coefficients = np.eye(source) if source == 1 else ndimage.spline_filter1d(np.eye(source), 3, axis=0, mode="mirror")
    matrix = matrix @ coefficients
    matrix.setflags(write=False)  # shared by all callers
    return matrix
