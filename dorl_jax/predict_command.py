"""`dorl-jax train-classifier` and `dorl-jax predict`: classes of cells, and whether their laboratory is known."""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dorl_jax.errors import InputError
from dorl_jax.evaluation.adaptation import ROUNDS, Adaptation
from dorl_jax.evaluation.classifier_names import CLASSIFIERS
from dorl_jax.files import replacing
from dorl_jax.vectors import PROVENANCE, read_vectors

_TRAIN = "Fit a classifier to vectors whose cells have a label, and store it without pickle."
_PREDICT = "Name the class of cells, and tell whether their laboratory is one the classifier knows."


def add_parser(commands: Any) -> None:
    """Add the commands to those of `dorl-jax`."""
    train = commands.add_parser("train-classifier", help=_TRAIN, description=_TRAIN)
    train.add_argument("vectors", type=Path, metavar="VECTORS", help="what `dorl-jax embed` wrote, with labels")
    train.add_argument("--out", type=Path, required=True, metavar="FILE.skops", help="where the classifier goes")
    train.add_argument(
        "--classifier",
        default="logistic_regression",
        metavar="NAME",
        help=f"one of {', '.join(CLASSIFIERS)} (default: logistic_regression)",
    )
    train.add_argument("--label", default="label", metavar="COLUMN", help="of the labels (default: label)")
    train.add_argument(
        "--taxonomy",
        metavar="NAME",
        help="map labels to common classes: five_classes, thirteen_classes or a TOML file (default: as they are)",
    )
    train.add_argument(
        "--parts",
        nargs="+",
        default=[],
        metavar="PART",
        help="of the vectors, to which it is to look, as in regions size (default: all)",
    )
    train.add_argument(
        "--adaptation",
        choices=get_args(Adaptation),
        default="none",
        help="own: vectors are scaled by the mean and sd of their own laboratory, here and in every prediction, which "
        "needs a hundred cells and more of it; self_training, co_training: it also trains on the cells of --adapt-to "
        "that it is sure of",
    )
    train.add_argument(
        "--adapt-to",
        type=Path,
        metavar="VECTORS",
        help="unlabelled cells of the laboratories it is for, as `dorl-jax embed` wrote them",
    )
    train.add_argument("--rounds", type=int, default=ROUNDS, help=f"of training on them (default: {ROUNDS})")
    train.add_argument("--seed", type=int, default=1234, help="of the fit (default: 1234)")
    predict = commands.add_parser("predict", help=_PREDICT, description=_PREDICT)
    predict.add_argument(
        "images", nargs="*", metavar="IMAGES", help="folder, files, pattern, table or archive, as for `dorl-jax embed`"
    )
    predict.add_argument("--vectors", type=Path, help="in place of IMAGES: what `dorl-jax embed` made of them")
    predict.add_argument("--model", type=Path, metavar="RUN", help="folder of the run whose vectors were learned from")
    predict.add_argument("--classifier", type=Path, required=True, metavar="FILE.skops", help="of train-classifier")
    predict.add_argument(
        "--out",
        type=Path,
        default=Path("predictions.parquet"),
        help="a .parquet or .csv (default: predictions.parquet)",
    )
    predict.add_argument("--overlays", type=Path, metavar="DIR", help="sheets of cells with mask and class; needs RUN")
    predict.add_argument("--most-overlays", type=int, default=512, metavar="N", help="cells on sheets (default: 512)")
    predict.add_argument("--batch-size", type=int, default=16, help="images a step (default: 16)")
    predict.add_argument(
        "--workers", type=int, default=-1, help="processes that decode; 0 for threads, -1 for half the cores"
    )
    predict.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Do what the command line says, and print what was found.

    Raises:
      InputError: bad input; see `fitted.fit_classifier`, `fitted.load_classifier` and `prediction.predict`.
    """
    {"train-classifier": _train, "predict": _predict}[options.stage](options)


def _train(options: argparse.Namespace) -> None:
    from dorl_jax.data.taxonomy import load_taxonomy
    from dorl_jax.evaluation.fitted import fit_classifier, save_classifier

    _refuse_overwriting(options.out, options.vectors, options.adapt_to)
    vectors = read_vectors(options.vectors)
    if not vectors.provenance:
        raise InputError(
            f"{options.vectors} does not tell which model made it, so that predictions could not be checked: take what "
            "`dorl-jax embed` writes"
        )
    fitted = fit_classifier(
        vectors,
        options.classifier,
        label=options.label,
        taxonomy=load_taxonomy(options.taxonomy) if options.taxonomy else None,
        adaptation=options.adaptation,
        seed=options.seed,
        unlabelled=read_vectors(options.adapt_to) if options.adapt_to else None,
        rounds=options.rounds,
        parts=options.parts,
    )
    save_classifier(fitted, options.out)
    for laboratory, cells in fitted.header.cells.items():
        listed = ", ".join(f"{count} {label}" for label, count in cells.items())
        print(f"{laboratory}: {sum(cells.values())} cells ({listed})")
    for laboratory, count in fitted.header.adapted_to.items():
        print(f"{laboratory}: {count} cells, unlabelled")
    for note in fitted.header.notes:
        print(f"note: {note}")
    print(f"{options.out}: {fitted.header.name} of {len(fitted.header.classes)} classes")


def _predict(options: argparse.Namespace) -> None:
    from dorl_jax.evaluation.fitted import load_classifier
    from dorl_jax.evaluation.origins import describe_origins
    from dorl_jax.evaluation.prediction import prediction_table, refuse_vectors_of

    if bool(options.images) == bool(options.vectors):
        raise InputError("give IMAGES or --vectors FILE, one of them")
    if options.model is None and (options.images or options.overlays):
        raise InputError("give --model RUN: the run whose vectors the classifier was fitted on")
    if options.out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {options.out}: expected a .parquet or .csv")
    _refuse_overwriting(options.out, options.vectors, options.classifier)
    fitted = load_classifier(options.classifier)
    dorl = None
    if options.model is not None:
        from dorl_jax.dorl import DoRL

        dorl = DoRL.load(options.model)
        refuse_vectors_of(fitted, dorl.provenance)
    table = _table(options, dorl)
    predictions, found = prediction_table(fitted, table)
    _write(predictions, options.out)
    for note in found.notes:
        print(f"note: {note}")
    print(describe_origins(found.origins))
    counts = pa.compute.value_counts(predictions["class"].drop_null()).to_pylist()
    for one in sorted(counts, key=lambda one: -one["counts"]):
        print(f"{one['counts']:>8}  {one['values']}")
    failed = predictions["class"].null_count
    print(f"{options.out}: {len(predictions)} cells" + (f", {failed} of them without a vector" if failed else ""))
    if options.overlays and dorl is not None:
        from dorl_jax.prediction_sheets import write_sheets

        sheets = write_sheets(dorl, predictions, options.overlays, options.most_overlays)
        print(f"{options.overlays}: {len(sheets)} sheets of cells")


def _table(options: argparse.Namespace, dorl: Any) -> pa.Table:
    """The vectors with their provenance, read or made."""
    if options.vectors:
        read_vectors(options.vectors)  # says what is wrong with it
        return pq.ParquetFile(options.vectors).read()
    images = options.images[0] if len(options.images) == 1 else options.images
    table = dorl.embed_table(images, batch_size=options.batch_size, workers=options.workers, progress=not options.quiet)
    return table.replace_schema_metadata({PROVENANCE: json.dumps(dorl.provenance)})


def _refuse_overwriting(out: Path, *inputs: Path | None) -> None:
    for path in inputs:
        if path is not None and path.resolve() == out.resolve():
            raise InputError(f"--out {out} is what is read: it would be replaced; give another name")


def _write(predictions: pa.Table, out: Path) -> None:
    with replacing(out) as partial:
        if out.suffix == ".parquet":
            pq.write_table(predictions, partial)
        else:
            flat = [name for name in predictions.column_names if not pa.types.is_nested(predictions[name].type)]
            pa.csv.write_csv(predictions.select(flat), partial)
