"""The check itself: from listings to a report."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from dorl_jax.data.check.colours import colour_difference, mean_look
from dorl_jax.data.check.copies import find_copies
from dorl_jax.data.check.measure import Measured, Outcome, measure_all
from dorl_jax.data.check.problems import find_problems
from dorl_jax.data.check.report import (
    Copies,
    LaboratoryReport,
    Leak,
    MaskSummary,
    Report,
    Unusable,
)
from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError

_FOLDS = 5


def check_listings(
    listings: Sequence[Listing], taxonomy: Taxonomy, *, workers: int = -1, progress: bool = True
) -> Report:
    """Decode everything once and report what is in it and what is wrong with it.

    Nothing but a listing that cannot be read at all is an exception: what is wrong is in the report.

    Args:
      listings: the laboratories.
      taxonomy: the common classes.
      workers: processes that decode (see `pool.worker_count`).
      progress: show a bar with rate and time left.
    """
    rows = [[row for row in listing.rows if not row.duplicate_of] for listing in listings]
    sources = [(row.image, row.mask) for own in rows for row in own]
    outcomes = iter(measure_all(sources, workers=workers, progress=progress))
    measured = [[next(outcomes) for _ in own] for own in rows]
    laboratories = tuple(
        _laboratory(listing, own, found, taxonomy) for listing, own, found in zip(listings, rows, measured, strict=True)
    )
    names = [listing.name for listing in listings]
    copies = _copies(names, rows, measured)
    leaks = _leaks(names, rows, copies)
    torn = _torn(rows, copies)
    looks = [(one.name, one.colours.mean) for one in laboratories if one.colours]
    distances = tuple(
        (first, second, colour_difference(one, other)) for (first, one), (second, other) in combinations(looks, 2)
    )
    remarks = [(listing.name, note) for listing in listings for note in listing.notes]
    problems = find_problems(laboratories, copies, leaks, torn, remarks)
    return Report(taxonomy.name, taxonomy.classes, laboratories, copies, leaks, torn, distances, problems)


def _laboratory(
    listing: Listing, rows: Sequence[Row], outcomes: Sequence[Outcome], taxonomy: Taxonomy
) -> LaboratoryReport:
    labels = Counter(row.label for row in rows)
    classes = dict.fromkeys(taxonomy.classes, 0)
    dropped: dict[str, int] = {}
    unmapped: dict[str, int] = {}
    nearest: dict[str, str] = {}
    for label, count in labels.items():
        word = listing.words.get(label, label)
        try:
            found = taxonomy.resolve(word) if word else None
        except InputError as error:
            unmapped[label] = count
            nearest[label] = str(error).partition("did you mean '")[2].partition("'")[0]
            continue
        if found is None:
            dropped[label] = count
        else:
            classes[found] += count
    images = [outcome.image for outcome in outcomes if outcome.image is not None]
    sizes = sorted(((image.width, image.height) for image in images), key=lambda size: size[0] * size[1])
    return LaboratoryReport(
        name=listing.name,
        rows=len(listing.rows),
        declared=len(listing.rows) - len(rows),
        labels=dict(labels.most_common()),
        classes=classes,
        dropped=dropped,
        unmapped=unmapped,
        nearest=nearest,
        groups=len({row.group for row in rows if row.group}),
        splits=dict(Counter(row.split for row in rows)) if any(row.split for row in rows) else {},
        smallest=sizes[0] if sizes else (0, 0),
        median=sizes[len(sizes) // 2] if sizes else (0, 0),
        largest=sizes[-1] if sizes else (0, 0),
        kinds=dict(Counter(_kind(image) for image in images).most_common()),
        used_bits=_used_bits(images),
        notes=dict(Counter(note for image in images for note in image.header.notes).most_common()),
        unusable=tuple(
            Unusable(row.file, outcome.reason) for row, outcome in zip(rows, outcomes, strict=True) if outcome.reason
        ),
        masks=_masks(outcomes),
        colours=mean_look([image.look for image in images]) if images else None,
        histogram=_histogram(images),
    )


def _kind(image: Measured) -> str:
    alpha = " with alpha" if image.header.has_alpha else ""
    return f"{image.header.format} {image.header.mode}{alpha}, {image.header.bits} bits"


def _used_bits(images: Sequence[Measured]) -> int:
    """Bits that the values of 16-bit images fill, where they are those of a usual camera; 0 otherwise."""
    brightest = max((image.brightest for image in images if image.header.bits == 16), default=0)
    # Values have been scaled to 8 bits, and rounded: 2^12 - 1 became 16, 2^14 - 1 became 64.
    fits = [bits for bits in (12, 14) if 0 < brightest <= round((2**bits - 1) * 255 / 65535)]
    return fits[0] if fits else 0


def _masks(outcomes: Sequence[Outcome]) -> MaskSummary | None:
    masks = [outcome.mask for outcome in outcomes if outcome.mask is not None]
    if not masks:
        return None
    least, lower, median, upper, most = np.quantile([mask.coverage for mask in masks], [0, 0.25, 0.5, 0.75, 1])
    return MaskSummary(
        count=len(masks),
        coverage=(float(least), float(lower), float(median), float(upper), float(most)),
        touching=sum(mask.touches_border for mask in masks),
        all_corners=sum(mask.all_corners for mask in masks),
        in_pieces=sum(mask.pieces > 1 for mask in masks),
        stray=sum(bool(mask.stray) for mask in masks),
        with_nucleus=sum(mask.nucleus for mask in masks),
    )


def _histogram(images: Sequence[Measured]) -> tuple[tuple[float, ...], ...]:
    if not images:
        return ()
    total = np.zeros_like(images[0].histogram, dtype=np.float64)
    for image in images:
        total += image.histogram
    return tuple(tuple(float(share) for share in channel / len(images)) for channel in total)


def _copies(
    names: Sequence[str], rows: Sequence[Sequence[Row]], outcomes: Sequence[Sequence[Outcome]]
) -> tuple[Copies, ...]:
    """Images that show one cell, tied together by their pixels or by `find_copies`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    cells = [f"{name}/{row.file}" for name, own in zip(names, rows, strict=True) for row in own]
    labels = [row.label for own in rows for row in own]
    found = [outcome.image for own in outcomes for outcome in own]
    # Of pictures with the same pixels one is compared with the others.
    first_of: dict[bytes, int] = {}
    twins: list[tuple[int, int]] = []
    for place, image in enumerate(found):
        if image is not None and first_of.setdefault(image.digest, place) != place:
            twins.append((first_of[image.digest], place))
    kept = sorted(first_of.values())
    pairs = find_copies([image.fingerprint if (image := found[place]) is not None else None for place in kept])
    ties = dict.fromkeys(twins, 0.0) | {(kept[pair.first], kept[pair.second]): pair.distance for pair in pairs}
    if not ties:
        return ()
    places = np.array(list(ties))
    graph = coo_array((np.ones(len(places)), (places[:, 0], places[:, 1])), shape=(len(cells), len(cells)))
    _, component = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for place in sorted({int(place) for place in places.ravel()}):
        members.setdefault(int(component[place]), []).append(place)
    farthest: dict[int, float] = {}
    for (one, _), distance in ties.items():
        own = int(component[one])
        farthest[own] = max(farthest.get(own, 0.0), distance)
    groups = [
        Copies(
            cells=tuple(cells[place] for place in own),
            labels=tuple(labels[place] for place in own),
            exact=len({image.digest for place in own if (image := found[place]) is not None}) == 1,
            distance=farthest[number],
        )
        for number, own in members.items()
    ]
    return tuple(sorted(groups, key=lambda one: (len(set(one.laboratories)) == 1, one.distance, one.cells)))


