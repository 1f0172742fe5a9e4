"""The nearest cells, against scikit-learn, and where the command puts them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from dorl_jax.cli import main
from dorl_jax.errors import InputError
from dorl_jax.neighbours import nearest_cells, neighbour_sheet
from dorl_jax.vectors import Vectors, from_table, read_vectors

LABORATORIES = np.repeat(["north", "south"], 30)


@pytest.fixture
def vectors() -> Vectors:
    """The south is stained otherwise: all its vectors are shifted."""
    values = np.random.default_rng(0).standard_normal((60, 5)) + np.where(LABORATORIES == "south", 20, 0)[:, None]
    columns = pa.table({"id": [f"c{place}" for place in range(60)], "laboratory": LABORATORIES.tolist()})
    return Vectors(columns, values.astype(np.float32), {}, {})


def test_all_laboratories_as_they_are(vectors: Vectors) -> None:
    found = nearest_cells(vectors, ["c3", "c40"], 6, centre=False)
    search = NearestNeighbors(n_neighbors=7, metric="cosine").fit(vectors.values)
    distances, places = search.kneighbors(vectors.values[[3, 40]])
    np.testing.assert_array_equal(found.places, places[:, 1:])
    np.testing.assert_allclose(found.distances, distances[:, 1:], atol=1e-6)


def test_other_laboratories_by_what_is_special(vectors: Vectors) -> None:
    found = nearest_cells(vectors, ["c3", "c40"], 4, across=True)
    wide = vectors.values.astype(np.float64)
    for laboratory in ("north", "south"):
        wide[laboratory == LABORATORIES] -= wide[laboratory == LABORATORIES].mean(axis=0)
    for row, place in enumerate((3, 40)):
        others = np.flatnonzero(LABORATORIES[place] != LABORATORIES)
        search = NearestNeighbors(n_neighbors=4, metric="cosine").fit(wide[others])
        distances, places = search.kneighbors(wide[[place]])
        np.testing.assert_array_equal(found.places[row], others[places[0]])
        np.testing.assert_allclose(found.distances[row], distances[0], atol=1e-5)


def test_what_cannot_be_found(vectors: Vectors) -> None:
    with pytest.raises(InputError, match="no cell 'd3' among the vectors"):
        nearest_cells(vectors, ["d3"])
    with pytest.raises(InputError, match="only 30 can be compared"):
        nearest_cells(vectors, ["c3"], 31, across=True)
    bare = Vectors(vectors.columns.select(["id"]), vectors.values, {}, {})
    with pytest.raises(InputError, match="no column 'laboratory'"):
        nearest_cells(bare, ["c3"], across=True)
    assert nearest_cells(bare, ["c3"], 2).places.shape == (1, 2)


def test_the_command_draws_a_row_a_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    sources = []
    for place, colour in enumerate(colours):
        sources.append(str(tmp_path / f"{place}.png"))
        Image.new("RGB", (20, 20), colour).save(sources[-1])
    values = [[1.0, 0.0], [0.0, 1.0], [0.9, 0.3], [0.1, 1.0]]
    table = pa.table(
        {
            "id": ["red", "green", "blue", "yellow"],
            "laboratory": ["a", "a", "b", "b"],
            "source": sources,
            "vector": pa.array(values, pa.list_(pa.float32(), 2)),
        }
    )
    pq.write_table(table, tmp_path / "vectors.parquet")
    command = ["neighbours", str(tmp_path / "vectors.parquet")]
    chosen = ["--cell", "red", "--cell", "green", "--count", "2", "--across", "--raw"]
    assert main([*command, *chosen, "--sheet", str(tmp_path / "sheet.png")]) == 0
    printed = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[:6]]
    assert printed == ["red", "blue", "yellow", "green", "yellow", "blue"]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    rows, columns = (36 + 80, 36 + 80 + 188), (12 + 80, 12 + 80 + 168, 12 + 80 + 336)
    shown = [[tuple(sheet[row, column].tolist()) for column in columns] for row in rows]
    assert shown == [[colours[0], colours[2], colours[3]], [colours[1], colours[3], colours[2]]]
    for wrong, message in ((["--random", "-1"], "--random -1"), (["--cell", "red", "--sheet", "s.jpg"], "is a PNG")):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main([*command, "--random", "2", "--count", "1"]) == 0
    assert main(command) == 2
    assert main([*command, "--cell", "red", "--count", "0"]) == 2
    assert main([*command, "--cell", "redd"]) == 2
    assert "did you mean 'red'?" in capsys.readouterr().err
    assert read_vectors(tmp_path / "vectors.parquet").provenance == {}


def test_a_sheet_tells_laboratories_of_nearly_one_name_apart(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (250, 0, 0)).save(tmp_path / "cell.png")

    def sheet(other: str) -> np.ndarray:
        table = pa.table(
            {
                "id": ["one", "two"],
                "laboratory": ["hospital_a", other],
                "label": ["eosinophil", "eosinophil"],
                "source": [str(tmp_path / "cell.png")] * 2,
                "vector": pa.array([[1.0, 0.0], [0.9, 0.3]], pa.list_(pa.float32(), 2)),
            }
        )
        vectors = from_table(table, "two cells")
        return neighbour_sheet(vectors, ["one"], nearest_cells(vectors, ["one"], 1, across=True, centre=False))

    assert (sheet("hospital_b") != sheet("hospital_c")).any()
