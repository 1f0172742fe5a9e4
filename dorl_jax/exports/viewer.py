"""Parquet with pictures and places on a map, for Embedding Atlas and what else shows tables with images."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from sklearn.decomposition import PCA

from dorl_jax.exports.names import distinct_names
from dorl_jax.exports.thumbnails import thumbnails
from dorl_jax.files import replacing
from dorl_jax.vectors import PROVENANCE, Vectors

SIDE = 96
# Rows that are held in memory, and stored, together.
_ROWS = 4096
# What Hugging Face's `datasets` and the viewers that follow it take for a picture.
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_viewer(vectors: Vectors, path: Path, workers: int = 0) -> None:
    """The columns, `vector`, `x` and `y` (the first two principal components), and `image`, a PNG of 96 pixels.

    `embedding-atlas FILE --image image --x x --y y` shows the map as it is; `--vector vector` in place of the last two
    makes a UMAP of the vectors. Without a column `source` there are no pictures.

    Args:
      vectors: any number; pictures go to the file as they are made.
      path: of the file.
      workers: processes that decode images; 0 for threads, -1 for half the cores.
    """
    added = [
        pa.field("vector", pa.list_(pa.float32(), vectors.values.shape[1])),
        pa.field("x", pa.float32()),
        pa.field("y", pa.float32()),
    ]
    pictures: Iterator[np.ndarray] | None = None
    if "source" in vectors.columns.column_names:
        added.append(pa.field("image", _IMAGE))
        pictures = thumbnails(vectors, SIDE, workers)
    # What came along may have one of these names, too.
    names = sorted(vectors.columns.column_names)
    kept = vectors.columns.select(names)
    kept = kept.rename_columns(distinct_names(names, [field.name for field in added], str))
    metadata = {PROVENANCE: json.dumps(vectors.provenance)}
    schema = pa.schema([*kept.schema, *added], metadata)
    places = principal_plane(vectors.values)
    with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            values = vectors.values[rows]
            arrays = [
                *(column.combine_chunks() for column in kept.slice(start, _ROWS).columns),
                pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]),
                pa.array(places[rows, 0]),
                pa.array(places[rows, 1]),
            ]
            if pictures is not None:
                arrays.append(pa.array([{"bytes": _png(next(pictures)), "path": None} for _ in values], _IMAGE))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        if pictures is not None:
            next(pictures, None)  # it tells at its end what could not be read


def principal_plane(values: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 2"]:
    """The first two principal components; 0 where there are fewer, as of vectors that are all the same."""
    places = np.zeros((len(values), 2), np.float32)
    most = min(2, *values.shape)
    if (values != values[0]).any():
        places[:, :most] = PCA(most, svd_solver="covariance_eigh").fit_transform(values)
    return places


def _png(pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", pixels[..., ::-1])
    if not done:
        raise ValueError(f"a picture of {pixels.shape} cannot be stored as PNG")
    return data.tobytes()
