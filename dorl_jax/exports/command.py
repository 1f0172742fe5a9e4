"""`dorl-jax export`: vectors, or a run's model, in the formats of other people's tools."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dorl_jax.errors import InputError
from dorl_jax.vectors import Vectors, read_vectors

_ABOUT = "Write vectors for scanpy, NumPy, FAISS, DuckDB or an embedding viewer; or a run as one JAX program."
_KINDS = {
    ".h5ad": "AnnData, for scanpy",
    ".npz": "NumPy, one file",
    ".npy": "a float32 matrix, for FAISS, and a .csv beside it",
    ".duckdb": "a DuckDB database",
    ".parquet": "with thumbnails and places on a map, for Embedding Atlas",
    "a folder": "for TensorBoard's projector, with a sheet of thumbnails",
    ".jaxexport": "of a run: image -> vector, for JAX without this package",
}


def add_parser(commands: Any) -> None:
    """Add the command to those of `dorl-jax`."""
    kinds = "; ".join(f"{suffix}: {what}" for suffix, what in _KINDS.items())
    parser = commands.add_parser(
        "export", help=_ABOUT, description=f"{_ABOUT} What is written goes by the name: {kinds}."
    )
    parser.add_argument(
        "source", type=Path, metavar="VECTORS", help="what `dorl-jax embed` wrote, or the folder of a run"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="what to write")
    parser.add_argument("--most", type=int, metavar="N", help="of more cells so many, at random, in their order")
    parser.add_argument(
        "--workers", type=int, default=-1, help="processes that decode thumbnails; 0 for threads, -1 for half the cores"
    )


def run(options: argparse.Namespace) -> None:
    """Do what the command line says, and print what was written.

    Raises:
      InputError: bad input, a suffix that says nothing, or a package that is not installed.
    """
    to: Path = options.to
    _check_place(options.source, to)
    if to.suffix == ".jaxexport":
        if options.most is not None:
            raise InputError(f"--most is for vectors, and {to.name} is a model: leave it out")
        from dorl_jax.exports.program import export_run

        print(f"{to}: {export_run(options.source, to)}")
        return
    if options.source.is_dir():
        raise InputError(f"{options.source} is a folder; of a run only a .jaxexport is written, not {to.name}")
    write = _writer(to, options.workers)
    vectors = read_vectors(options.source)
    chosen = vectors if options.most is None else sample(vectors, options.most)
    write(chosen, to)
    left_out = f"; {len(vectors.left_out)} have no vector" if vectors.left_out else ""
    print(f"{to}: {len(chosen)} cells, vectors of {chosen.values.shape[1]}{left_out}")


def _check_place(source: Path, to: Path) -> None:
    if to.exists() and source.exists() and to.samefile(source):
        raise InputError(
            f"--to {to} is what is read: cells without a vector, and more, would be lost; name another file"
        )
    if to.suffix and to.is_dir():
        raise InputError(f"--to {to} is a folder, but its name is that of a file: name another")
    if not to.suffix and to.is_file():
        raise InputError(f"--to {to} is a file, and would be a folder: name another")


def sample(vectors: Vectors, most: int, seed: int = 0) -> Vectors:
    """At most so many cells, drawn at random and kept in their order."""
    if most < 1:
        raise InputError(f"--most {most}: at least 1")
    if len(vectors) <= most:
        return vectors
    return vectors.take(np.sort(np.random.default_rng(seed).choice(len(vectors), most, replace=False)))


def _writer(to: Path, workers: int) -> Callable[[Vectors, Path], None]:
    # Each brings in a library of its own.
    match to.suffix:
        case ".h5ad":
            from dorl_jax.exports.anndata_file import write_h5ad

            return write_h5ad
        case ".npz":
            from dorl_jax.exports.numpy_files import write_npz

            return write_npz
        case ".npy":
            from dorl_jax.exports.numpy_files import write_npy

            return write_npy
        case ".duckdb":
            from dorl_jax.exports.duckdb_file import write_duckdb

            return write_duckdb
        case ".parquet":
            from dorl_jax.exports.viewer import write_viewer

            return lambda vectors, path: write_viewer(vectors, path, workers)
        case "":
            from dorl_jax.exports.projector import write_projector

            return lambda vectors, path: write_projector(vectors, path, workers)
    raise InputError(f"--to {to}: {to.suffix!r} is none of {', '.join(_KINDS)}")
