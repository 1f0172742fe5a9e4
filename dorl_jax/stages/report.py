"""Stage `report`: everything a run wrote -> one HTML page."""

import csv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
from jaxtyping import Float, Int, Shaped

from dorl_jax.data.manifest import load_cells
from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation import plots
from dorl_jax.evaluation.classifier_names import TITLES
from dorl_jax.evaluation.exposure import MEANINGS
from dorl_jax.evaluation.exposure import TITLES as SETTING_TITLES
from dorl_jax.evaluation.heat_maps import panels
from dorl_jax.evaluation.invariance_columns import InvarianceColumns, read_invariance
from dorl_jax.evaluation.results import Evaluation, Summary, read_evaluation
from dorl_jax.evaluation.tables import percent
from dorl_jax.files import write_text
from dorl_jax.html import page_templates, png_uri
from dorl_jax.stages.report_parts import Chart, Tile, chart
from dorl_jax.stages.report_vectors import (
    read_few_cells,
    read_latent_space,
    read_neighbours,
    read_worst_cells,
)

_TILES = 8
"""Cells shown of a laboratory."""


def report(run: Path) -> Path:
    """Write `report.html` into a run folder: one file, no script, nothing loaded from elsewhere.

    A part of the run that is missing is said so on the page.

    Args:
      run: folder that holds what the other stages wrote.

    Returns:
      The path of the page.

    Raises:
      InputError: no such folder, a folder in which no stage has written anything, or a file that cannot be
      read.
    """
    if not run.is_dir():
        raise InputError(f"no run folder at {run}")
    readers = {
        "evaluation": (_read_evaluation, "evaluation/summary.json"),
        "few_cells": (read_few_cells, "evaluation/few_cells.csv"),
        "invariance": (read_invariance, "evaluation/invariance.json"),
        "held_out": (_read_held_out, "finetune_sam/held_out.json"),
        "held_out_cells": (_read_held_out_cells, "finetune_sam/held_out_samples.npz"),
        "extracted_cells": (_read_extracted_cells, "extract/samples.npz"),
        "reconstructions": (_read_reconstructions, "train_cae/samples.npz"),
        "sam_curves": (_read_curves, "finetune_sam/metrics.csv"),
        "cae_curves": (_read_curves, "train_cae/metrics.csv"),
        "cells": (_read_cells, "data/cells.parquet"),
        "failures": (_read_failures, "data/failures.csv"),
    }
    parts = {name: read(run / file) if (run / file).is_file() else None for name, (read, file) in readers.items()}
    alone = _alone(parts)
    has_vectors = (run / "embed" / "latents.parquet").is_file()
    has_predictions = parts["evaluation"] is not None and (run / "evaluation" / "predictions.parquet").is_file()
    parts["latent_space"] = read_latent_space(run) if has_vectors else None
    parts["neighbours"] = read_neighbours(run) if has_vectors and not alone else None
    parts["worst_cells"] = read_worst_cells(run) if has_predictions else None
    if all(part is None for part in parts.values()):
        raise InputError(
            f"nothing to report in {run}: run `dorl-jax run`, or at least the stage `evaluate`, which writes "
            "evaluation/summary.json there"
        )
    settings = run / "settings.toml"
    parts["invariance"] = parts["invariance"] or InvarianceColumns()
    page = _template().render(
        name=run.resolve().name,
        alone=alone,
        settings=settings.read_text(encoding="utf-8") if settings.is_file() else None,
        **parts,
    )
    path = run / "report.html"
    write_text(path, page)
    return path


def _alone(parts: Mapping[str, Any]) -> bool:
    """Whether the page is of a single laboratory, as far as is known."""
    if parts["evaluation"] is not None:
        return parts["evaluation"]["summary"].alone
    return parts["cells"] is not None and len(parts["cells"]["lines"]) == 1


def _template() -> jinja2.Template:
    environment = page_templates(Path(__file__).parent)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    environment.filters["score"] = percent
    environment.filters["setting"] = lambda setting: SETTING_TITLES[setting]
    environment.filters["meaning"] = lambda setting: MEANINGS[setting]
    environment.filters["title_of"] = lambda classifier: TITLES.get(classifier, classifier)
    environment.filters["words"] = lambda name: name.replace("_", " ")
    return environment.get_template("report.html.jinja")


