"""What every fit called every cell, as one Parquet file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.protocol import NOT_TESTED, Judged
from dorl_jax.files import replacing

_ROWS = 1 << 20


def write_predictions(cells: Latents, judged: Sequence[Judged], path: Path) -> None:
    """Write one row for every cell that a fit tested.

    Columns: method, seed, adaptation, source, classifier, fold, then of the cell id, laboratory (the target), label and
    predicted. Texts are dictionary-encoded, and a fit's rows are neighbours, so that a row takes a few bits.
    """
    classes = np.unique(cells.labels)
    labels = np.searchsorted(classes, cells.labels)
    laboratories, of_cell = np.unique(cells.laboratories, return_inverse=True)
    fits = [(one.run.method, one.run.seed, fit) for one in judged for fit in one.fits]
    names = {
        "method": [method for method, _, _ in fits],
        "adaptation": [fit.adaptation for _, _, fit in fits],
        "source": [fit.source for _, _, fit in fits],
        "classifier": [fit.classifier for _, _, fit in fits],
    }
    coded = {name: np.unique(values, return_inverse=True) for name, values in names.items()}
    text = pa.dictionary(pa.int32(), pa.string())
    texts = ("id", "laboratory", "label", "predicted")
    types = {"seed": pa.int32(), "fold": pa.int32()}
    columns = ("method", "seed", "adaptation", "source", "classifier", "fold", *texts)
    schema = pa.schema([(name, types.get(name, text)) for name in columns])
    dictionaries = {name: pa.array(values.tolist(), pa.string()) for name, (values, _) in coded.items()}
    dictionaries |= {
        "id": pa.array(cells.ids.tolist(), pa.string()),
        "laboratory": pa.array(laboratories.tolist(), pa.string()),
        "label": pa.array(classes.tolist(), pa.string()),
        "predicted": pa.array(classes.tolist(), pa.string()),
    }
    with replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        batch: list[dict[str, np.ndarray]] = []
        for number, (_, seed, fit) in enumerate(fits):
            predicted = np.frombuffer(fit.predicted, np.uint8)
            rows = np.flatnonzero(predicted != NOT_TESTED)
            own = {name: np.full(len(rows), codes[number]) for name, (_, codes) in coded.items()}
            own |= {"seed": np.full(len(rows), seed), "fold": np.full(len(rows), fit.fold)}
            own |= {"id": rows, "laboratory": of_cell[rows], "label": labels[rows], "predicted": predicted[rows]}
            batch.append(own)
            if sum(len(one["id"]) for one in batch) >= _ROWS or number == len(fits) - 1:
                writer.write_table(_table(batch, schema, dictionaries))
                batch = []


def _table(batch: Sequence[dict[str, np.ndarray]], schema: pa.Schema, dictionaries: dict[str, pa.Array]) -> pa.Table:
    columns = []
    for name in schema.names:
        values = pa.array(np.concatenate([one[name] for one in batch]).astype(np.int32))
        columns.append(pa.DictionaryArray.from_arrays(values, dictionaries[name]) if name in dictionaries else values)
    return pa.table(columns, schema=schema)
