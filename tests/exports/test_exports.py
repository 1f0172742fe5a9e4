"""What is exported is read back by the tools it is for."""

import csv
import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dorl_jax.cli import main
from dorl_jax.errors import InputError
from dorl_jax.exports import projector
from dorl_jax.exports.names import distinct_names
from dorl_jax.vectors import from_table, read_vectors


def export(source: Path, to: Path, *more: str) -> None:
    assert main(["export", str(source), "--to", str(to), *more]) == 0


def true_values(path: Path) -> np.ndarray:
    """By another way than `read_vectors`."""
    return np.array([row for row in pq.read_table(path)["vector"].to_pylist() if row is not None], np.float32)


def test_vectors_are_read_without_what_failed(vectors_file) -> None:
    path = vectors_file()
    vectors = read_vectors(path)
    assert vectors.ids.tolist() == ["cell-0", "cell-1", "cell-2", "cell-4"]
    assert vectors.left_out == {"cell-3": "broken"}
    assert vectors.provenance == {"weights": "abc", "zoom": 1.25}
    np.testing.assert_array_equal(vectors.values, true_values(path))
    some = vectors.take(np.array([2, 0]))
    assert some.ids.tolist() == ["cell-2", "cell-0"]
    np.testing.assert_array_equal(some.values, vectors.values[[2, 0]])


def test_bad_vectors_are_named(vectors_file, tmp_path: Path, capsys) -> None:
    def refused(table: pa.Table, message: str) -> None:
        pq.write_table(table, tmp_path / "bad.parquet")
        assert main(["export", str(tmp_path / "bad.parquet"), "--to", str(tmp_path / "out.npz")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out.npz").exists()

    table = pq.read_table(vectors_file())
    refused(table.drop_columns(["vector"]), "lacks the column vector")
    refused(table.set_column(5, "vector", pa.array([1.0] * 5)), "must hold lists of numbers")
    refused(table.set_column(5, "vector", pa.array([[1.0], [2.0, 3.0]] * 2 + [[1.0]])), "of one length, not of 1, 2")
    refused(table.set_column(0, "id", pa.array(["a", "b", "c", "d", "a"])), "the id 'a' stands on more than one row")
    refused(table.append_column("size", pa.array([1] * 5)), "has more than one column 'size'")
    refused(table.set_column(5, "vector", pa.array([[]] * 5, pa.list_(pa.float32()))), "holds empty lists")
    not_finite = pa.array([None, [0.0], [np.nan], [1.0], [2.0]], pa.list_(pa.float32(), 1))
    refused(table.set_column(5, "vector", not_finite), "hold NaN or infinity: 'cell-2'")
    refused(table.set_column(5, "vector", pa.nulls(5, pa.list_(pa.float32(), 4))), "not one of 5 cells")
    refused(table.replace_schema_metadata({b"dorl_jax": b"{"}), "not valid JSON")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    assert main(["export", str(tmp_path / "bad.parquet"), "--to", "x.npz"]) == 2
    assert main(["export", str(tmp_path / "none.parquet"), "--to", "x.npz"]) == 2
    assert main(["export", str(vectors_file()), "--to", "x.xlsx"]) == 2
    assert main(["export", str(tmp_path), "--to", "x.npz"]) == 2
    capsys.readouterr()


def test_empty_lists_of_a_fixed_size_are_named() -> None:
    """Parquet has none, Arrow has."""
    table = pa.table({"id": ["a"], "vector": pa.array([[]], pa.list_(pa.float32(), 0))})
    with pytest.raises(InputError, match="the table: column 'vector' holds empty lists"):
        from_table(table, "the table")


def test_numpy(vectors_file, tmp_path: Path) -> None:
    path = vectors_file()
    export(path, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["vector"], true_values(path))
        assert arrays["id"].tolist() == ["cell-0", "cell-1", "cell-2", "cell-4"]
        assert arrays["laboratory"].tolist() == ["süd", "north", "süd", "süd"]
        assert arrays["label"].tolist() == ["monocyte", "", "monocyte", "monocyte"]
        np.testing.assert_array_equal(arrays["size"], [0, 1, np.nan, 4])
        assert arrays["empty"].tolist() == [True, False, False, False]


def test_numpy_columns_of_any_name(vectors_file, tmp_path: Path, capsys) -> None:
    path = vectors_file(file=list("abcde"), allow_pickle=[1, 2, 3, 4, 5], **{"": list("vwxyz")})
    export(path, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["file"].tolist() == ["a", "b", "c", "e"]
        assert arrays["allow_pickle"].tolist() == [1, 2, 3, 5]
        assert arrays[""].tolist() == ["v", "w", "x", "z"]
        np.testing.assert_array_equal(arrays["vector"], true_values(path))
    path = vectors_file(number=pa.array([2**60 + 1, None, 3, 4, 5]))
    assert main(["export", str(path), "--to", str(tmp_path / "more.npz")]) == 2
    assert "column 'number' lacks some values" in capsys.readouterr().err


def test_nothing_that_was_there_is_lost(vectors_file, tmp_path: Path, capsys) -> None:
    def refused(source: Path, to: Path, message: str) -> None:
        assert main(["export", str(source), "--to", str(to)]) == 2
        assert message in capsys.readouterr().err

    path = vectors_file()
    before = path.read_bytes()
    refused(path, path, "is what is read")
    (tmp_path / "link.parquet").symlink_to(path)
    refused(path, tmp_path / "link.parquet", "is what is read")
    assert path.read_bytes() == before
    (tmp_path / "cells.csv").write_text("mine")
    refused(path, tmp_path / "cells.npy", "cells.csv, where the columns would go, is there already")
    assert (tmp_path / "cells.csv").read_text() == "mine"
    refused(path, tmp_path / "cells.csv", "'.csv' is none of")
    (tmp_path / "notes").write_text("mine")
    refused(path, tmp_path / "notes", "notes is a file, and would be a folder")
    (tmp_path / "old.npz").mkdir()
    refused(path, tmp_path / "old.npz", "is a folder, but its name is that of a file")
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "x.jaxexport"), "--most", "3"]) == 2
    assert "--most is for vectors" in capsys.readouterr().err


