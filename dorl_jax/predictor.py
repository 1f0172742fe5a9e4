"""Masks of what a user points at, in the manner of the official `SamPredictor` (Kirillov et al., arXiv 2304.02643).

Prompts and masks are in pixels of the image as it was given; the way to the model's input and back is here.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from dorl_jax.data.light import in_light
from dorl_jax.errors import InputError
from dorl_jax.models import Sam
from dorl_jax.models.layers import AnyArray

Size = tuple[int, int]  # height and width
# The arguments of P prompt sets of one image that were given, by name, with a first axis of P.
Prompts = dict[str, np.ndarray]
# The axes of each argument behind that one.
_AXES: dict[str, tuple[int | str, ...]] = {
    "point_coords": ("N", 2),
    "point_labels": ("N",),
    "box": (4,),
    "mask_input": ("h", "w"),
}


@partial(jax.jit, static_argnums=0)
def _encode(graph: Any, state: Any, images: Array) -> Array:
    return nnx.merge(graph, state).encode_image(images)["embedding"]


@partial(jax.jit, static_argnums=0)
def _decode(graph: Any, state: Any, embedding: Array, prompts: dict[str, Array]) -> tuple[Array, Array]:
    """Logits (P, M, h, w) and predicted IoU (P, M) of every mask token."""
    points = (prompts["point_coords"], prompts["point_labels"]) if "point_coords" in prompts else None
    logits, iou = nnx.merge(graph, state).decode(embedding, points, prompts.get("box"), prompts.get("mask_input"))
    return jnp.moveaxis(logits, -1, 1), iou


class Predictor:
    """A SAM that is shown images and then asked about them, as often as one likes.

        predictor = Predictor(sam)
        predictor.set_image(image)
        masks, iou, low_res_logits = predictor.predict(np.array([[x, y]]), np.array([1]))

    Names, arguments and results are those of the official `SamPredictor` and, for lists of images (`set_image_batch`,
    `predict_batch`), of SAM 2's. `predict` answers one prompt set and `predict_many` any number of them, so that the
    axes of a result do not depend on those of a prompt.

    What is compiled: one encoder, whatever the sizes of the images; and one decoder for each make-up of a prompt set,
    that is, for each number of points, with or without a box, with or without a mask. Sets are not filled up to a
    common number of points: a padding point is a token that the others attend to and changes the answer. The number of
    sets is rounded up to a power of two by repeating the last, which touches no other set.

    The model is read when images are set: after training it, or loading or merging weights, set them again.

    Attributes:
      model: the SAM.
      features: embeddings of the images, (B, h, w, C), channels last; None before an image is set.
      original_sizes, input_sizes: height and width of each image, as it was given and as the model sees it.
    """

    def __init__(self, sam: Sam, *, images_per_call: int = 1, sets_per_call: int = 64) -> None:
        """A predictor without an image.

        Args:
          sam: the model; of a `LoraSam`, its `.sam`.
          images_per_call: at most so many images are encoded at once. More is faster on a GPU; a ViT-B at 1024 pixels
            needs about 2 GB for the attention of one image.
          sets_per_call: at most so many prompt sets are decoded at once; at 1024 pixels one needs about 40 MB.

        Raises:
          ValueError: less than 1 a call.
        """
        if images_per_call < 1 or sets_per_call < 1:
            raise ValueError(f"expected 1 or more a call, got {images_per_call=}, {sets_per_call=}")
        self.model = sam
        self.images_per_call, self.sets_per_call = images_per_call, sets_per_call
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the images."""
        self.features: Array | None = None
        self.original_sizes: list[Size] = []
        self.input_sizes: list[Size] = []
        self._weights: Any = None

    @property
    def is_image_set(self) -> bool:
        """Whether there is an image to ask about."""
        return self.features is not None

    @property
    def original_size(self) -> Size | None:
        """Height and width of the one image as it was given; None before `set_image`."""
        return self.original_sizes[self._only_image()] if self.is_image_set else None

    @property
    def input_size(self) -> Size | None:
        """Height and width of the one image as the model sees it, without padding; None before `set_image`."""
        return self.input_sizes[self._only_image()] if self.is_image_set else None

    def get_image_embedding(self) -> Float[Array, "b h w c"]:
        """`features`.

        Raises:
          InputError: no image is set.
        """
        if self.features is None:
            raise InputError("no image is set: call set_image first")
        return self.features

    def set_image(self, image: AnyArray, image_format: str = "RGB") -> None:
        """Encode an image, in place of any set before.

        Pillow's bilinear filter resizes it to fit into the model's input (of a square input: its longest side to that);
        the rest, at the bottom or right, is padded.

        Args:
          image: uint8 (H, W, 3), of any size.
          image_format: order of the channels, "RGB" or "BGR" (OpenCV's).

        Raises:
          InputError: an array of another type or shape, or another format.
        """
        self._set_images([_checked_image(image, image_format, "the image")])

    def set_image_batch(self, images: Sequence[AnyArray], image_format: str = "RGB") -> None:
        """Encode several images, each of a size of its own, in place of any set before; otherwise as `set_image`.

        Raises:
          InputError: no images, or one that `set_image` would refuse; the message counts from 0.
        """
        if len(images) == 0:
            raise InputError("no images: set_image_batch needs one or more")
        self._set_images([_checked_image(x, image_format, f"image {i}") for i, x in enumerate(images)])

    def predict(
        self,
        point_coords: AnyArray | None = None,
        point_labels: AnyArray | None = None,
        box: AnyArray | None = None,
        mask_input: AnyArray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[
        Bool[np.ndarray, "m height width"] | Float[np.ndarray, "m height width"],
        Float[np.ndarray, " m"],
        Float[np.ndarray, "m h4 w4"],
    ]:
        """Masks for one prompt set. Without any prompt the model is asked for masks of its own choice.

        Args:
          point_coords: (N, 2), (x, y) in pixels of the image; points outside of it are allowed.
          point_labels: (N,): 1 foreground, 0 background, -1 a point that says nothing but counts as a token.
          box: (4,) or (1, 4): (x0, y0, x1, y1) in pixels of the image.
          mask_input: (h, w) or (1, h, w): one of the low-resolution logits of an earlier answer.
          multimask_output: three answers to an ambiguous prompt, such as a single click, or the one that suits an
            unambiguous prompt.
          return_logits: logits in place of masks.

        Returns:
          Masks, True where the logits are above 0; the predicted intersection over union of each; the logits at four
          times the token grid. M is 3 in the official models (`multimask_output`) or 1.

        Raises:
          InputError: no image is set, or several are; prompts of another shape; points without labels, labels without
            points; another label; a number that is not finite.
        """
        given = (point_coords, point_labels, box, mask_input)
        prompts = self._prompts(self._only_image(), given, many=False)
        masks, iou, low_res = self._answers([prompts], multimask_output, return_logits)[0]
        return masks[0], iou[0], low_res[0]

    def predict_many(
        self,
        point_coords: AnyArray | None = None,
        point_labels: AnyArray | None = None,
        box: AnyArray | None = None,
        mask_input: AnyArray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[
        Bool[np.ndarray, "p m height width"] | Float[np.ndarray, "p m height width"],
        Float[np.ndarray, "p m"],
        Float[np.ndarray, "p m h4 w4"],
    ]:
        """Masks for P prompt sets, each answered as by `predict`.

        Args:
          point_coords: (P, N, 2); P may be 0.
          point_labels: (P, N).
          box: (P, 4).
          mask_input: (P, h, w).
          multimask_output: as for `predict`.
          return_logits: as for `predict`.

        Returns:
          What `predict` returns, with a first axis of P; without any prompt P is 1.

        Raises:
          InputError: as for `predict`.
        """
        given = (point_coords, point_labels, box, mask_input)
        prompts = self._prompts(self._only_image(), given, many=True)
        return self._answers([prompts], multimask_output, return_logits)[0]

    def predict_batch(
        self,
        point_coords_batch: Sequence[AnyArray | None] | None = None,
        point_labels_batch: Sequence[AnyArray | None] | None = None,
        box_batch: Sequence[AnyArray | None] | None = None,
        mask_input_batch: Sequence[AnyArray | None] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Masks for prompt sets on each of the images.

        Each list has an entry an image: what `predict_many` takes for it, or None. The images may differ in the number
        of sets and in their make-up; sets of one make-up are decoded together, whatever image they are on.

        Returns:
          Three lists: what `predict_many` returns, an entry an image.

        Raises:
          InputError: as for `predict`; a list that has not one entry an image.
        """
        count = len(self.get_image_embedding())
        lists = (point_coords_batch, point_labels_batch, box_batch, mask_input_batch)
        for argument, entries in zip(_AXES, lists, strict=True):
            if entries is not None and len(entries) != count:
                raise InputError(
                    f"{argument}_batch has {len(entries)} entries, but {count} images are set: give one each"
                )
        by_image = zip(*([None] * count if entries is None else entries for entries in lists), strict=True)
        prompts = [self._prompts(image, given, many=True) for image, given in enumerate(by_image)]
        masks, iou, low_res = zip(*self._answers(prompts, multimask_output, return_logits), strict=True)
        return list(masks), list(iou), list(low_res)

    def _only_image(self) -> int:
        """The index of the one image there is."""
        count = len(self.get_image_embedding())
        if count != 1:
            raise InputError(f"{count} images are set: use predict_batch and the attributes in the plural")
        return 0

    def _set_images(self, images: list[UInt8[np.ndarray, "_ _ 3"]]) -> None:
        self.reset_image()
        shape = self.model.config.encoder.image_shape
        originals = [(image.shape[0], image.shape[1]) for image in images]
        sizes = [_fitted(size, shape) for size in originals]
        graph, state = nnx.split(self.model)
        # A state of its own: that of `split` changes with the model, and embeddings would meet another decoder.
        weights = graph, jax.tree.map(lambda array: array, state)
        parts = []
        for rows, count in _calls(len(images), self.images_per_call):
            # `Sam.normalise` turns the pixel mean into exactly 0, its own padding; so all images have one shape.
            canvas = np.empty((len(rows), *shape, 3), np.float32)
            canvas[:] = self.model.config.pixel_mean
            for place, row in zip(canvas, rows, strict=True):
                height, width = sizes[row]
                image = in_light(images[row], self.model.config.light)
                resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
                place[:height, :width] = np.asarray(resized)
            parts.append(_encode(*weights, canvas)[:count])
        self.features, self._weights = jnp.concatenate(parts), weights
        self.original_sizes, self.input_sizes = originals, sizes

    def _prompts(self, image: int, given: Sequence[AnyArray | None], *, many: bool) -> Prompts:
        """The prompts on an image, checked, with an axis of sets and in pixels of the model's input."""
        prefix = f"image {image}: " if len(self.original_sizes) > 1 else ""
        grid_height, grid_width = self.model.config.encoder.grid
        sizes = {"h": 4 * grid_height, "w": 4 * grid_width} | ({} if many else {"P": 1})
        prompts = {
            argument: _checked_prompt(prefix, argument, value, sizes, many=many)
            for argument, value in zip(_AXES, given, strict=True)
            if value is not None
        }
        for there, missing in (("point_coords", "point_labels"), ("point_labels", "point_coords")):
            if there in prompts and missing not in prompts:
                raise InputError(f"{prefix}{there} without {missing}: give both, a label for each point")
        (height, width), (new_height, new_width) = self.original_sizes[image], self.input_sizes[image]
        scale = np.array([new_width / width, new_height / height])
        for argument, factors in (("point_coords", scale), ("box", np.tile(scale, 2))):
            if argument in prompts:
                prompts[argument] = (prompts[argument] * factors).astype(np.float32)
        return prompts

    def _answers(
        self, prompts: Sequence[Prompts], multimask: bool, return_logits: bool
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Masks, predicted IoU and low-resolution logits for the prompts on each image."""
        alike: dict[Any, list[int]] = {}
        for image, given in enumerate(prompts):
            alike.setdefault(tuple((name, value.shape[1:]) for name, value in given.items()), []).append(image)
        answers = {}
        for images in alike.values():
            # An image without any prompt has one set, of nothing.
            counts = [len(next(iter(prompts[image].values()), [None])) for image in images]
            joined = {name: np.concatenate([prompts[image][name] for image in images]) for name in prompts[images[0]]}
            logits, iou = self._decoded(np.repeat(images, counts), joined)
            for image, end, count in zip(images, np.cumsum(counts), counts, strict=True):
                own = slice(end - count, end), slice(1, None) if multimask else slice(0, 1)
                answers[image] = self._on_original(image, logits[own], return_logits), iou[own], logits[own]
        return [answers[image] for image in range(len(prompts))]

    def _decoded(self, owners: np.ndarray, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
        """Logits and predicted IoU of every mask token, for sets of one make-up on the images `owners`."""
        tokens, (rows, columns) = self.model.config.decoder.multimask_outputs + 1, self.model.config.encoder.grid
        logits = np.empty((len(owners), tokens, 4 * rows, 4 * columns), np.float32)
        iou = np.empty((len(owners), tokens), np.float32)
        for sets, count in _calls(len(owners), self.sets_per_call):
            embedding = self.get_image_embedding()[owners[sets]]
            out = _decode(*self._weights, embedding, {name: value[sets] for name, value in prompts.items()})
            place = slice(sets[0], sets[0] + count)
            logits[place], iou[place] = (np.asarray(part)[:count] for part in out)
        return logits, iou

    def _on_original(self, image: int, low_res: np.ndarray, return_logits: bool) -> np.ndarray:
        """Masks or logits on the image: what `Sam.postprocess` gives, within rounding.

        Done by OpenCV on the host: no program to compile for each size of image, on a CPU some 50 times faster than
        XLA, and nearer to the same sum in float64; of another device it asks only for the small logits.
        """
        model_height, model_width = self.model.config.encoder.image_shape
        (height, width), (new_height, new_width) = self.original_sizes[image], self.input_sizes[image]
        out = np.empty((*low_res.shape[:2], height, width), np.float32 if return_logits else bool)
        for index in np.ndindex(low_res.shape[:2]):
            logits = cv2.resize(low_res[index], (model_width, model_height), interpolation=cv2.INTER_LINEAR)
            logits = cv2.resize(logits[:new_height, :new_width], (width, height), interpolation=cv2.INTER_LINEAR)
            out[index] = logits if return_logits else logits > 0
        return out


def _calls(total: int, most: int) -> Iterator[tuple[np.ndarray, int]]:
    """(indices, count): 0..total in turn, at most `most` a call; `count` of the indices and repeats of the last."""
    for start in range(0, total, most):
        count = min(most, total - start)
        rounded = min(most, 1 << (count - 1).bit_length())
        yield start + np.minimum(np.arange(rounded), count - 1), count


def _fitted(size: Size, into: Size) -> Size:
    """Height and width, scaled alike, so that the image just fits; at least a pixel."""
    scale = min(into[0] / size[0], into[1] / size[1])
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _checked_image(image: AnyArray, image_format: str, name: str) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image as contiguous RGB."""
    if image_format not in ("RGB", "BGR"):
        raise InputError(f"image_format {image_format!r} is unknown: say 'RGB' or 'BGR'")
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise InputError(f"{name} is of type {array.dtype}, expected uint8, 0..255: scale and convert it")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        todo = "expected (H, W, 3): repeat a grey channel three times, drop an alpha channel, put channels last"
        raise InputError(f"{name} has shape {array.shape}, {todo}")
    return np.ascontiguousarray(array if image_format == "RGB" else array[..., ::-1])


def _checked_prompt(prefix: str, name: str, value: AnyArray, sizes: dict[str, int], *, many: bool) -> np.ndarray:
    """The prompt with its axis of sets; `sizes` has those of axes known by now, and learns the others."""
    array, axes = np.asarray(value), ("P", *_AXES[name])
    if array.dtype.kind not in "fiu":
        raise InputError(f"{prefix}{name} is of type {array.dtype}, expected numbers")
    sets = array if many or array.ndim != len(axes) - 1 else array[None]
    if sets.ndim != len(axes) or any(
        got != (axis if isinstance(axis, int) else sizes.setdefault(axis, got))
        for axis, got in zip(axes, sets.shape, strict=True)
    ):
        shown = ", ".join(str(sizes.get(str(axis), axis)) for axis in (axes if many else axes[1:]))
        hint = "" if many else "; for several prompt sets use predict_many"
        raise InputError(f"{prefix}{name} has shape {array.shape}, expected ({shown}){hint}")
    if not np.isfinite(sets).all():
        raise InputError(f"{prefix}{name} has numbers that are not finite")
    if name != "point_labels":
        return sets.astype(np.float64 if name != "mask_input" else np.float32)
    strange = np.setdiff1d(sets, (1, 0, -1))
    if strange.size:
        raise InputError(
            f"{prefix}point_labels has {strange[0]}: use 1 for foreground, 0 for background, -1 for padding"
        )
    return sets.astype(np.int32)
