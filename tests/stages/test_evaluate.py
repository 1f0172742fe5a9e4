import csv
import json
import logging
import warnings
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dorl_jax.errors import InputError
from dorl_jax.evaluation import protocol
from dorl_jax.evaluation.adaptation import standardise_by_laboratory
from dorl_jax.evaluation.latents import Latents, read_latents, take_rows, write_latents
from dorl_jax.evaluation.results import read_evaluation
from dorl_jax.stages.evaluate import EvaluateSettings, evaluate

FILES = {
    "summary.json", "confusion.json", "rows.csv", "means.csv", "summaries.csv", "laboratories.csv", "comparisons.csv",
    "table.md", "table.tex", "predictions.parquet", "fits.jsonl", "invariance.json", "invariance.csv", "few_cells.csv",
    "heat_maps.png",
}  # fmt: skip
SETTINGS = EvaluateSettings(
    classifiers=("svm_linear", "svm_poly", "logistic_regression"), adaptations=("none",), resamples=100, few_cells=(5,)
)


def blobs(seed=0):
    random = np.random.default_rng(seed)
    labels = random.choice(["basophil", "monocyte", "neutrophil"], 90)
    vectors = random.normal(size=(90, 5)) + np.searchsorted(["basophil", "monocyte", "neutrophil"], labels)[:, None]
    return Latents(
        ids=np.array([f"cell {i}" for i in range(90)]),
        laboratories=np.repeat(["north", "south"], 45),
        labels=labels,
        vectors=vectors.astype(np.float32),
    )


@pytest.fixture
def latents(tmp_path):
    write_latents(blobs(), tmp_path / "latents.parquet")
    return tmp_path / "latents.parquet"


class Killed(BaseException):
    pass


@pytest.fixture
def count_fits(monkeypatch):
    """Counts fits; `count_fits.stop_after` of them the process is killed."""

    class Count:
        fits = 0
        stop_after = None

    make = protocol._fit

    def counted(*args):
        if Count.fits == Count.stop_after:
            raise Killed
        Count.fits += 1
        return make(*args)

    monkeypatch.setattr(protocol, "_fit", counted)
    return Count


