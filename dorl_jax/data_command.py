"""`dorl-jax data`: what data sets there are, whether cells are fit for use, and their fast form."""

import argparse
import textwrap
from pathlib import Path
from typing import Any

from dorl_jax.data.built import build, build_set
from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.listing import Listing
from dorl_jax.data.sets import SETS, DataSet, find_set
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError, name_some

_ABOUT = "Data sets: list the published ones, check cells, build the fast form."
_PATHS = (
    "folders: a laboratory (labels.csv, laboratory.toml or .yaml, a folder of images for each class, a built set), a "
    "folder of laboratories, or with --set what was downloaded of a published set"
)


def add_parser(commands: Any) -> None:
    """Add the command to those of `dorl-jax`."""
    parser = commands.add_parser("data", help=_ABOUT, description=_ABOUT)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the published data sets that are known by name")
    listing.add_argument("name", nargs="?", help="all about this one")
    check = actions.add_parser(
        "check",
        help="report what is in the data, and what is wrong with it",
        description="Counts, unmapped labels, sizes, unreadable files, duplicates inside and across laboratories, "
        "leakage between splits, masks and colours, on one page with pictures.",
    )
    _add_source(check)
    check.add_argument(
        "--taxonomy", default="five_classes", help="five_classes (default), thirteen_classes or a TOML file"
    )
    check.add_argument(
        "--out",
        type=Path,
        default=Path("data_check"),
        help="folder of check.html and its pictures (default: data_check)",
    )
    check.add_argument(
        "--workers", type=int, default=-1, help="processes that decode; 0 for threads, -1 for half the cores"
    )
    build = actions.add_parser(
        "build",
        help="write the fast form, which TensorFlow Datasets reads, too",
        description="Stores each laboratory as ArrayRecord files in OUT/NAME/VERSION. A folder of built sets is read "
        "like any folder of laboratories.",
    )
    _add_source(build)
    build.add_argument("--out", type=Path, required=True, help="folder of the built sets")
    build.add_argument("--size", type=int, help="store images at this side in pixels, ready for a model's input")
    for action in (check, build):
        action.add_argument("--strict", action="store_true", help="fail on files that cannot be used, or other errors")
        action.add_argument("--quiet", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> None:
    """Do what the command line says, and print what was done.

    Raises:
      InputError: bad input, or with --strict errors in the data.
    """
    {"list": _list, "check": _check, "build": _build}[options.action](options)


def _make(out: Path) -> None:
    """Make the folder for what comes, before the work whose results could not be written otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} is no folder and cannot be made one: {error.strerror}") from error


def _add_source(action: argparse.ArgumentParser) -> None:
    action.add_argument("path", type=Path, nargs="+", help=_PATHS)
    action.add_argument("--set", metavar="NAME", help="PATH holds this published data set as it was downloaded")


def _list(options: argparse.Namespace) -> None:
    if options.name:
        print(_describe(find_set(options.name)))
        return
    print(f"{'name':<18}{'images':>8}  {'labels':>7}  {'masks':<6}{'licence':<14}title")
    for name, data_set in SETS.items():
        images = sum(sum(labels.values()) for labels in data_set.expected.values())
        terms = "private" if data_set.private else data_set.licence or "?"
        licence = textwrap.shorten(terms, 13, placeholder="…")
        title = textwrap.shorten(data_set.title, 64, placeholder="…")
        print(f"{name:<18}{images or '?':>8}  {len(data_set.words):>7}  {data_set.masks:<6}{licence:<14}{title}")


def _describe(data_set: DataSet) -> str:
    lines = [f"{data_set.name}: {data_set.title}", data_set.homepage, *data_set.download_urls]
    lines.append(f"licence: {data_set.licence or 'not known'}; masks: {data_set.masks}")
    lines += ["", *textwrap.wrap(data_set.get, 100), "", "labels:"]
    for label, word in data_set.words.items():
        counts = ", ".join(
            f"{split + ' ' if split else ''}{labels[label]}"
            for split, labels in data_set.expected.items()
            if label in labels
        )
        lines.append(f"  {label:<24} {word or '(left out)':<26} {counts}")
    return "\n".join([*lines, "", data_set.citation]).rstrip()


def _read(options: argparse.Namespace) -> list[Listing]:
    if options.set:
        return [find_set(options.set).read(path, strict=options.strict) for path in options.path]
    listings = [listing for path in options.path for listing in open_laboratories(path)]
    names = [listing.name for listing in listings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two laboratories of one name: {name_some(twice)}; a laboratory.toml can give another")
    return listings


def _check(options: argparse.Namespace) -> None:
    from dorl_jax.data.check import check_listings, format_report, write_report

    listings, taxonomy = _read(options), load_taxonomy(options.taxonomy)
    _make(options.out)
    report = check_listings(listings, taxonomy, workers=options.workers, progress=not options.quiet)
    print(format_report(report))
    print(f"\nThe page with pictures: {write_report(report, listings, taxonomy, options.out)}")
    if options.strict and report.errors:
        raise InputError(f"{len(report.errors)} errors in the data: {report.errors[0]}")


def _build(options: argparse.Namespace) -> None:
    if options.size is not None and options.size < 1:
        raise InputError(f"--size {options.size}: the side in pixels, at least 1")
    _make(options.out)
    settings = {"size": options.size, "strict": options.strict, "progress": not options.quiet}
    if options.set:
        data_set = find_set(options.set)
        made = [build_set(data_set, path, options.out, **settings) for path in options.path]
    else:
        made = [build(listing, options.out, **settings) for listing in _read(options)]
    for built in made:
        print(f"{built.folder}: {built.cells} cells{'' if built.new else ', there already'}")
        for left_out in built.left_out[:10]:
            print(f"  left out {left_out.file}: {left_out.reason}")
        if len(built.left_out) > 10:
            print(f"  and {len(built.left_out) - 10} more: see {built.folder / 'failures.csv'}")
