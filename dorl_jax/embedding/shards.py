"""The shards of a store that are missing: which batches each is made of, and what came of them, joined."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dorl_jax.embedding.engine import Rows

# Number and places, as `StoreWriter.missing` gives them.
Shard = tuple[int, range]


def whole_batches(least: int, batch_size: int) -> int:
    """The size of a shard: whole batches, so that a row does not depend on what was done before."""
    return batch_size * -(-least // batch_size)


def batches_of(shard: Shard, shard_size: int, batch_size: int) -> range:
    """The numbers of the batches that a shard is made of."""
    number, places = shard
    first = number * (shard_size // batch_size)
    return range(first, first + -(-len(places) // batch_size))


def joined(
    rows: Iterator[Rows], missing: Sequence[Shard], shard_size: int, batch_size: int, bar: Any
) -> Iterator[tuple[int, Rows]]:
    """(number, rows) of each missing shard, as soon as the last of its batches is there.

    Args:
      rows: of the batches of all missing shards, in order.
      missing: the shards.
      shard_size, batch_size: in rows; see `whole_batches`.
      bar: a progress bar, moved on with every batch.
    """
    for shard in missing:
        parts = []
        for _ in batches_of(shard, shard_size, batch_size):
            parts.append(next(rows))
            bar.update(len(parts[-1].index))
        yield (
            shard[0],
            Rows(
                np.concatenate([part.index for part in parts]),
                np.concatenate([part.reason for part in parts]),
                {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
            ),
        )
