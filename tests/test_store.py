"""The store: what is written is read, what is missing or damaged is named."""

import errno
import os
import pickle
import resource

import ml_dtypes
import numpy as np
import pytest
from limits import limited

from dorl_jax.errors import InputError
from dorl_jax.locks import locked
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
    assert not store["crop"][0].flags.owndata  # mapped, not read


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
        (IDS, {**SIGNATURE, "weights": "def"}, 4, r"weights \(abc, now def\)"),
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
    with pytest.raises(InputError, match=r"shard_00001/crop.npy is damaged"):
        Store(tmp_path)
    write(tmp_path / "b")
    with pytest.raises(InputError, match="no field 'mask', only crop, feature: if an older version"):
        Store(tmp_path / "b")["mask"]
    header = tmp_path / "b" / "shard_00001" / "crop.npy"
    header.write_bytes(header.read_bytes().replace(b"'shape': (4, 4)", b"'shape': (4, 4("))
    with pytest.raises(InputError, match=r"shard_00001/crop.npy is damaged"):
        Store(tmp_path / "b")
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(InputError, match="store.json is damaged"):
        Store(tmp_path)


def test_what_cannot_be_written_is_named(tmp_path):
    writer = StoreWriter(tmp_path, IDS, SIGNATURE, shard_size=4)
    much = np.zeros((4, 1 << 20), np.uint8)
    said = r"feature\.npy could not be written, as where the disk"
    with limited(resource.RLIMIT_FSIZE, 1 << 16), pytest.raises(OSError, match=said):
        writer.write(0, {"feature": much})
    writer.write(0, {"feature": much})  # once there is room
    assert [number for number, _ in writer.missing()] == [1, 2]


