"""Vectors as `dorl-jax embed` writes them, with pictures behind them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dorl_jax.vectors import PROVENANCE

# Of pixels and vectors of cell number i.
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (240, 200, 20), (10, 10, 10)]


@pytest.fixture
def vectors_file(tmp_path: Path) -> Callable[..., Path]:
    def write(count: int = 5, width: int = 4, failed: tuple[int, ...] = (3,), **more: list[Any]) -> Path:
        sources = []
        for place in range(count):
            path = tmp_path / f"cell {place}.png"
            Image.new("RGB", (40, 20), COLOURS[place % len(COLOURS)]).save(path)
            sources.append(str(path))
        values = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)
        table = pa.table(
            {
                "id": [f"cell-{place}" for place in range(count)],
                "laboratory": ["north" if place % 2 else "süd" for place in range(count)],
                "label": [None if place == 1 else "monocyte" for place in range(count)],
                "size": pa.array([None if place == 2 else place for place in range(count)], pa.int32()),
                "source": sources,
                "vector": pa.array(
                    [None if place in failed else values[place].tolist() for place in range(count)],
                    pa.list_(pa.float32(), width),
                ),
                "empty": pa.array([None if place in failed else place == 0 for place in range(count)], pa.bool_()),
                "reason": pa.array(["broken" if place in failed else None for place in range(count)], pa.string()),
                **more,
            }
        ).replace_schema_metadata({PROVENANCE: json.dumps({"weights": "abc", "zoom": 1.25})})
        path = tmp_path / "vectors.parquet"
        pq.write_table(table, path)
        return path

    return write
