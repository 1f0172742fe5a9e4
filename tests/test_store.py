"""The store: what is written is read, what is missing or damaged is named."""

import ml_dtypes
import numpy as np
import pytest

from dorl_jax.errors import InputError
from dorl_jax.store import Store, StoreWriter, fingerprint

IDS = [f"cell{i}" for i in range(10)]
SIGNATURE = {"weights": "abc", "parity": False}
FEATURES = np.random.RandomState(0).standard_normal((10, 2, 3)).astype(ml_dtypes.bfloat16)
CROPS = np.random.RandomState(1).randint(0, 256, (10, 4)).astype(np.uint8)


def write(folder, shards=None):
    writer = StoreWriter(folder, IDS, SIGNATURE, shard_size=4)
    for number, places in writer.missing():
        if shards is None or number in shards:
            rows = slice(places.start, places.stop)
            writer.write(number, {"feature": FEATURES[rows], "crop": CROPS[rows]})


def test_rows_come_back(tmp_path):
    write(tmp_path)
    store = Store(tmp_path)
    assert (store.ids, store.signature, len(store)) == (IDS, SIGNATURE, 10)
    assert store["feature"][0].dtype == ml_dtypes.bfloat16
    for place in (0, 3, 4, 9):
        np.testing.assert_array_equal(store["feature"][place], FEATURES[place])
        np.testing.assert_array_equal(store["crop"][place], CROPS[place])
    assert isinstance(store["crop"]._parts[0], np.memmap)


def test_an_unfinished_store_goes_on(tmp_path):
    write(tmp_path, {0, 2})
    (tmp_path / "shard_00001.77.partial").mkdir()  # left by a kill
    with pytest.raises(InputError, match="shard_00001 is missing"):
        Store(tmp_path)
    assert [number for number, _ in StoreWriter(tmp_path, IDS, SIGNATURE, 4).missing()] == [1]
    write(tmp_path)
    np.testing.assert_array_equal(Store(tmp_path)["crop"][5], CROPS[5])


@pytest.mark.parametrize(
    ("ids", "signature", "size", "what"),
    [
        (IDS[:-1], SIGNATURE, 4, "ids"),
        (IDS, {**SIGNATURE, "weights": "def"}, 4, "signature"),
        (IDS, SIGNATURE, 5, "shard_size"),
    ],
)
def test_another_store_is_not_written_into(tmp_path, ids, signature, size, what):
    write(tmp_path)
    with pytest.raises(InputError, match=f"another {what}"):
        StoreWriter(tmp_path, ids, signature, size)


def test_damage_is_named(tmp_path):
    with pytest.raises(InputError, match="no store at"):
        Store(tmp_path)
    write(tmp_path)
    torn = tmp_path / "shard_00001" / "crop.npy"
    torn.write_bytes(torn.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"shard_00001/crop.npy is damaged"):
        Store(tmp_path)
    torn.unlink()
    with pytest.raises(InputError, match="6 rows of 'crop', not 10"):
        Store(tmp_path)
    write(tmp_path / "b")
    with pytest.raises(InputError, match="no field 'mask'; there are: crop, feature"):
        Store(tmp_path / "b")["mask"]
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(InputError, match="store.json is damaged"):
        Store(tmp_path)


def test_fingerprints_tell_values_apart():
    assert fingerprint(1, {"a": 2, "b": 3}) == fingerprint(1, {"b": 3, "a": 2})
    assert fingerprint(1, {"a": 2}) != fingerprint(1, {"a": 2.5})


def test_other_cells_are_refused(tmp_path):
    write(tmp_path)
    store = Store(tmp_path)
    store.require_ids(IDS)
    with pytest.raises(InputError, match="holds other cells than this run"):
        store.require_ids(IDS[::-1])