def _read_evaluation(path: Path) -> dict[str, Any]:
    evaluation = read_evaluation(path.parent)
    ranking = evaluation.ranking()
    best = ranking[0]
    own = [
        one
        for one in evaluation.summaries
        if (one.method, one.adaptation, one.setting) == (best.method, best.adaptation, best.setting)
    ]
    names = [one.classifier for one in own]
    means = {
        (one.classifier, mean.kind, mean.source, mean.target): mean
        for one in own
        for mean in evaluation.means_of(one, ("in_domain", "pair", "leave_one_out"))
    }
    tests = [key[1:] for key in means if key[0] == best.classifier]
    return {
        "summary": evaluation,
        "best": best,
        "ranking": ranking,
        "own": own,
        "names": names,
        "pairs": [[means[(name, *test)] for name in names] for test in tests],
        "heat_maps": _heat_maps(evaluation, own, "Accuracy of every classifier for every source and target laboratory")
        if not evaluation.alone
        else None,
        "methods": _heat_maps(evaluation, ranking, "Accuracy of every method for every source and target laboratory")
        if len(ranking) > 1 and not evaluation.alone
        else None,
        "confusions": _confusions(evaluation, best, names) if evaluation.confusions else None,
    }


def _heat_maps(evaluation: Evaluation, summaries: Sequence[Summary], alt: str) -> Chart:
    laboratories, floors = list(evaluation.laboratories), evaluation.floors()
    values = panels(evaluation, summaries)
    return chart(lambda theme: plots.heat_maps(values, laboratories, floors, theme), alt)


def _confusions(evaluation: Evaluation, best: Summary, names: Sequence[str]) -> dict[str, Chart]:
    laboratories, classes = list(evaluation.laboratories), evaluation.classes
    of_pairs, of_classifiers = count_confusions(evaluation, best, names)
    sources, targets = [f"from {name}" for name in laboratories], [f"on {name}" for name in laboratories]
    return {
        "best": chart(
            lambda theme: plots.confusion_grid(of_pairs, classes, sources, targets, theme),
            f"Confusion matrices of {best.classifier} for every source and target laboratory",
        ),
        "all": chart(
            lambda theme: plots.confusion_grid(
                of_classifiers[: len(laboratories)],  # of one there is no other
                classes,
                ["in-domain", "cross-domain"],
                [TITLES.get(n, n) for n in names],
                theme,
            ),
            "Confusion matrices of every classifier, in-domain and cross-domain",
        ),
    }


def count_confusions(
    evaluation: Evaluation, best: Summary, names: Sequence[str]
) -> tuple[Int[np.ndarray, "l l k k"], Int[np.ndarray, "2 n k k"]]:
    """The headline classifier for every pair; all classifiers, summed over laboratories and over pairs.

    Pairs of the headline's setting alone: others may have seen more of the target.
    """
    laboratories, classes = list(evaluation.laboratories), evaluation.classes
    of_pairs = np.zeros((len(laboratories), len(laboratories), len(classes), len(classes)), int)
    of_classifiers = np.zeros((2, len(names), len(classes), len(classes)), int)
    for c in evaluation.confusions:
        if (c.method, c.adaptation) != (best.method, best.adaptation) or c.kind == "leave_one_out":
            continue
        if c.kind == "pair" and c.setting != best.setting:
            continue
        of_classifiers[int(c.source != c.target), names.index(c.classifier)] += c.counts
        if c.classifier == best.classifier:
            of_pairs[laboratories.index(c.source), laboratories.index(c.target)] += c.counts
    return of_pairs, of_classifiers


@dataclass(frozen=True)
class HeldOutCell:
    id: str
    laboratory: str
    iou: float


@dataclass(frozen=True)
class HeldOut:
    """`finetune_sam/held_out.json`: intersection over union of predicted and true masks, 0..1."""

    mean_iou: dict[str, float]
    cells: list[HeldOutCell]


def _read_held_out(path: Path) -> list[dict[str, Any]]:
    try:
        held_out = msgspec.json.decode(path.read_bytes(), type=HeldOut)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} cannot be read: {error}; run the stage `finetune-sam` again") from error
    lines = []
    for laboratory, mean in held_out.mean_iou.items():
        cells = [c for c in held_out.cells if c.laboratory == laboratory]
        worst = min(cells, key=lambda c: c.iou, default=None)
        lines.append({"laboratory": laboratory, "mean": mean, "cells": len(cells), "worst": worst})
    return lines


