"""Sets with a folder for each label."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from dorl_jax.data.listing import Row
from dorl_jax.data.sets.archives import files_of
from dorl_jax.data.sets.base import Reader
from dorl_jax.errors import InputError, name_some, suggest


def folder_per_label(labels: Collection[str], suffixes: Sequence[str], group: str = "") -> Reader:
    """A reader of `<label>/<image>`, at any depth below the folders it is given.

    Args:
      labels: the names of the folders.
      suffixes: endings of the images, in small letters.
      group: regular expression, matched from the start of the file's name; its first group is the patient or slide.
    """

    def read(roots: Sequence[Path]) -> tuple[list[Row], list[str]]:
        rows = []
        strange: list[Path] = []
        for path in files_of(roots, suffixes):
            label = path.parent.name
            if label not in labels:
                strange.append(path)
                continue
            match = re.match(group, path.name) if group else None
            rows.append(
                Row(f"{label}/{path.name}", path, label, group=match[1] if match is not None else "", where=str(path))
            )
        if rows and strange:
            name = strange[0].parent.name
            raise InputError(
                f"{strange[0]} (and {len(strange) - 1} more) lies in no folder of a label: {name!r}"
                f"{suggest(name, labels)}; the labels are {name_some(labels, 40)}"
            )
        return rows, []

    return read
