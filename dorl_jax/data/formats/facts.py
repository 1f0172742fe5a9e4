"""What a picture's header says, and the exception of all readers of pictures."""

from dataclasses import dataclass

# Far above a cell, or a camera's frame; far below what fills the memory.
MOST_PIXELS = 2**26
# A JPEG has no longer ones. Pillow takes minutes over a row of millions of pixels, be it ever so empty.
MOST_ON_A_SIDE = 2**16 - 1


class Unreadable(Exception):
    """The bytes give no picture. The message goes on after the picture's name: "is cut short"."""


def broken(error: BaseException | str) -> Unreadable:
    """The exception for a decoder's complaint, on one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return Unreadable(f"is a broken or truncated image: {reason}")


@dataclass(frozen=True)
class ImageFacts:
    """What the header of a picture says; no pixel is decoded for it.

    Attributes:
      format: "BMP", "PNG", "JPEG", "TIFF" or "WebP".
      mode: "grey", "RGB", "palette" or "CMYK", as stored; a JPEG's YCbCr counts as RGB.
      width, height: in pixels, as `read_image` returns them (upright, of a part the part's).
      bits: of a channel, as stored; of a palette those of an index.
      has_alpha: an alpha channel or a transparent colour is declared.
      pages: pages, frames or pictures in the file; the first is read.
      orientation: 1..8 of EXIF 2.3 (tag 274); 1 where there is none.
      has_profile: an ICC colour profile is embedded. It is ignored.
      remarks: other things that a reader of the image should know.
    """

    format: str
    mode: str
    width: int
    height: int
    bits: int = 8
    has_alpha: bool = False
    pages: int = 1
    orientation: int = 1
    has_profile: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading did that one might not expect, a phrase each."""
        said = []
        if self.pages > 1:
            said.append(f"first of {self.pages} {'pages' if self.format == 'TIFF' else 'frames'}")
        if self.orientation != 1:
            said.append(f"EXIF orientation {self.orientation} applied")
        if self.bits > 8:
            said.append(f"{self.bits} bits scaled to 8")
        if self.has_alpha:
            said.append("transparent pixels laid over white")
        if self.mode == "CMYK":
            said.append("CMYK converted to RGB without a profile")
        if self.has_profile:
            said.append("embedded colour profile ignored")
        return (*said, *self.remarks)


def check_pixels(width: int, height: int) -> None:
    """Raises `Unreadable` on a picture without pixels, or with more than are allowed in all or on a side."""
    if width < 1 or height < 1:
        raise Unreadable(f"has {width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise Unreadable(f"has {width} x {height} pixels, more than {MOST_PIXELS}")
    if max(width, height) > MOST_ON_A_SIDE:
        raise Unreadable(f"has {width} x {height} pixels, more than {MOST_ON_A_SIDE} on a side")


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height once the orientation is applied: 5 to 8 swap them."""
    return (height, width) if orientation >= 5 else (width, height)
