"""Files that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, renamed to it when the block ends well; missing folders are made.

    A reader, or a run that goes on after a kill, never meets half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    yield partial
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text (see `replacing`)."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
