"""Reads every file of a folder, in a process of its own with little memory and time.

    python read_many.py FOLDER OUT product|others

Writes OUT.json, a list of [file, error or null], and OUT.npz with the images, under the number of their place.
"product" is `read_image`; "others" are OpenCV and Pillow, whose images are "PLACE opencv" and so on.
"""

import faulthandler
import json
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

MEMORY = 4 * 2**30
SECONDS = 20


def by_opencv(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """RGB over white, by OpenCV; where there is alpha, also as if the colours were multiplied by it already."""
    array = np.frombuffer(data, np.uint8)
    try:
        found, plain = (cv2.imdecode(array, flags) for flags in (cv2.IMREAD_UNCHANGED, cv2.IMREAD_COLOR))
    except cv2.error:
        return
    if found is None or plain is None or found.dtype not in (np.uint8, np.uint16):
        return
    if found.dtype == np.uint16:
        found = np.rint(found / 257.0).astype(np.uint8)
    elif found.ndim == 2 or found.shape[-1] == 3:
        found = plain  # only reading in colour turns the picture upright
    if found.ndim == 2:
        yield "opencv", np.repeat(found[..., None], 3, -1)
        return
    colours, alpha = found[..., 2::-1].astype(float), np.ones((1, 1, 1))
    if found.shape[-1] == 4:
        alpha = found[..., 3:] / 255.0
        # So OpenCV reads TIFF.
        yield "opencv premultiplied", np.rint(colours + 255 * (1 - alpha)).clip(0, 255).astype(np.uint8)
    yield "opencv", np.rint(colours * alpha + 255 * (1 - alpha)).astype(np.uint8)


def by_pillow(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """RGB over white, by Pillow."""
    try:
        with Image.open(BytesIO(data)) as opened:
            if max(opened.size) >= 2**16:
                return  # Pillow takes minutes over such rows
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                grey = np.rint(np.asarray(image) / 257.0).clip(0, 255).astype(np.uint8)
                yield "pillow", np.repeat(grey[..., None], 3, -1)
            else:
                layer = image.convert("RGBA")
                white = Image.new("RGBA", layer.size, "white")
                yield "pillow", np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    except Exception:  # noqa: BLE001 - whatever it is, Pillow gives no image
        return


def main() -> None:
    folder, out, who = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    from dorl_jax.data.images import ImageError, read_image

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # A warning that gets out of the reader is an error of the test; of the others it is their business.
    warnings.simplefilter("error" if who == "product" else "ignore")
    said: list[tuple[str, str | None]] = []
    images: dict[str, np.ndarray] = {}
    for place, path in enumerate(sorted(folder.iterdir())):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        error = None
        if who == "product":
            try:
                images[str(place)] = read_image(path)
            except ImageError as refused:
                error = str(refused)
            except BaseException as other:
                print(f"{path.name}: {type(other).__name__}", file=sys.stderr)
                raise
        else:
            data = path.read_bytes()
            for decoder in (by_opencv, by_pillow) if data else ():
                images.update((f"{place} {name}", image) for name, image in decoder(data))
        said.append((path.name, error))
        faulthandler.cancel_dump_traceback_later()
    Path(out + ".json").write_text(json.dumps(said))
    np.savez(out + ".npz", **images)
    sys.stdout.flush()
    os._exit(0)  # nothing is left to be done, and libraries' threads need not be waited for


if __name__ == "__main__":
    faulthandler.enable()
    main()
