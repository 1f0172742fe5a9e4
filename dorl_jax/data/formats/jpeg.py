"""JPEG, by libjpeg-turbo with every complaint taken seriously."""

from collections.abc import Iterator

import simplejpeg

from dorl_jax.data.formats.exif import exif_orientation, pictures_in_index
from dorl_jax.data.formats.facts import ImageFacts, Unreadable, broken, check_pixels, upright_size
from dorl_jax.data.formats.pixels import Picture, Pixels, cmyk_to_rgb

_START_OF_SCAN, _END, _APP1, _APP2 = 0xDA, 0xD9, 0xE1, 0xE2
# Frames whose scans need bits for every block, so that they last no longer than the file is long.
_SEQUENTIAL = (0xC0, 0xC1)
# A progressive picture has some ten; every one walks over all pixels, which can be made to last for hours.
_MOST_SCANS = 200


def is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def open_jpeg(data: bytes) -> Picture:
    """Raises `Unreadable` on a header that is broken, or a kind that libjpeg-turbo does not decode (12 bits)."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        # The library's words, "could not determine subsampling level", are those for a missing header, too.
        raise broken("its JPEG header is damaged, or of a kind that is not read") from error
    check_pixels(width, height)
    segments = list(_segments(data))
    sequential = any(marker in _SEQUENTIAL for marker, _ in segments)
    if not sequential and data.count(bytes([0xFF, _START_OF_SCAN])) > _MOST_SCANS:
        raise Unreadable(f"is a JPEG image of more than {_MOST_SCANS} scans")
    orientation, pictures, has_profile = 1, 1, False
    for marker, content in segments:
        if marker == _APP1 and content.startswith(b"Exif\0"):
            orientation = exif_orientation(content)
        elif marker == _APP2 and content.startswith(b"MPF\0"):
            pictures = pictures_in_index(content[4:])
        elif marker == _APP2 and content.startswith(b"ICC_PROFILE\0"):
            has_profile = True
    wide, tall = upright_size(width, height, orientation)
    facts = ImageFacts(
        format="JPEG",
        mode={"Gray": "grey", "CMYK": "CMYK", "YCCK": "CMYK"}.get(colours, "RGB"),
        width=wide,
        height=tall,
        pages=pictures,
        orientation=orientation,
        has_profile=has_profile,
    )

    def decode() -> Pixels:
        try:
            if facts.mode == "grey":
                return simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)[..., 0]
            if facts.mode == "CMYK":
                # Stored inverted, as Adobe does and everyone after it: the light that passes, not the ink.
                return cmyk_to_rgb(simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True))
            return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        except ValueError as error:
            raise broken(error) from error

    return Picture(facts, decode)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of every segment before the pixels; libjpeg-turbo complains where they are broken."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (_START_OF_SCAN, _END):
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at + 4 : end]
        at = end
