"""`dorl-jax judge`: test vectors from anywhere across laboratories."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from dorl_jax.config import build
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError
from dorl_jax.evaluation.settings import EvaluateSettings

_ABOUT = "Test vectors from anywhere across laboratories, several methods on the same folds."


def add_parser(commands: Any) -> None:
    """Add the command to those of `dorl-jax`."""
    parser = commands.add_parser(
        "judge",
        help=_ABOUT,
        description=f"{_ABOUT} A file is Parquet with the columns id, laboratory, label (texts) and vector (lists of "
        "one length); group (patient, slide) and seen (no, unlabelled, labelled: what the making of the vectors saw of "
        "the cell) may be there. The stage `evaluate` does the same within a run.",
    )
    parser.add_argument(
        "vectors", nargs="+", metavar="NAME=FILE", help="a method and a file of its vectors; repeat NAME for more seeds"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables; a killed command goes on there")
    parser.add_argument(
        "--taxonomy",
        metavar="NAME",
        help="map labels to common classes: five_classes, thirteen_classes or a TOML file (default: as they are)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, see `dorl-jax evaluate --help`"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Do what the command line says, and print the tables.

    Raises:
      InputError: bad settings or vectors (see `evaluate_methods`).
    """
    # only here: they take seconds to import
    from dorl_jax.evaluation.common_classes import in_common_classes
    from dorl_jax.stages.evaluate import evaluate_methods, read_methods

    overrides = {}
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set {item}: expected KEY=VALUE")
        overrides[key.strip().removeprefix("evaluate.")] = value.strip()
    for taken in ("name", "beside"):
        if taken in overrides:
            raise InputError(f"--set {taken}: the methods are given as NAME=FILE")
    settings = build(EvaluateSettings, {}, overrides, "--set")
    methods = read_methods(options.vectors)
    if options.taxonomy:
        taxonomy = load_taxonomy(options.taxonomy)
        methods = [
            replace(method, latents=tuple(in_common_classes(one, taxonomy) for one in method.latents))
            for method in methods
        ]
    evaluation = evaluate_methods(methods, options.out, settings, progress=not options.quiet)
    print((options.out / "table.md").read_text(encoding="utf-8"))
    for note in evaluation.notes:
        print(f"note: {note}")
