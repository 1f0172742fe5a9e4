"""The images of laboratories, named as the cells of a run are."""

from collections.abc import Sequence

from dorl_jax.data.image_lists.packed import ImageList, folders_apart
from dorl_jax.data.listing import Listing
from dorl_jax.data.sources import source_text


def laboratory_images(listings: Sequence[Listing]) -> ImageList:
    """The images of all laboratories, each named `<laboratory>/<file>`; rows that repeat another are left out.

    Returns:
      The list, with the columns `laboratory`, `label` (the laboratory's own word), `group` and `split`.
    """
    rows = [(listing.name, row) for listing in listings for row in listing.rows if not row.duplicate_of]
    repeats = sum(len(listing.rows) for listing in listings) - len(rows)
    beginnings, beginning, rest = folders_apart(source_text(row.image) for _, row in rows)
    return ImageList(
        [f"{name}/{row.file}" for name, row in rows],
        rest,
        beginnings=beginnings,
        beginning=beginning,
        columns={
            "laboratory": [name for name, _ in rows],
            "label": [row.label for _, row in rows],
            "group": [row.group for _, row in rows],
            "split": [row.split for _, row in rows],
        },
        notes=[
            *(f"{listing.name}: {note}" for listing in listings for note in listing.notes),
            *([f"{repeats} rows that repeat another are left out."] if repeats else []),
        ],
    )