def test_writes_what_it_found(latents, tmp_path):
    found = evaluate(latents, tmp_path / "out", SETTINGS, progress=False)
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == FILES
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(found.to_summary()))
    assert read_evaluation(out) == found
    with (out / "means.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["accuracy_mean"]) for line in lines] == [m.accuracy.mean for m in found.means]
    assert [line["target"] for line in lines] == [m.target for m in found.means]
    # Every cell is tested once in its own laboratory and in every fold of the other.
    confusions = json.loads((out / "confusion.json").read_text())["confusions"]
    assert sum(np.sum(c["counts"]) for c in confusions) == 3 * (90 + 5 * 90)


@pytest.mark.parametrize("kills", [(0,), (1,), (13,), (4, 9, 29)])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_to_the_same_bytes(latents, tmp_path, count_fits, kills, torn):
    evaluate(latents, tmp_path / "whole", SETTINGS, progress=False)
    assert count_fits.fits == 30
    count_fits.fits = 0
    out = tmp_path / "out"
    lost = 0
    for kill in kills:
        count_fits.stop_after = kill + lost
        with pytest.raises(Killed):
            evaluate(latents, out, SETTINGS, progress=False)
        assert not (out / "summary.json").exists()
        journal = out / "fits.jsonl"
        if torn and kill:
            journal.write_bytes(journal.read_bytes()[:-20])
            lost += 1
    count_fits.stop_after = None
    evaluate(latents, out, SETTINGS, progress=False)
    assert count_fits.fits == 30 + lost
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_finished_run_fits_nothing_again(latents, tmp_path, count_fits):
    evaluate(latents, tmp_path, SETTINGS, progress=False)
    before = (tmp_path / "summary.json").read_bytes()
    evaluate(latents, tmp_path, SETTINGS, progress=False)
    assert count_fits.fits == 30
    assert (tmp_path / "summary.json").read_bytes() == before
    # One classifier more: only its own fits are new.
    more = replace(SETTINGS, classifiers=(*SETTINGS.classifiers, "mlp"))
    evaluate(latents, tmp_path, more, progress=False)
    assert count_fits.fits == 40


@pytest.mark.parametrize("change", ["seed", "folds", "vectors", "labels"])
def test_fits_of_other_input_are_not_used(latents, tmp_path, count_fits, change):
    evaluate(latents, tmp_path, SETTINGS, progress=False)
    settings = SETTINGS
    cells = blobs()
    if change == "seed":
        settings = replace(SETTINGS, seed=1)
    elif change == "folds":
        settings = replace(SETTINGS, folds=4)
    elif change == "vectors":
        cells.vectors[3, 2] = np.nextafter(cells.vectors[3, 2], np.float32(np.inf))
    else:
        cells.labels[[0, 1]] = ["monocyte", "basophil"]
    write_latents(cells, latents)
    evaluate(latents, tmp_path, settings, progress=False)
    assert count_fits.fits == 30 + (24 if change == "folds" else 30)


def test_a_spoilt_line_is_said_and_done_again(latents, tmp_path, count_fits, caplog):
    evaluate(latents, tmp_path, SETTINGS, progress=False)
    journal = tmp_path / "fits.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[4] = b'{"mark": "x", "fit": 3}\n'
    journal.write_bytes(b"".join(lines))
    with caplog.at_level(logging.WARNING):
        evaluate(latents, tmp_path, SETTINGS, progress=False)
    assert "line 5: not a finished fit" in caplog.text
    assert count_fits.fits == 31


def test_progress_shows_rate_and_time_left(latents, tmp_path, capsys):
    evaluate(latents, tmp_path, replace(SETTINGS, classifiers=("svm_linear",)))
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "fit/s" in shown


def test_bad_input_leaves_no_summary(tmp_path):
    cells = blobs()
    write_latents(Latents(cells.ids, np.full(90, "north"), cells.labels, cells.vectors), tmp_path / "latents.parquet")
    with pytest.raises(InputError, match="one laboratory, 'north'"):
        evaluate(tmp_path / "latents.parquet", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_single_laboratory_is_tested_within_itself(latents, tmp_path):
    """By the very folds, and so with the very figures, that it has beside another."""
    both = evaluate(latents, tmp_path / "both", SETTINGS, progress=False)
    alone = replace(SETTINGS, leave_one_out=False, few_cells=(5,))
    cells = blobs()
    write_latents(take_rows(cells, cells.laboratories == "north"), tmp_path / "north.parquet")
    found = evaluate(tmp_path / "north.parquet", tmp_path / "one", alone, progress=False)
    assert found.rows == [row for row in both.rows if row.source == row.target == "north"]
    assert found.means == [mean for mean in both.means if mean.source == mean.target == "north"]
    assert {one.classifier for one in found.summaries} == set(SETTINGS.classifiers)
    scores = {one.classifier: one.in_domain.accuracy.mean for one in found.summaries}
    assert scores == {mean.classifier: mean.accuracy.mean for mean in found.means}
    assert all(one.pairs is None and one.leave_one_out is None for one in found.summaries)
    # Nothing that takes two laboratories is measured, and the tables say what there is.
    assert {path.name for path in (tmp_path / "one").iterdir()} == FILES - {
        "invariance.json", "invariance.csv", "few_cells.csv",
    }  # fmt: skip
    table = (tmp_path / "one" / "table.md").read_text()
    assert f" {100 * scores[found.headline]:.1f} [" in table
    assert "each laboratory" not in table
    assert read_evaluation(tmp_path / "one") == found
    with pytest.raises(InputError, match="leave_one_out = false, without parity, tests within the one"):
        evaluate(tmp_path / "north.parquet", tmp_path / "parity", replace(alone, parity=True), progress=False)


def test_methods_of_a_single_laboratory_are_ranked_within_it(tmp_path):
    cells = blobs()
    cells = take_rows(cells, cells.laboratories == "north")
    noise = np.random.default_rng(3).normal(size=cells.vectors.shape).astype(np.float32)
    write_latents(replace(cells, vectors=noise), tmp_path / "noise.parquet")
    write_latents(cells, tmp_path / "cells.parquet")
    settings = replace(SETTINGS, leave_one_out=False, name="noise", beside=(f"cells={tmp_path / 'cells.parquet'}",))
    found = evaluate(tmp_path / "noise.parquet", tmp_path / "out", settings, progress=False)
    assert [one.method for one in found.ranking()] == ["cells", "noise"]


def test_no_warning_escapes(latents, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(latents, tmp_path, EvaluateSettings(resamples=100), progress=False)


def test_own_units_are_those_of_scaled_vectors(latents, tmp_path):
    plain = evaluate(latents, tmp_path / "a", SETTINGS, progress=False)
    scaled = evaluate(latents, tmp_path / "b", replace(SETTINGS, adaptations=("own",)), progress=False)
    again = tmp_path / "scaled.parquet"
    write_latents(standardise_by_laboratory(read_latents(latents)), again)
    expected = evaluate(again, tmp_path / "c", SETTINGS, progress=False)
    assert [row.recall for row in scaled.rows] == [row.recall for row in expected.rows]
    assert [row.recall for row in scaled.rows] != [row.recall for row in plain.rows]
    assert {row.adaptation for row in scaled.rows} == {"own"}


def test_few_cells_are_tested_on_those_that_the_protocol_tests(tmp_path):
    """Twelve of a laboratory's 45 cells were not seen: accuracies are twelfths."""
    seen = np.where(np.arange(90) % 45 < 33, "unlabelled", "no")
    write_latents(replace(blobs(), seen=seen), tmp_path / "latents.parquet")
    settings = replace(SETTINGS, tested="unseen", invariance=False)
    evaluate(tmp_path / "latents.parquet", tmp_path / "out", settings, progress=False)
    with (tmp_path / "out" / "few_cells.csv").open() as file:
        found = [float(line["accuracy"]) for line in csv.DictReader(file) if line["cells"] == "0"]
    assert len(found) == 2
    np.testing.assert_allclose(12 * np.array(found), np.round(12 * np.array(found)), atol=1e-9)


def test_every_prediction_is_kept(latents, tmp_path):
    """The rows of `summary.json` are counted again from `predictions.parquet`."""
    settings = replace(SETTINGS, adaptations=("none", "own"))
    found = evaluate(latents, tmp_path, settings, progress=False)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    labels = dict(zip(blobs().ids.tolist(), blobs().labels.tolist(), strict=True))
    right, cells = {}, {}
    for line in table:
        assert line["label"] == labels[line["id"]]
        key = tuple(
            line[name] for name in ("method", "seed", "adaptation", "source", "laboratory", "classifier", "fold")
        )
        cells[key] = cells.get(key, 0) + 1
        right[key] = right.get(key, 0) + (line["label"] == line["predicted"])
    assert len(cells) == len(found.rows)
    for row in found.rows:
        key = (row.method, row.seed, row.adaptation, row.source, row.target, row.classifier, row.fold)
        assert cells[key] == row.cells
        assert right[key] / cells[key] == pytest.approx(row.accuracy)


def test_methods_beside_the_run_are_ranked_with_it(latents, tmp_path):
    cells = blobs()
    noise = np.random.default_rng(1)
    for seed in range(2):
        poor = replace(cells, vectors=noise.normal(size=(90, 7)).astype(np.float32))
        write_latents(poor, tmp_path / f"noise_{seed}.parquet")
    shuffled = noise.permutation(90)
    clear = Latents(*(getattr(cells, name)[shuffled] for name in ("ids", "laboratories", "labels", "vectors")))
    write_latents(replace(clear, vectors=clear.vectors * 2), tmp_path / "double.parquet")
    settings = replace(
        SETTINGS, beside=(f"noise={tmp_path}/noise_*.parquet", f"double = {tmp_path}/double.parquet"), name="ours"
    )
    found = evaluate(latents, tmp_path / "out", settings, progress=False)
    assert [one.method for one in found.ranking()] == ["ours", "double", "noise"]
    ours, double, poor = found.ranking()
    assert ours.pairs == double.pairs
    assert (ours.seeds, poor.seeds) == (1, 2)
    apart = {(one.first[0], one.second[0], one.kind): one for one in found.comparisons}
    assert apart["ours", "double", "pair"].accuracy.p == 1.0
    assert apart["ours", "noise", "pair"].accuracy.p < 0.05
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.index("| ours, none") < text.index("| noise, none")


def test_parts_of_the_vector_are_methods(latents, tmp_path):
    cells = replace(blobs(), parts={"a": 2, "b": 1, "c": 2})
    write_latents(cells, latents)
    columns = {"c": [3, 4], "b + a": [0, 1, 2]}
    for name, places in columns.items():
        write_latents(replace(cells, vectors=cells.vectors[:, places], parts=None), tmp_path / f"{name}.parquet")
    settings = replace(SETTINGS, name="ours", classifiers=("logistic_regression",))
    parts = evaluate(latents, tmp_path / "parts", replace(settings, parts=tuple(columns)), progress=False)
    files = tuple(f"ours: {name}={tmp_path}/{name}.parquet" for name in columns)
    expected = evaluate(latents, tmp_path / "files", replace(settings, beside=files), progress=False)
    assert {one.method for one in parts.rows} == {"ours", "ours: c", "ours: b + a"}
    assert parts.rows == expected.rows
    for wrong in (("d",), ("a+d",)):
        with pytest.raises(InputError, match="no part 'd'; the parts are: a, b, c"):
            evaluate(latents, tmp_path / "wrong", replace(settings, parts=wrong), progress=False)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("features.parquet", r"'features.parquet': expected NAME=FILE"),
        ("frozen=nowhere/*.parquet", r"'frozen=nowhere/\*.parquet': no such file"),
    ],
)
def test_bad_methods_are_named(latents, tmp_path, beside, message):
    with pytest.raises(InputError, match=message):
        evaluate(latents, tmp_path, replace(SETTINGS, beside=(beside,)), progress=False)


def test_groups_given_beside_the_file_are_kept_together(latents, tmp_path):
    groups = {name: f"patient {int(name.split()[1]) // 5}" for name in blobs().ids.tolist()}
    evaluate(latents, tmp_path, SETTINGS, progress=False, groups=groups)
    folds = {}
    for line in pq.read_table(tmp_path / "predictions.parquet").to_pylist():
        if line["source"] == line["laboratory"]:
            folds.setdefault(groups[line["id"]], set()).add(line["fold"])
    assert len(folds) == 18
    assert all(len(found) == 1 for found in folds.values())
