"""Two thousand damaged files: refused with a reason, or read as the undamaged file or as other decoders read them."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import png_chunk, valid_files

from dorl_jax.data.images import decode_image

pytest.importorskip("resource")
pytestmark = pytest.mark.slow

FILES = 2000
# Who decodes the same bytes by other means than the product: it gives JPEG to libjpeg-turbo itself, BMP of 24 bits to
# NumPy, PNG to OpenCV or Pillow, and the rest to Pillow.
INDEPENDENT = {
    "bmp": ("opencv", "pillow"),
    "png": ("opencv", "pillow"),
    "jpeg": ("pillow",),
    "tiff": ("opencv", "opencv premultiplied"),
    "webp": ("opencv",),
    # OpenCV reads no such tiles. There it is at least Pillow with all tags and another way in.
    "tiff-tiles": ("pillow",),
}
# The alpha and the inks of OpenCV and Pillow are rounded otherwise.
TOLERANCE = 1


def cut(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def cut_a_little(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: len(data) - rng.integers(1, 1 + min(len(data), 40))]


def flip_bits(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        spoilt[rng.integers(len(spoilt))] ^= 1 << rng.integers(8)
    return bytes(spoilt)


def flip_bits_early(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    head = min(len(data), 200)
    return flip_bits(data[:head], other, rng) + data[head:]


def overwrite(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, length = rng.integers(len(data)), rng.integers(1, 60)
    run = rng.bytes(length) if rng.random() < 0.5 else bytes([rng.integers(256)]) * length
    return (data[:start] + run + data[start + length :])[: len(data)]


def delete(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start = rng.integers(len(data))
    return data[:start] + data[start + rng.integers(1, 60) :]


def insert(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start = rng.integers(len(data))
    return data[:start] + rng.bytes(rng.integers(1, 60)) + data[start:]


def swap(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of the file, not nearly all of it, taken from the same place of another."""
    start, length = rng.integers(len(data)), rng.integers(20, 20 + len(data) // 3)
    return data[:start] + other[start : start + length] + data[start + length :]


def lie(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Another width or height in the header."""
    size = int(rng.choice([0, 1, 5, 18, 20, 27, 40, 200, 5000, 16383, 65535, 2**20, 2**24 - 1, 2**31 - 1, 2**32 - 1]))
    second = bool(rng.integers(2))
    spoilt = bytearray(data)
    if data[:2] == b"BM":
        struct.pack_into("<I", spoilt, 22 if second else 18, size)
    elif data[:4] == b"\x89PNG":
        struct.pack_into(">I", spoilt, 20 if second else 16, size)
        spoilt[29:33] = struct.pack(">I", zlib.crc32(bytes(spoilt[12:29])))
    elif data[:2] == b"\xff\xd8":
        frame = max(data.find(bytes([0xFF, kind])) for kind in (0xC0, 0xC1, 0xC2))
        struct.pack_into(">H", spoilt, frame + (5 if second else 7), size & 0xFFFF)
    elif data[:4] == b"RIFF":
        place = {b"VP8X": 24, b"VP8 ": 26}.get(data[12:16])
        if place is None:
            struct.pack_into("<I", spoilt, 21, struct.unpack_from("<I", data, 21)[0] ^ (size & 0x3FFF) << 14 * second)
        else:
            struct.pack_into("<H", spoilt, place + (place == 24) + 2 * second, size & 0xFFFF)
    else:
        order = "<" if data[:1] == b"I" else ">"
        for tag in (256 + second, 278 if second else 258, 322, 323)[:: int(rng.choice([1, -1]))]:
            at = data.find(struct.pack(order + "H", tag))
            if at >= 0:
                struct.pack_into(order + "H", spoilt, at + 8 + 2 * (order == ">"), size & 0xFFFF)
                break
    return bytes(spoilt)


def scramble(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Random bytes behind the first few of a format, or nothing but them, or nothing at all."""
    kept = data[: int(rng.choice([0, 0, 2, 4, 12, 30, 60]))]
    return b"" if rng.random() < 0.1 else kept + rng.bytes(rng.integers(1, 500))


def pixels_too_few(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A PNG with all checksums right and fewer pixels than it announces; other formats are cut."""
    start = data.find(b"IDAT") - 4
    if data[:4] != b"\x89PNG" or start < 0:
        return cut(data, other, rng)
    end = start + 12 + struct.unpack_from(">I", data, start)[0]
    rows = zlib.decompressobj().decompress(data[start + 8 : end - 4])
    return data[:start] + png_chunk(b"IDAT", zlib.compress(rows[: rng.integers(len(rows))])) + data[end:]


DAMAGES = (
    cut,
    cut_a_little,
    flip_bits,
    flip_bits_early,
    overwrite,
    delete,
    insert,
    swap,
    lie,
    scramble,
    pixels_too_few,
)


def _real_files() -> dict[str, bytes]:
    """A few real cells where they are."""
    folder = os.environ.get("DORL_JAX_DATA")
    if not folder:
        return {}
    found = {}
    for laboratory, suffix in (("acevedo20", "jpg"), ("jiangxi_tecom", "bmp"), ("bccd", "png")):
        format = {"jpg": "jpeg"}.get(suffix, suffix)
        for path in sorted((Path(folder) / laboratory / "images").rglob(f"*.{suffix}"))[:2]:
            found[f"{format}-{laboratory} {path.stem}"] = path.read_bytes()
    return found


def _run(folder: Path, out: Path, who: str) -> subprocess.Popen[str]:
    script = Path(__file__).parents[1] / "read_many.py"
    command = [sys.executable, "-X", "faulthandler", str(script), str(folder), str(out), who]
    # As many threads as there are processors would take their share of the memory allowed.
    quiet = {**os.environ, "OPENCV_LOG_LEVEL": "SILENT", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, said[-4000:]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Each damaged file with the image of the intact one, what the product said or read, and what others read."""
    rng = np.random.default_rng(0)
    intact = {**valid_files(), **_real_files()}
    others = valid_files(seed=1)
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "in").mkdir()
    whole = {name: decode_image(data, name) for name, data in intact.items()}
    cases: list[dict[str, Any]] = []
    names = list(intact)
    for place in range(FILES):
        name, damage = names[place % len(names)], DAMAGES[(place // len(names)) % len(DAMAGES)]
        if name == "png-animated" and damage is lie:
            damage = cut  # nobody but the product reads it: its frames have a size of their own
        data = intact[name]
        other = others[str(rng.choice(list(others)))] if rng.random() < 0.3 else others.get(name, data[::-1])
        spoilt = damage(data, other, rng)
        # A file's name says nothing about its content.
        suffix = rng.choice(["png", "jpg", "bmp", "tif", "webp", "txt"])
        path = folder / "in" / f"{place:05d}.{suffix}"
        path.write_bytes(spoilt)
        cases.append({"path": path, "name": name, "damage": damage, "whole": whole[name]})
    runs = [_run(folder / "in", folder / who, who) for who in ("product", "others")]
    for run in runs:
        _finish(run)
    errors = json.loads((folder / "product.json").read_text())
    assert [file for file, _ in errors] == [case["path"].name for case in cases]
    with np.load(folder / "product.npz") as product, np.load(folder / "others.npz") as others_images:
        for place, (case, (_, error)) in enumerate(zip(cases, errors, strict=True)):
            case["error"] = error
            case["image"] = product[str(place)] if error is None else None
            format = case["name"].split("-")[0]
            judges = INDEPENDENT.get(case["name"], INDEPENDENT[format])
            keys = [key for judge in judges if (key := f"{place} {judge}") in others_images]
            case["alone"] = not keys
            # OpenCV refuses some that are right (strips said to be longer than the picture): Pillow by itself then.
            case["others"] = [others_images[key] for key in keys or [f"{place} pillow"] if key in others_images]
    return cases


def test_each_refusal_names_the_file_and_a_reason(damaged: list[dict[str, Any]]) -> None:
    refused = [case for case in damaged if case["error"] is not None]
    assert len(refused) > FILES / 2
    for case in refused:
        reason = case["error"].replace(str(case["path"]), "")
        assert reason != case["error"]
        assert len(reason) > 10
        assert len(case["error"].splitlines()) == 1


def test_a_shortened_file_is_never_another_image(damaged: list[dict[str, Any]]) -> None:
    read = [case for case in damaged if case["damage"] in (cut, cut_a_little) and case["error"] is None]
    for case in read:
        np.testing.assert_array_equal(case["image"], case["whole"], err_msg=f"{case['name']}, {case['path']}")


def test_damage_that_checksums_show_is_noticed(damaged: list[dict[str, Any]]) -> None:
    for case in damaged:
        # A chunk that is swapped as a whole brings its checksum; so does a header that lies well.
        if case["name"].startswith("png-") and case["damage"] not in (lie, swap) and case["error"] is None:
            np.testing.assert_array_equal(case["image"], case["whole"], err_msg=f"{case['name']}, {case['path']}")


def test_what_is_read_is_what_other_decoders_read(damaged: list[dict[str, Any]]) -> None:
    changed = alone = 0
    for case in damaged:
        image, whole = case["image"], case["whole"]
        if image is None or (image.shape == whole.shape and np.array_equal(image, whole)):
            continue
        changed += 1
        alone += case["alone"]
        same_shape = [other for other in case["others"] if other.shape == image.shape]
        apart = [int(np.abs(other.astype(int) - image).max()) for other in same_shape]
        assert apart, f"{case['name']}, {case['damage'].__name__}, {case['path']}: read by nobody else"
        assert min(apart) <= TOLERANCE, f"{case['name']}, {case['damage'].__name__}, {case['path']}: {apart}"
    # Without such cases the test says nothing.
    assert changed > FILES / 20
    assert alone < FILES / 500