def files_at_once(count):
    """At most, beside those that are open already."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    return limited(resource.RLIMIT_NOFILE, free + count)


def test_a_store_of_more_files_than_may_be_open(tmp_path, monkeypatch):
    count = 400
    writer = StoreWriter(tmp_path, [str(i) for i in range(count)], SIGNATURE, 1)
    values = np.random.RandomState(2).randint(0, 256, (count, 3)).astype(np.uint8)
    for number, _ in writer.missing():
        writer.write(number, {"value": values[number : number + 1], "flag": values[number : number + 1, 0] > 99})
    with files_at_once(20):
        store = Store(tmp_path)
        rows = [store["value"][place] for place in range(count)]  # all in use at the same time
        flags = [store["flag"][place] for place in range(count)]
    np.testing.assert_array_equal(rows, values)
    np.testing.assert_array_equal(flags, values[:, 0] > 99)
    monkeypatch.setattr("dorl_jax.store._MAPPED", 3)
    store = Store(tmp_path)
    for place in np.random.RandomState(3).randint(0, count, 1000).tolist():
        np.testing.assert_array_equal(store["value"][place], values[place])
    assert store["value"]._mapped.cache_info().currsize == 3


def test_too_many_open_files_are_no_damage(tmp_path):
    write(tmp_path)
    store, writer = Store(tmp_path), StoreWriter(tmp_path, IDS, SIGNATURE, 4)
    with files_at_once(0):
        for read in (lambda: Store(tmp_path), lambda: store["crop"][0], store.verify, writer.missing):
            with pytest.raises(InputError, match="Too many open files") as refused:
                read()
            assert "damaged" not in str(refused.value)
    assert writer.missing() == []  # nothing was removed


def test_a_file_that_goes_away_is_named(tmp_path):
    write(tmp_path)
    store = Store(tmp_path)
    gone, cut = tmp_path / "shard_00000" / "crop.npy", tmp_path / "shard_00001" / "crop.npy"
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"shard_00000/crop.npy cannot be read any more: .*No such file"):
        store["crop"][0]
    with pytest.raises(InputError, match=r"shard_00001/crop.npy cannot be read any more"):
        store["crop"][4]


def test_a_worker_gets_names_not_contents(tmp_path):
    write(tmp_path)
    rows = Store(tmp_path)["feature"]
    rows[0]
    sent = pickle.loads(pickle.dumps(rows))  # noqa: S301
    np.testing.assert_array_equal([sent[place] for place in range(10)], FEATURES)
    assert b"feature.bfloat16.npy" in pickle.dumps(rows)


def test_a_damaged_shard_alone_is_done_again(tmp_path, caplog):
    write(tmp_path)
    torn = tmp_path / "shard_00001" / "crop.npy"
    good = torn.read_bytes()
    torn.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # the right length, one bit wrong
    Store(tmp_path)  # which only a checksum tells
    with pytest.raises(InputError, match=r"shard_00001 \(crop.npy has another checksum\)"):
        Store(tmp_path).verify()
    others = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard_0000[02]/*")}
    assert [number for number, _ in StoreWriter(tmp_path, IDS, SIGNATURE, 4).missing()] == [1]
    assert "shard_00001 is damaged (crop.npy has another checksum)" in caplog.text
    write(tmp_path)
    Store(tmp_path).verify()
    assert torn.read_bytes() == good
    assert {path: path.stat().st_mtime_ns for path in others} == others
    (tmp_path / "shard_00002" / "shard.json").write_text("{")
    assert [number for number, _ in StoreWriter(tmp_path, IDS, SIGNATURE, 4).missing()] == [2]


def test_processes_share_the_shards_whatever_their_number(tmp_path):
    first, second = (StoreWriter(tmp_path, IDS, SIGNATURE, 2) for _ in range(2))
    shares = [first.missing(0, 2), second.missing(1, 2)]
    assert [[number for number, _ in share] for share in shares] == [[0, 2, 4], [1, 3]]
    first.write(0, {"crop": CROPS[0:2]})
    first.write(2, {"crop": CROPS[4:6]})
    second.write(1, {"crop": CROPS[2:4]})
    assert not first.complete  # the second died here; three go on
    shares = [first.missing(index, 3) for index in range(3)]
    assert [[number for number, _ in share] for share in shares] == [[3], [4], []]
    for share in shares:
        for number, places in share:
            second.write(number, {"crop": CROPS[places.start : places.stop]})
    assert first.complete
    np.testing.assert_array_equal([Store(tmp_path)["crop"][i] for i in range(10)], CROPS)


def test_the_same_shard_from_two_processes_is_not_torn(tmp_path):
    first, second = (StoreWriter(tmp_path, IDS, SIGNATURE, 10) for _ in range(2))
    assert first.missing() == second.missing()
    first.write(0, {"crop": CROPS})
    second.write(0, {"crop": CROPS})
    Store(tmp_path).verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ids.parquet",
        "index.lock",
        "shard_00000",
        "store.json",
    ]


def test_failures_and_provenance(tmp_path):
    writer = StoreWriter(tmp_path, IDS, SIGNATURE, 4)
    for number, places in writer.missing():
        failed = {1: "cut short"} if number == 2 else {}
        writer.write(number, {"crop": CROPS[places.start : places.stop]}, failed)
    assert Store(tmp_path, {"weights": "abc"}).failed == {9: "cut short"}
    with pytest.raises(InputError, match="weights = 'abc', not 'def'"):
        Store(tmp_path, {"weights": "def"})


def test_a_lock_is_held_by_one_or_shared(tmp_path):
    path, refused = tmp_path / "lock", "another process is writing"
    with locked(path, shared=True), locked(path, shared=True), pytest.raises(InputError, match=refused), locked(path):
        pass
    with locked(path), pytest.raises(InputError, match=refused), locked(path, shared=True):
        pass
    with locked(path):
        pass


def test_fingerprints_tell_values_apart():
    assert fingerprint(1, {"a": 2, "b": 3}) == fingerprint(1, {"b": 3, "a": 2})
    assert fingerprint(1, {"a": 2}) != fingerprint(1, {"a": 2.5})


def test_other_cells_are_refused(tmp_path):
    write(tmp_path)
    store = Store(tmp_path)
    store.require_ids(IDS)
    with pytest.raises(InputError, match="holds other cells than this run"):
        store.require_ids(IDS[::-1])


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def flock(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path / "some.lock"):
        assert "its file system has no locks" in caplog.text
    monkeypatch.setattr("fcntl.flock", lambda file, kind: os.close(-1))
    with pytest.raises(OSError, match="Bad file descriptor"), locked(tmp_path / "some.lock"):
        pass
