"""Pictures by number, from files or from memory."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from dorl_jax.data.images import ImageError, read_image
from dorl_jax.data.sources import ImageSource
from dorl_jax.errors import InputError


@runtime_checkable
class Sources(Protocol):
    """Places of images that can be sent to a worker process."""

    def __len__(self) -> int:
        """How many."""

    def source(self, place: int) -> str | ImageSource:
        """Where the image of that number is."""


@runtime_checkable
class Pictures(Protocol):
    """Pictures that can be sent to a worker process."""

    def __len__(self) -> int:
        """How many."""

    def read(self, place: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of that number, RGB. Raises ImageError where there is none."""


class FilePictures:
    """Of files, members of archives, or records."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return len(self._sources)

    def read(self, place: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_image(self._sources.source(place))


class ArrayPictures:
    """Of arrays in memory."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        """Pictures of any sizes, uint8 (h, w, 3) each, RGB.

        Raises:
          InputError: another type or shape; the message counts from 0.
        """
        for place, array in enumerate(arrays):
            if getattr(array, "dtype", None) != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
                found = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}".strip()
                raise InputError(f"image {place} is {found}, expected uint8 (h, w, 3), RGB, 0..255")
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, place: int) -> UInt8[np.ndarray, "h w 3"]:
        return np.ascontiguousarray(self._arrays[place])


def as_read(pictures: Pictures, place: int) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """The picture and an empty text, or a black pixel and why there is no picture."""
    try:
        return pictures.read(place), ""
    except ImageError as error:
        return np.zeros((1, 1, 3), np.uint8), str(error)