def test_a_matrix_and_its_table(vectors_file, tmp_path: Path) -> None:
    path = vectors_file(bytes=[b"\xff"] * 5)
    export(path, tmp_path / "out.npy")
    export(path, tmp_path / "out.npy")  # again, over the old ones
    matrix = np.load(tmp_path / "out.npy")
    assert matrix.flags.c_contiguous
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, true_values(path))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["cell-0", "cell-1", "cell-2", "cell-4"]
    assert [row["label"] for row in rows] == ["monocyte", "", "monocyte", "monocyte"]


def test_anndata(vectors_file, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="needs anndata: pip install 'dorl-jax[anndata]'")
    odd = {"a/b": list("abcde"), "a": [1, 2, 3, 4, 5], "_index": [5, 4, 3, 2, 1], "bytes": [b"\0"] * 5}
    slides = [2**53 + 1, None, 3, 4, 5]  # which fp64 does not tell from 2**53
    odd |= {"slide": pa.array(slides, pa.int64()), "stained": pa.array([2**64 - 1, None, 3, 4, 5], pa.uint64())}
    path = vectors_file(nested=[[1, 2]] * 5, day=[date(2026, 1, day) for day in range(1, 6)], **odd)
    export(path, tmp_path / "out.h5ad")
    cells = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(cells.obsm["X_dorl"], true_values(path))
    assert cells.obs_names.tolist() == ["cell-0", "cell-1", "cell-2", "cell-4"]
    assert cells.obs["laboratory"].tolist() == ["süd", "north", "süd", "süd"]
    assert cells.obs["label"].isna().tolist() == [False, True, False, False]
    assert cells.obs["label"].cat.categories.tolist() == ["monocyte"]
    assert cells.obs["empty"].tolist() == [True, False, False, False]
    assert json.loads(cells.uns["dorl_jax"]) == {"weights": "abc", "zoom": 1.25}
    assert cells.obs["day"].tolist() == ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-05"]
    assert cells.obs["a_b"].tolist() == ["a", "b", "c", "e"]
    assert cells.obs["a"].tolist() == [1, 2, 3, 5]
    assert cells.obs["_index_1"].tolist() == [5, 4, 3, 1]
    for name, first in (("slide", 2**53 + 1), ("stained", 2**64 - 1)):
        assert cells.obs[name].isna().tolist() == [False, True, False, False]
        assert int(cells.obs[name].iloc[0]) == first
    assert not {"nested", "bytes"} & set(cells.obs)


