"""What the report shows of vectors: their plane before and after, cells called wrong, and neighbours elsewhere."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Float32

from dorl_jax.errors import InputError
from dorl_jax.evaluation import plots
from dorl_jax.evaluation.adaptation import standardise_by_laboratory
from dorl_jax.evaluation.few_cells import FewCells
from dorl_jax.evaluation.latents import Latents, read_latents
from dorl_jax.evaluation.results import read_evaluation
from dorl_jax.html import png_uri
from dorl_jax.stages.report_parts import Chart, Tile, chart
from dorl_jax.store import Store

_POINTS = 1500
"""Cells drawn in the plane."""
_TILES = 8
"""Cells shown of a laboratory."""
_QUERIES = 5
"""Cells of a laboratory whose neighbours are shown."""


def read_latent_space(run: Path) -> dict[str, Any]:
    """The plane of the vectors by class and by laboratory, and, where the store is there, of the mean tokens before."""
    latents = read_latents(run / "embed" / "latents.parquet")
    groups = np.char.add(np.char.add(latents.laboratories, "\n"), latents.labels)
    shown = plots.spread(groups, _POINTS)
    plane, way = plots.project(latents.vectors[shown])
    store = _store(run)
    before = None
    if store is not None:
        place = _places(store)
        known = np.array([name in place for name in latents.ids[shown].tolist()])
        rows = shown[known]
        features = store["feature"]
        tokens = [features[place[name]].astype(np.float32).mean(axis=(0, 1)) for name in latents.ids[rows].tolist()]
        if tokens:
            before = _plane(plots.project(np.stack(tokens))[0], latents, rows, "Mean tokens of the encoder")
    return {
        "shown": len(shown),
        "cells": len(latents),
        "dimensions": latents.vectors.shape[1],
        "way": way,
        "chart": _plane(plane, latents, shown, "Latent vectors"),
        "before": before,
    }


def _plane(plane: Float[np.ndarray, "n 2"], latents: Latents, rows: np.ndarray, what: str) -> Chart:
    return chart(
        lambda theme: plots.latent_space(plane, latents.labels[rows], latents.laboratories[rows], theme),
        f"{what} in two dimensions, by class and by laboratory",
    )


def _store(run: Path) -> Store | None:
    folder = run / "extract" / "store"
    return Store(folder) if (folder / "store.json").is_file() else None


def _places(store: Store) -> dict[str, int]:
    return {name: number for number, name in enumerate(store.ids)}


def _image(store: Store, place: int) -> str:
    return png_uri(plots.image_png(np.asarray(store["crop"][place])))


def read_worst_cells(run: Path) -> dict[str, list[Tile]] | None:
    """Of each laboratory the cells that most fits of the headline classifier, trained elsewhere, called wrong.

    Of a single laboratory, trained on its other folds. None where the store, which has the pictures, is not there.
    """
    store = _store(run)
    if store is None:
        return None
    evaluation = read_evaluation(run / "evaluation")
    best = evaluation.ranking()[0]
    path = run / "evaluation" / "predictions.parquet"
    headline = {"method": best.method, "adaptation": best.adaptation, "classifier": best.classifier}
    # Only tests of the headline's setting: others may have seen more.
    tests = {
        (test.source, test.target)
        for test in evaluation.means
        if all(getattr(test, name) == value for name, value in headline.items())
        and (test.kind != "in_domain" or evaluation.alone)
        and test.setting == best.setting
    }
    called: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for source, laboratory, name, label, predicted in _predictions(path, headline):
        if (source, laboratory) in tests:
            called[laboratory, name, label][predicted] += 1
    place = _places(store)
    tiles: dict[str, list[Tile]] = {}
    for laboratory in evaluation.laboratories:
        cells = []
        for (where, name, label), names in called.items():
            wrong = Counter({other: count for other, count in names.items() if other != label})
            if where == laboratory and wrong and name in place:
                most, count = wrong.most_common(1)[0]
                total = sum(names.values())
                cells.append((-sum(wrong.values()) / total, -count / total, name, label, most, count, total))
        tiles[laboratory] = [
            Tile(
                [(_image(store, place[name]), "cell")],
                f"{label}, called {most} by {count} of {total}",
                marked=count == total,
            )
            for _, _, name, label, most, count, total in sorted(cells)[:_TILES]
        ]
    return {name: own for name, own in tiles.items() if own}


def _predictions(path: Path, wanted: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """(source, laboratory, id, label, predicted) of the rows with these texts, a row group at a time."""
    columns = ("source", "laboratory", "id", "label", "predicted")
    try:
        file = pq.ParquetFile(path)
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, [*columns, *wanted])
            for name, text in wanted.items():
                table = table.filter(pc.equal(table[name].cast(pa.string()), text))
            yield from zip(*(table[name].to_pylist() for name in columns), strict=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}; run the stage `evaluate` again") from error


def read_neighbours(run: Path) -> dict[str, list[Tile]] | None:
    """Some cells of each laboratory, and the nearest cell of every other by the vectors in their laboratory's units.

    None where the store, which has the pictures, is not there.
    """
    store = _store(run)
    if store is None:
        return None
    latents = standardise_by_laboratory(read_latents(run / "embed" / "latents.parquet"))
    place = _places(store)
    known = np.array([name in place for name in latents.ids.tolist()])
    laboratories = np.unique(latents.laboratories).tolist()
    tiles = {}
    for laboratory in laboratories:
        own = np.flatnonzero((latents.laboratories == laboratory) & known)
        queries = own[plots.spread(latents.labels[own], _QUERIES)]
        tiles[laboratory] = [_neighbours(store, place, latents, int(row), laboratories, known) for row in queries]
    return {name: own for name, own in tiles.items() if own}


def _neighbours(
    store: Store, place: dict[str, int], latents: Latents, row: int, laboratories: list[str], known: np.ndarray
) -> Tile:
    images = [(_image(store, place[str(latents.ids[row])]), f"{latents.labels[row]}")]
    right = others = 0
    for other in laboratories:
        rows = np.flatnonzero((latents.laboratories == other) & known)
        if other == latents.laboratories[row] or not len(rows):
            continue
        nearest = rows[_distances(latents.vectors[rows], latents.vectors[row]).argmin()]
        images.append((_image(store, place[str(latents.ids[nearest])]), f"{other}: {latents.labels[nearest]}"))
        right += int(latents.labels[nearest] == latents.labels[row])
        others += 1
    found = ", ".join(what for _, what in images[1:])
    return Tile(images, f"{latents.labels[row]} → {found}", marked=right < others)


def _distances(vectors: Float32[np.ndarray, "n d"], one: Float32[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(vectors - one, axis=1)


def read_few_cells(path: Path) -> Chart:
    """Curves of accuracy and macro-F1 over the number of unlabelled cells, one for each laboratory and method."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [msgspec.convert(line, FewCells, strict=False) for line in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error, msgspec.ValidationError) as error:
        raise InputError(f"{path} cannot be read: {error}; run the stage `evaluate` again") from error
    if not found:
        raise InputError(f"{path} has no rows; run the stage `evaluate` again")
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for one in found:
        for score, title in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
            panel = panels.setdefault(f"{one.method}: {title}", {})
            panel.setdefault(one.target, defaultdict(list))[one.cells].append(getattr(one, score))
    return chart(
        lambda theme: plots.few_cell_curves(panels, theme), "Scores over the number of unlabelled cells of the target"
    )
