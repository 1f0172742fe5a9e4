import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dorl_jax.errors import InputError
from dorl_jax.evaluation.latents import Latents, read_latents, write_latents


@pytest.fixture
def latents():
    return Latents(
        ids=np.array(["a/1.png", "a/2.png", "b/ü.png"]),
        laboratories=np.array(["a", "a", "b"]),
        labels=np.array(["monocyte", "basophil", "monocyte"]),
        vectors=np.array([[1.5, -2.0], [3.25, 1e-30], [0.1, 7.0]], np.float32),
    )


def table(latents, **columns):
    width = latents.vectors.shape[1]
    given = {
        "id": pa.array(latents.ids.tolist()),
        "laboratory": pa.array(latents.laboratories.tolist()),
        "label": pa.array(latents.labels.tolist()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(latents.vectors.ravel()), width),
    }
    return pa.table({name: array for name, array in (given | columns).items() if array is not None})


def test_what_is_written_is_read_back_exactly(latents, tmp_path):
    write_latents(latents, tmp_path / "new folder" / "latents.parquet")
    again = read_latents(tmp_path / "new folder" / "latents.parquet")
    for field in dataclasses.fields(latents):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(latents, field.name))
    assert again.vectors.dtype == np.float32
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["latents.parquet"]


def test_groups_and_what_was_seen_are_kept(latents, tmp_path):
    known = dataclasses.replace(
        latents,
        groups=np.array(["p1", "", "p2"]),
        seen=np.array(["no", "unlabelled", "labelled"]),
        serves="hospital",
    )
    write_latents(known, tmp_path / "latents.parquet")
    again = read_latents(tmp_path / "latents.parquet")
    assert again.groups.tolist() == ["p1", "", "p2"]
    assert again.seen.tolist() == ["no", "unlabelled", "labelled"]
    assert again.serves == "hospital"


def test_parts_are_kept_in_order_and_checked(latents, tmp_path):
    path = tmp_path / "latents.parquet"
    write_latents(dataclasses.replace(latents, parts={"regions": 1, "cls": 1}), path, {"weights": "w"})
    assert list(read_latents(path).parts.items()) == [("regions", 1), ("cls", 1)]
    with pytest.raises(InputError, match="vectors of 2 numbers do not have the parts cls 1, pixels 2"):
        write_latents(dataclasses.replace(latents, parts={"cls": 1, "pixels": 2}), path)
    damaged = table(latents).replace_schema_metadata({b"dorl_jax_parts": b'["cls"]'})
    pq.write_table(damaged, path)
    with pytest.raises(InputError, match=r"latents.parquet: its metadata 'dorl_jax_parts'"):
        read_latents(path)


def test_file_is_plain_parquet_for_other_tools(latents, tmp_path):
    write_latents(latents, tmp_path / "latents.parquet")
    found = pq.read_table(tmp_path / "latents.parquet")
    assert found.schema.types == [pa.string()] * 3 + [pa.list_(pa.float32(), 2)]
    assert found.column("vector").to_pylist() == latents.vectors.tolist()


def test_other_writers_are_read(latents, tmp_path):
    """Several row groups, encoded text, double precision, one column more, a folder like a partition."""
    folder = tmp_path / "laboratory=elsewhere"
    folder.mkdir()
    doubles = pa.FixedSizeListArray.from_arrays(pa.array(latents.vectors.ravel().astype(np.float64)), 2)
    given = table(
        latents,
        label=pa.array(latents.labels.tolist()).dictionary_encode(),
        vector=doubles,
        more=pa.array([1, 2, 3]),
    )
    pq.write_table(given, folder / "latents.parquet", row_group_size=2)
    again = read_latents(folder / "latents.parquet")
    np.testing.assert_array_equal(again.vectors, latents.vectors)
    assert again.labels.tolist() == latents.labels.tolist()
    assert again.laboratories.tolist() == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"seen": pa.array(["no", "yes", "no"])}, r"column 'seen' holds 'yes'; it may hold no, unlabelled, labelled"),
        ({"group": pa.array(["p1", None, ""])}, r"column 'group' has no value for 'a/2.png'"),
        ({"vector": None}, r"lacks the column vector; it has id, laboratory, label"),
        ({"label": pa.array(["x", None, "y"])}, r"column 'label' has no value for 'a/2.png'"),
        ({"laboratory": pa.array(["x", "", "y"])}, r"column 'laboratory' is empty for 'a/2.png'"),
        ({"id": pa.array(["x", "y", "x"])}, r"the id 'x' stands on more than one row"),
        ({"id": pa.array([None, "y", "x"])}, r"column 'id' has no value for row 0"),
        ({"id": pa.array([1, 2, 3])}, r"column 'id' must hold strings, not int64"),
        ({"vector": pa.array([[1.0], [2.0, 3.0], [4.0]])}, r"must hold lists of one length, not of 1, 2"),
        (
            {"vector": pa.array([[1.0], [np.nan], [np.inf]], pa.list_(pa.float32(), 1))},
            r"2 vectors .*'a/2.png', 'b/ü",
        ),
        (
            {"vector": pa.array([[1.0], [None], [3.0]], pa.list_(pa.float32(), 1))},
            r"1 vectors hold NaN.*'a/2.png'",
        ),
    ],
)
def test_bad_columns_are_named(latents, tmp_path, columns, message):
    path = tmp_path / "latents.parquet"
    pq.write_table(table(latents, **columns), path)
    with pytest.raises(InputError, match=message) as caught:
        read_latents(path)
    assert str(path) in str(caught.value)


def test_what_embed_wrote_is_read(latents, tmp_path, caplog):
    """Lists of no fixed size, a cell without a vector, parts in the provenance alone."""
    path = tmp_path / "vectors.parquet"
    told = {"vector": ["size", "cls"], "parts": {"cls": 1, "size": 1}}
    given = table(latents, vector=pa.array([[1.0, 2.0], None, [5.0, 6.0]]))
    pq.write_table(given.replace_schema_metadata({"dorl_jax": json.dumps(told)}), path)
    again = read_latents(path)
    assert again.ids.tolist() == [latents.ids[0], latents.ids[2]]
    assert again.labels.tolist() == [latents.labels[0], latents.labels[2]]
    assert again.vectors.tolist() == [[1, 2], [5, 6]]
    assert list(again.parts.items()) == [("size", 1), ("cls", 1)]
    assert "1 cells have no vector: a/2.png" in caplog.text


def test_bad_files_are_named(latents, tmp_path):
    with pytest.raises(InputError, match=r"no latents at .*missing.*run the stage `embed`"):
        read_latents(tmp_path / "missing")
    (tmp_path / "text").write_text("id,label\n")
    with pytest.raises(InputError, match=r"text is not a readable Parquet file"):
        read_latents(tmp_path / "text")
    pq.write_table(table(latents).slice(0, 0), tmp_path / "empty")
    with pytest.raises(InputError, match=r"empty has no rows"):
        read_latents(tmp_path / "empty")


def test_nothing_bad_is_written(latents, tmp_path):
    vectors = latents.vectors.copy()
    vectors[1, 0] = np.nan
    with pytest.raises(InputError, match=r"1 vectors hold NaN or infinity: 'a/2.png'"):
        write_latents(dataclasses.replace(latents, vectors=vectors), tmp_path / "latents.parquet")
    assert not list(tmp_path.iterdir())