def _read_held_out_cells(path: Path) -> dict[str, list[Tile]]:
    images, truth, predicted, laboratories, iou = _arrays(
        path, ("image", "truth", "predicted", "laboratory", "iou"), "finetune-sam"
    )
    tiles = {}
    for laboratory, rows in _rows_of(laboratories):
        by_iou = rows[np.argsort(iou[rows], kind="stable")]
        # The two worst, and the rest evenly spread up to the best.
        chosen = [*by_iou[:2], *by_iou[2:][_evenly(len(by_iou) - 2, _TILES - 2)]]
        tiles[laboratory] = [
            Tile(
                images=[(png_uri(plots.cell_with_masks(images[row], predicted[row], truth[row])), "cell with masks")],
                caption=f"IoU {iou[row]:.2f}" + (" (worst)" if row == by_iou[0] else ""),
                marked=bool(row == by_iou[0]),
            )
            for row in chosen
        ]
    return tiles


def _read_extracted_cells(path: Path) -> dict[str, list[Tile]]:
    images, masks, laboratories, labels = _arrays(path, ("image", "mask", "laboratory", "label"), "extract")
    return {
        laboratory: [
            Tile([(png_uri(plots.cell_with_masks(images[row], masks[row])), "cell with mask")], str(labels[row]))
            for row in _by_label(rows, labels)
        ]
        for laboratory, rows in _rows_of(laboratories)
    }


def _read_reconstructions(path: Path) -> dict[str, list[Tile]]:
    targets, made, laboratories, labels = _arrays(
        path, ("target", "reconstruction", "laboratory", "label"), "train-cae"
    )
    return {
        laboratory: [
            Tile(
                [
                    (png_uri(plots.image_png(targets[row])), "target"),
                    (png_uri(plots.image_png(made[row])), "reconstruction"),
                ],
                str(labels[row]),
            )
            for row in _by_label(rows, labels)
        ]
        for laboratory, rows in _rows_of(laboratories)
    }


def _arrays(path: Path, names: Sequence[str], stage: str) -> list[np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no NumPy archive; run the stage `{stage}` again")
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in names if name not in file.files]
        if missing:
            raise InputError(f"{path} lacks the array {name_some(missing)}; run the stage `{stage}` again")
        try:
            arrays = [file[name] for name in names]
        except (ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} cannot be read: {error}; run the stage `{stage}` again") from error
    if len({len(array) for array in arrays}) > 1:
        raise InputError(f"{path}: the arrays {', '.join(names)} differ in length; run the stage `{stage}` again")
    return arrays


def _rows_of(laboratories: Shaped[np.ndarray, " n"]) -> list[tuple[str, Int[np.ndarray, " m"]]]:
    return [(str(name), np.flatnonzero(laboratories == name)) for name in np.unique(laboratories)]


def _evenly(count: int, most: int) -> Int[np.ndarray, " m"]:
    """At most `most` of 0..count-1, with both ends."""
    return np.linspace(0, count - 1, max(0, min(count, most))).round().astype(int)


def _by_label(rows: Int[np.ndarray, " n"], labels: Shaped[np.ndarray, " all"]) -> Int[np.ndarray, " m"]:
    ordered = rows[np.argsort(labels[rows], kind="stable")]
    return ordered[_evenly(len(ordered), _TILES)]


def _read_curves(path: Path) -> Chart:
    lines = _csv(path, ("step",))
    columns: dict[str, Float[np.ndarray, " steps"]] = {}
    for name in lines[0]:
        values = [_number(line[name]) for line in lines]
        if all(value is None for value in values):
            continue  # a column of words
        columns[name] = np.array([np.nan if value is None else value for value in values])
    if "step" not in columns or len(columns) < 2:
        raise InputError(f"{path} holds no numbers over `step`; run its stage again")
    return chart(
        lambda theme: plots.training_curves(columns, theme),
        f"{', '.join(name for name in columns if name != 'step')} over the steps of training",
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _read_cells(path: Path) -> dict[str, Any]:
    manifest = load_cells(path)
    labels = [label for label in manifest.classes if any(row[label] for row in manifest.counts().values())]
    return {
        "labels": labels,
        "lines": [
            {
                "laboratory": laboratory,
                "counts": [counts[label] for label in labels],
                "cells": sum(counts.values()),
                "masks": sum(cell.mask is not None for cell in manifest.of(laboratory)),
            }
            for laboratory, counts in manifest.counts().items()
        ],
    }


def _read_failures(path: Path) -> list[dict[str, str]]:
    return _csv(path, ("id", "image", "reason"), may_be_empty=True)


def _csv(path: Path, needed: Sequence[str], may_be_empty: bool = False) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file: {error}") from error
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path} lacks the column {name_some(missing)}")
    if not lines and not may_be_empty:
        raise InputError(f"{path} has no rows")
    return lines
