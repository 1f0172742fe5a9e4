"""The paper's table, from official weights and the three data sets: paper, authors' notebook and ours side by side.

    python scripts/paper_table.py --sam sam_vit_b_01ec64.pth --masks FOLDER --matek19 FOLDER --acevedo20 FOLDER \
        --sysu3h FOLDER --out runs/paper

LoRA-SAM is fine-tuned on the cells of --masks (laboratories with a labels.csv that names masks; the paper does not give
its own out), the autoencoder trained on the three sets, both by configs/dorl_vit_b.toml and the paper's epochs, and the
vectors judged by the original's protocol. A killed command goes on where it was. Arguments of --set are those of
`dorl-jax run`.
"""

import argparse
import logging
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from dorl_jax import config
from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.manifest import Manifest, check_cells, load_cells, make_manifest, save_cells
from dorl_jax.data.sets import find_set
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError
from dorl_jax.evaluation.latents import read_latents
from dorl_jax.evaluation.methods import Method
from dorl_jax.evaluation.protocol import as_original
from dorl_jax.evaluation.results import Evaluation
from dorl_jax.files import write_text
from dorl_jax.stages.embed import embed
from dorl_jax.stages.evaluate import EvaluateSettings, evaluate_methods, refuse_untestable
from dorl_jax.stages.extract import extract
from dorl_jax.stages.finetune_sam import finetune_sam, split_masked
from dorl_jax.stages.run import RunSettings
from dorl_jax.stages.train_cae import train_cae
from dorl_jax.store import fingerprint

CONFIG = Path(__file__).parents[1] / "configs" / "dorl_vit_b.toml"
SETS = {"matek19": ("M", 18_341), "acevedo20": ("A", 14_543), "sysu3h": ("S", 331)}
"""Set -> its letter, and the cells that the paper counts in it."""
PAIRS = (("M", "M"), ("M", "A"), ("M", "S"), ("A", "M"), ("A", "A"), ("A", "S"))
SAM_EPOCHS, SAM_WARMUP_EPOCHS, CAE_EPOCHS = 150, 10, 300


@dataclass(frozen=True)
class Published:
    """A row of the paper's table, accuracy %, in the order of `PAIRS`; `classifier` is what ours is set beside it."""

    title: str
    figures: tuple[float, ...]
    mean: float
    classifier: str = ""


# arXiv 2408.07467 and the notebook committed with its code.
PUBLISHED = (
    Published("ResNeXt (paper)", (96.41, 19.63, 13.51, 9.32, 93.25, 0.81), 38.82),
    Published("AE-CFE + RF (paper)", (83.70, 21.90, 15.23, 45.10, 65.20, 11.63), 40.46),
    Published("BC-SAM + SVM poly (paper)", (91.46, 29.46, 28.39, 54.22, 75.44, 24.65), 50.60),
    Published("DoRL + SVM linear (paper)", (94.25, 63.18, 27.61, 55.42, 88.05, 33.65), 60.36),
    Published("DoRL + SVM linear (notebook)", (94.12, 61.25, 19.09, 43.06, 87.89, 13.53), 53.16, "svm_linear"),
    Published("DoRL + LR (notebook)", (95.07, 57.13, 15.23, 42.88, 88.66, 23.69), 53.77, "logistic_regression"),
)
OTHERS = ("random_forest", "xgboost", "svm_poly", "mlp")


def read_sets(folders: dict[str, Path], path: Path, progress: bool) -> Manifest:
    """The cells of the three sets under the 13 classes; checked once, then read from `path`."""
    if path.is_file():
        return load_cells(path)
    listings = [find_set(name).read(folder) for name, folder in folders.items()]
    # DoRL leaves the bilobed promyelocytes of Matek-19 out.
    listings = [replace(one, rows=tuple(row for row in one.rows if row.label != "PMB")) for one in listings]
    checked = check_cells(make_manifest(listings, load_taxonomy("thirteen_classes")), progress)
    for failure in checked.failures:
        logging.warning("left out %s: %s", failure.id, failure.reason)
    save_cells(checked.accepted, path)
    return checked.accepted


def paper_settings(sam: Path, masked: Manifest, cells: Manifest, overrides: dict[str, str]) -> RunSettings:
    """The published configuration, its epochs as steps over these cells; `overrides` win.

    Raises:
      InputError: an unknown setting or a bad value.
    """
    base = config.load(RunSettings, CONFIG, {"finetune_sam.checkpoint": str(sam)} | overrides)
    learning = split_masked(masked.cells, base.finetune_sam.held_out, base.finetune_sam.seed)[0]
    sam_epoch = math.ceil(len(learning) / base.finetune_sam.batch_size)
    steps = {
        "finetune_sam.steps": SAM_EPOCHS * sam_epoch,
        "finetune_sam.warmup_steps": SAM_WARMUP_EPOCHS * sam_epoch,
        "train_cae.steps": CAE_EPOCHS * math.ceil(len(cells.cells) / base.train_cae.batch_size),
    }
    chosen = {name: str(value) for name, value in steps.items()} | {"finetune_sam.checkpoint": str(sam)} | overrides
    return config.load(RunSettings, CONFIG, chosen)


