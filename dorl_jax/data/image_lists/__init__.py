"""Images from anywhere, as one list: folders, globs, tables, archives, laboratories and built sets."""

from dorl_jax.data.image_lists.opening import open_images
from dorl_jax.data.image_lists.packed import ImageList

__all__ = ["ImageList", "open_images"]
