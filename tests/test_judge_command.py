"""`dorl-jax judge`: vectors from elsewhere, as another program would write them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dorl_jax.cli import main


@pytest.fixture
def files(tmp_path):
    """A good and a poor method, two seeds of the first."""
    random = np.random.default_rng(0)
    labels = np.tile(["a", "b", "c"], 40)
    cells = {
        "id": pa.array([f"cell {i}" for i in range(120)]),
        "laboratory": pa.array(np.repeat(["x", "y", "z"], 40).tolist()),
        "label": pa.array(labels.tolist()),
        "seen": pa.array(["no"] * 120),
    }
    for name, distance in (("good_0", 3.0), ("good_1", 3.0), ("poor", 0.0)):
        vectors = random.normal(size=(120, 4)) + distance * np.eye(4)[np.searchsorted(["a", "b", "c"], labels)]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
        pq.write_table(pa.table({**cells, "vector": column}), tmp_path / f"{name}.parquet")
    return tmp_path


def test_methods_are_ranked_in_one_table(files, capsys):
    arguments = [
        "judge", f"good={files}/good_*.parquet", f"poor={files}/poor.parquet", "--out", str(files / "out"), "--quiet",
        "--set", "classifiers=['logistic_regression_balanced']", "--set", "adaptations=['none']",
        "--set", "resamples=200", "--set", "require=held_out", "--set", "invariance=false", "--set", "few_cells=[]",
    ]  # fmt: skip
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "## held-out laboratory: methods" in text
    assert text.index("| good, none") < text.index("| poor, none")
    summary = json.loads((files / "out" / "summary.json").read_text())
    assert [(one["method"], one["seeds"]) for one in summary["summaries"]] == [("good", 2), ("poor", 1)]
    assert summary["summaries"][0]["leave_one_out"]["accuracy"]["mean"] > 0.9
    assert not (files / "out" / "invariance.json").exists()


def test_laboratories_without_a_common_class_are_said(files, capsys):
    table = pq.read_table(files / "poor.parquet")
    words = [cell["label"] + "'" * (cell["laboratory"] == "z") for cell in table.to_pylist()]
    pq.write_table(table.set_column(2, "label", pa.array(words)), files / "own_words.parquet")
    arguments = ["judge", f"own={files}/own_words.parquet", "--out", str(files / "out"), "--quiet"]
    for setting in ("classifiers=['logistic_regression']", "adaptations=['none']", "invariance=false", "few_cells=[]"):
        arguments += ["--set", setting]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "note: no class in common" in printed
    assert "x (a, b, c) and z (a', b', c'), y (a, b, c) and z (a', b', c'); give" in printed
    lines = ['classes = ["a", "b", "c"]', "[labels]", *(f'"{word}\'" = "{word}"' for word in "abc")]
    (files / "words.toml").write_text("\n".join(lines))
    arguments[3] = str(files / "again")
    assert main([*arguments, "--taxonomy", str(files / "words.toml")]) == 0
    assert "no class in common" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.parquet"], "expected NAME=FILE"),
        (["a={files}/poor.parquet", "a={files}/p*.parquet"], "poor.parquet twice, which would pass for two seeds"),
        (["a={files}/poor.parquet", "--set", "foldz=3"], "unknown key 'foldz' (did you mean 'folds'?)"),
        (["a={files}/poor.parquet", "--set", "name=b"], "the methods are given as NAME=FILE"),
        (["a={files}/poor.parquet", "--set", "folds"], "expected KEY=VALUE"),
        (["a={files}/poor.parquet", "--set", "few_cells=[1]"], "a mean and sd take at least 2 cells"),
    ],
)
def test_bad_input_is_one_line(files, capsys, arguments, message):
    given = [one.format(files=files) for one in arguments]
    assert main(["judge", *given, "--out", str(files / "out"), "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_nothing_of_another_command_stays_beside_the_tables(files):
    def judged(method, *settings):
        fixed = ("classifiers=['logistic_regression_balanced']", "adaptations=['none']", "folds=2", *settings)
        more = [text for setting in fixed for text in ("--set", setting)]
        assert main(["judge", method, "--out", str(files / "out"), "--quiet", *more]) == 0
        return {path.name for path in (files / "out").iterdir()}

    of_cells = {"few_cells.csv", "invariance.csv", "invariance.json"}
    assert judged(f"good={files}/good_0.parquet", "few_cells=[5]") > of_cells
    # a name that a pattern would not find
    (files / "poor.parquet").rename(files / "poor[1].parquet")
    assert not judged(f"poor={files}/poor[1].parquet", "few_cells=[]", "invariance=false") & of_cells