def make_vectors(
    cells: Manifest, masked: Manifest, settings: RunSettings, out: Path, seeds: int, progress: bool
) -> None:
    """Fine-tune, extract, and for each seed train and embed; what is there is not made again.

    Raises:
      InputError: `out` was made with other settings.
    """
    kept = out / "settings.toml"
    if kept.is_file() and config.load(RunSettings, kept) != settings:
        raise InputError(f"{out} was made with other settings ({kept}): choose another --out")
    config.save(settings, kept)
    segmenter = out / "finetune_sam"
    if not (segmenter / "held_out.json").is_file():
        finetune_sam(masked, segmenter, settings.finetune_sam, progress=progress)
    weights = fingerprint(config.as_tree(settings.finetune_sam), [cell.id for cell in masked.cells])
    extract(cells, segmenter / "model", out / "extract", settings.extract, weights=weights, progress=progress)
    for seed in range(seeds):
        folder = out / f"seed_{seed}"
        if (folder / "embed" / "latents.parquet").is_file():
            continue
        training = replace(settings.train_cae, seed=seed)
        train_cae(cells, out / "extract" / "store", folder / "train_cae", training, progress=progress)
        embed(
            cells,
            out / "extract" / "store",
            folder / "train_cae" / "model",
            folder / "embed",
            settings.embed,
            progress=progress,
        )


def table(evaluation: Evaluation, cells: Manifest) -> str:
    """Published figures and ours, as Markdown."""
    letter = {name: short for name, (short, _) in SETS.items()}
    ours = {
        (mean.classifier, letter[mean.source], letter[mean.target]): mean
        for mean in evaluation.means
        if mean.kind != "leave_one_out"
    }
    lines = [["accuracy %", *("-".join(pair) for pair in PAIRS), "mean"]]

    def add_ours(classifier: str) -> None:
        means = [ours[(classifier, *pair)].accuracy for pair in PAIRS]
        known = [score.mean for score in means if score.mean is not None]
        spread = [f"{100 * score.mean:.2f} ± {100 * (score.sd or 0):.2f}" for score in means if score.mean is not None]
        lines.append([f"ours + {classifier}", *spread, f"{100 * sum(known) / len(known):.2f}"])

    for row in PUBLISHED:
        lines.append([row.title, *(f"{figure:.2f}" for figure in row.figures), f"{row.mean:.2f}"])
        if row.classifier:
            add_ours(row.classifier)
    for classifier in OTHERS:
        add_ours(classifier)
    floors = [ours[("svm_linear", *pair)].majority_floor for pair in PAIRS]
    ceilings = [ours[("svm_linear", *pair)].ceiling for pair in PAIRS]
    for title, values in (("majority floor, here", floors), ("ceiling, here", ceilings)):
        lines.append([title, *(f"{100 * value:.2f}" for value in values), f"{100 * sum(values) / len(values):.2f}"])
    counts = cells.counts()
    counted = ", ".join(
        f"{short} = {name}, {sum(counts[name].values())} cells (paper: {paper})"
        for name, (short, paper) in SETS.items()
    )
    seeds = max(mean.seeds for mean in evaluation.means)
    head = f"Source-target; {counted}. Ours: mean ± sd of 5 folds, {seeds} seed{'s' if seeds > 1 else ''}.\n\n"
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return head + "".join("| " + " | ".join(line) + " |\n" for line in (lines[0], rule, *lines[1:]))


def main(arguments: list[str] | None = None) -> int:
    """Do what the module's first lines say; 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", type=Path, required=True, help="official ViT-B checkpoint, .pth or .safetensors")
    parser.add_argument("--masks", type=Path, nargs="+", required=True, help="laboratories whose cells have masks")
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of {find_set(name).title}")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of the autoencoder (default: 1, as the paper)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    try:
        if options.seeds < 1:
            raise InputError(f"--seeds {options.seeds}: at least 1 is needed")
        overrides = dict(item.split("=", 1) for item in options.set if "=" in item)
        if len(overrides) < len(options.set):
            raise InputError("--set: expected SECTION.KEY=VALUE, each key once")
        progress = not options.quiet
        cells = read_sets({name: getattr(options, name) for name in SETS}, options.out / "cells.parquet", progress)
        listings = [listing for path in options.masks for listing in open_laboratories(path)]
        masked = make_manifest(listings, load_taxonomy("five_classes"))
        settings = paper_settings(options.sam, masked, cells, overrides)
        judged = as_original(replace(EvaluateSettings(), invariance=False))
        assert isinstance(judged, EvaluateSettings)
        refuse_untestable(cells, judged)
        make_vectors(cells, masked, settings, options.out, options.seeds, progress)
        files = [options.out / f"seed_{seed}" / "embed" / "latents.parquet" for seed in range(options.seeds)]
        methods = [Method("DoRL", tuple(read_latents(file) for file in files))]
        evaluation = evaluate_methods(methods, options.out / "evaluation", judged, progress)
    except InputError as error:
        print(f"paper_table: {error}", file=sys.stderr)
        return 2
    text = table(evaluation, cells)
    write_text(options.out / "paper_table.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