def test_duckdb_measures_distances(vectors_file, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb: pip install 'dorl-jax[duckdb]'")
    path = vectors_file(**{'my "own"': list("abcde")})
    export(path, tmp_path / "out.duckdb")
    export(path, tmp_path / "out.duckdb")  # again, over the old one
    values = true_values(path)
    with duckdb.connect(str(tmp_path / "out.duckdb"), read_only=True) as database:
        found = database.execute(
            "SELECT id, array_distance(vector, (SELECT vector FROM cells WHERE id = 'cell-2')) AS distance, "
            'label, "my ""own""" FROM cells ORDER BY distance'
        ).fetchall()
        assert json.loads(database.execute("SELECT json FROM provenance").fetchone()[0])["weights"] == "abc"
    distances = np.linalg.norm(values - values[2], axis=1)
    order = np.argsort(distances)
    ids = np.array(["cell-0", "cell-1", "cell-2", "cell-4"])
    assert [row[0] for row in found] == ids[order].tolist()
    np.testing.assert_allclose([row[1] for row in found], distances[order], rtol=1e-6, atol=1e-6)
    assert {row[0]: row[3] for row in found} == {"cell-0": "a", "cell-1": "b", "cell-2": "c", "cell-4": "e"}


def test_duckdb_columns_that_differ_in_case(vectors_file, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb: pip install 'dorl-jax[duckdb]'")
    path = vectors_file(
        half=pa.array(np.arange(5, dtype=np.float16)),
        **{"ID": [1, 2, 3, 4, 5], "Label": list("abcde"), "Vector": list("vwxyz"), "": [6, 7, 8, 9, 10]},
    )
    export(path, tmp_path / "out.duckdb")
    with duckdb.connect(str(tmp_path / "out.duckdb"), read_only=True) as database:
        found = database.execute(
            'SELECT id, "ID_1", label, "Label_1", "Vector_1", "column", half FROM cells'
        ).fetchall()
    assert found[0] == ("cell-0", 1, "monocyte", "a", "v", 6, 0.0)
    assert found[3] == ("cell-4", 5, "monocyte", "e", "z", 10, 4.0)


def test_distinct_names() -> None:
    assert distinct_names(["ID", "id", "Label", "label", "label_1", "Vector"], ("vector",)) == [
        "ID_1", "id", "Label", "label_1", "label_1_1", "Vector_1",
    ]  # fmt: skip
    assert distinct_names(["ID", "id", "", "column"], ("vector",), str) == ["ID", "id", "column", "column_1"]


def test_vectors_that_are_all_the_same(vectors_file, tmp_path: Path) -> None:
    """They have no principal components; a single one neither."""
    for path in (vectors_file(1, failed=()), vectors_file(4, failed=())):
        table = pq.read_table(path)
        same = pa.array([table["vector"][0].as_py()] * len(table), pa.list_(pa.float32(), 4))
        pq.write_table(table.set_column(5, "vector", same), path)
        export(path, tmp_path / "viewer.parquet")
        assert pq.read_table(tmp_path / "viewer.parquet").select(["x", "y"]).to_pylist() == [{"x": 0, "y": 0}] * len(
            same
        )


def test_projector(vectors_file, tmp_path: Path, monkeypatch, capsys) -> None:
    path = vectors_file(note=["a\tb", "c\nd", "", "", ""])
    out = tmp_path / "projector"
    export(path, out)
    np.testing.assert_allclose(np.loadtxt(out / "vectors.tsv", delimiter="\t"), true_values(path), rtol=1e-6)
    lines = (out / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    names = lines[0].split("\t")
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines[1:]]
    assert [row["id"] for row in rows] == ["cell-0", "cell-1", "cell-2", "cell-4"]
    assert [row["note"] for row in rows] == ["a b", "c d", "", ""]
    sheet = np.asarray(Image.open(out / "sprite.png"))
    assert sheet.shape == (128, 128, 3)  # two by two of 64
    middles = sheet[32::64, 32::64].reshape(-1, 3).tolist()
    assert middles == [[200, 30, 30], [30, 200, 30], [30, 30, 200], [10, 10, 10]]
    assert sheet[2, 32].tolist() == [255, 255, 255]  # a picture twice as wide as tall
    config = (out / "projector_config.pbtxt").read_text()
    for line in ('tensor_path: "vectors.tsv"', "tensor_shape: 4 tensor_shape: 4", "single_image_dim: 64"):
        assert line in config
    monkeypatch.setattr(projector, "MOST", 3)
    assert main(["export", str(path), "--to", str(tmp_path / "more")]) == 2
    assert "use --most" in capsys.readouterr().err
    export(path, tmp_path / "more", "--most", "3")
    assert len((tmp_path / "more" / "vectors.tsv").read_text().splitlines()) == 3


def test_viewer(vectors_file, tmp_path: Path, capsys) -> None:
    path = vectors_file(x=list("abcde"), view=pa.array(list("fghij"), pa.string_view()))
    (tmp_path / "cell 2.png").unlink()
    export(path, tmp_path / "viewer.parquet")
    assert "1 of 4 pictures are grey" in capsys.readouterr().err
    table = pq.read_table(tmp_path / "viewer.parquet")
    values = true_values(path)
    np.testing.assert_array_equal(table["vector"].to_pylist(), values)
    # the same plane by the singular vectors, which fix it up to signs
    centred = values.astype(np.float64) - values.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], 1)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :2] * sizes[:2]), atol=1e-5)
    pictures = [row["bytes"] for row in table["image"].to_pylist()]
    middles = [Image.open(pa.BufferReader(picture)).getpixel((48, 48)) for picture in pictures]
    assert table["x_1"].to_pylist() == ["a", "b", "c", "e"]
    assert table["view"].to_pylist() == ["f", "g", "h", "j"]
    assert middles == [(200, 30, 30), (30, 200, 30), (200, 200, 200), (10, 10, 10)]
    assert json.loads(table.schema.metadata[b"dorl_jax"])["zoom"] == 1.25


def test_without_pictures(vectors_file, tmp_path: Path) -> None:
    table = pq.read_table(vectors_file()).select(["id", "vector"])
    pq.write_table(table, tmp_path / "bare.parquet")
    export(tmp_path / "bare.parquet", tmp_path / "folder")
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == [
        "metadata.tsv",
        "projector_config.pbtxt",
        "vectors.tsv",
    ]
    assert (tmp_path / "folder" / "metadata.tsv").read_text().splitlines()[:2] == ["id\tplace", "cell-0\t0"]
    export(tmp_path / "bare.parquet", tmp_path / "viewer.parquet")
    assert "image" not in pq.read_table(tmp_path / "viewer.parquet").column_names