def _leaks(names: Sequence[str], rows: Sequence[Sequence[Row]], copies: Sequence[Copies]) -> tuple[Leak, ...]:
    leaks = []
    split_of: dict[str, str] = {}
    for name, own in zip(names, rows, strict=True):
        splits: dict[str, set[str]] = {}
        for row in own:
            if row.split:
                split_of[f"{name}/{row.file}"] = row.split
                if row.group:
                    splits.setdefault(row.group, set()).add(row.split)
        leaks += [
            Leak(name, f"group {group}", tuple(sorted(there)))
            for group, there in sorted(splits.items())
            if len(there) > 1
        ]
    for one in copies:
        # A split is one of its laboratory.
        there = {(cell.split("/", 1)[0], split_of[cell]) for cell in one.cells if cell in split_of}
        for name in sorted({laboratory for laboratory, _ in there}):
            sides = tuple(sorted(split for laboratory, split in there if laboratory == name))
            if len(sides) > 1:
                own_cells = [cell for cell in one.cells if cell.startswith(f"{name}/")]
                leaks.append(Leak(name, "copies " + ", ".join(own_cells), sides))
    return tuple(leaks)


def _torn(rows: Sequence[Sequence[Row]], copies: Sequence[Copies]) -> tuple[float, float]:
    """How many groups, and sets of copies within a laboratory, random folds are expected to tear apart."""
    groups = Counter((number, row.group) for number, own in enumerate(rows) for row in own if row.group)
    within = [count for one in copies for count in Counter(one.laboratories).values()]
    return _expected_torn(list(groups.values())), _expected_torn(within)


def _expected_torn(sizes: Sequence[int]) -> float:
    # All n are in the fold of the first with probability (1 / folds)^(n - 1).
    return float(sum(1 - (1 / _FOLDS) ** (size - 1) for size in sizes))
