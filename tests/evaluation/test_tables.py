import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from dorl_jax.evaluation.bootstrap import Difference
from dorl_jax.evaluation.heat_maps import panels
from dorl_jax.evaluation.invariance import measure_invariance
from dorl_jax.evaluation.invariance_columns import InvarianceColumns
from dorl_jax.evaluation.methods import Method
from dorl_jax.evaluation.protocol import judge
from dorl_jax.evaluation.settings import ProtocolSettings
from dorl_jax.evaluation.tables import short_names, write_csv, write_tables


@pytest.fixture(scope="module")
def judged():
    """Two methods, the first with two seeds, one laboratory held out."""
    from dorl_jax.evaluation.latents import Latents

    random = np.random.default_rng(0)
    labels = np.tile(["a", "b"], 45)
    laboratories = np.repeat(["north", "south", "west"], 30)
    base = Latents(
        np.array([f"cell {i}" for i in range(90)]),
        laboratories,
        labels,
        (2.0 * (labels == "b")[:, None] + random.normal(size=(90, 3))).astype(np.float32),
        seen=np.where(laboratories == "west", "no", "unlabelled"),
    )
    again = replace(base, vectors=base.vectors + random.normal(size=(90, 3)).astype(np.float32))
    settings = ProtocolSettings(
        classifiers=("logistic_regression", "svm_linear"), adaptations=("none",), resamples=100, headline="svm_linear"
    )
    return judge([Method("a_&_b", (base, again)), Method("noise", (again,))], settings, progress=False)


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_markdown_says_the_figures(judged):
    found = judged.evaluation
    text = write_tables(found, "markdown")
    first = text.index("## held-out laboratory: methods")
    assert first < text.index("## transductive: methods")
    table = text[first:].split("\n\n")[2].splitlines()
    (summary,) = [s for s in found.ranking() if s.setting == "held_out" and s.method == "a_&_b"]
    line = next(cells_of(one) for one in table if one.startswith("| a_&_b, none"))
    header = cells_of(table[0])
    assert len({len(one) for one in table}) == 1
    pairs = summary.pairs.accuracy
    assert line[header.index("pairs accuracy")] == (
        f"{100 * pairs.mean:.1f} ± {100 * pairs.sd_seeds:.1f} [{100 * pairs.low:.1f}, {100 * pairs.high:.1f}]"
    )
    alone = summary.leave_one_out.macro_f1_frequent
    assert line[header.index("others→one macro-F1, 10 cells")] == f"{100 * alone.mean:.1f} ± {100 * alone.sd_seeds:.1f}"
    assert line[header.index("pairs above floor")] == f"{summary.pairs.above_floor} of 2"
    assert "majority floor | " in table[-2] or "majority floor" in table[-2]
    assert cells_of(table[-2])[header.index("pairs accuracy")] == "50.0"
    # Of the laboratory held out alone, its own folds included.
    pairs_table = text[text.index("## held-out laboratory: accuracy") :].split("\n\n")[2].splitlines()
    assert cells_of(pairs_table[0])[1:] == ["N→W", "S→W", "W→W", "→W"]
    means = {(m.classifier, m.source, m.target): m for m in found.means if m.method == "a_&_b"}
    line = next(cells_of(one) for one in pairs_table if one.startswith("| a_&_b, none, logistic_regression"))
    mean = means["logistic_regression", "north", "west"].accuracy
    assert line[1] == f"{100 * mean.mean:.1f} ± {100 * mean.sd_seeds:.1f}"


def test_floors_of_methods_tested_on_different_cells_are_a_range(judged):
    """Two methods of one setting; what is said of the second is moved."""
    found = judged.evaluation
    means = [replace(m, majority_floor=0.75) if m.method == "noise" else m for m in found.means]
    summaries = [
        replace(s, pairs=replace(s.pairs, majority_floor=0.75)) if (s.method, s.setting) == ("noise", "held_out") else s
        for s in found.summaries
    ]
    text = write_tables(replace(found, means=means, summaries=summaries), "markdown")
    table = text[text.index("## held-out laboratory: methods") :].split("\n\n")[2].splitlines()
    floors = dict(zip(cells_of(table[0]), cells_of(table[-2]), strict=True))
    assert floors["pairs accuracy"] == "50.0–75.0"
    assert floors["others→one accuracy"] == "50.0"
    table = text[text.index("## held-out laboratory: accuracy") :].split("\n\n")[2].splitlines()
    assert cells_of(table[-2]) == ["majority floor", *["50.0–75.0"] * 4]


def test_invariance_stands_beside_accuracy(judged):
    measured, _ = measure_invariance(judged.cells, [one.run for one in judged.judged], ("none",))
    columns = InvarianceColumns(measured)
    text = write_tables(judged.evaluation, "markdown", columns)
    table = text[text.index("## held-out laboratory: methods") :].split("\n\n")[2].splitlines()
    line = next(cells_of(one) for one in table if one.startswith("| a_&_b, none"))
    own = [one.probe for one in measured if one.method == "a_&_b"]
    assert len(own) == 2
    assert line[cells_of(table[0]).index("probe")] == f"{np.mean(own):.2f}"
    assert "Chance is 0.33 for the probes" in text


def test_what_could_not_be_measured_is_said(judged):
    measured, _ = measure_invariance(judged.cells, [one.run for one in judged.judged], ("none",))
    without = [replace(one, robustness=None) for one in measured]
    assert "robustness index" not in InvarianceColumns(measured).remark
    remark = InvarianceColumns(without, "And that.").remark
    assert "The robustness index was not measured: it needs, in two laboratories, 10 cells of two classes" in remark
    assert remark.endswith("And that.")
    assert InvarianceColumns().remark == ""


def test_latex_escapes_and_has_as_many_columns(judged):
    text = write_tables(judged.evaluation, "latex")
    assert r"a\_\&\_b, none" in text
    assert "±" not in text.replace("% ", "")
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = table[: table.index("\n")].count("r") + 1
        for line in table.splitlines()[1:]:
            if line.endswith(r"\\"):
                assert line.replace(r"\&", "").count("&") == columns - 1
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 9


def test_csv_has_a_column_for_every_class(judged):
    found = judged.evaluation
    lines = list(csv.DictReader(io.StringIO(write_csv(found.means))))
    assert len(lines) == len(found.means)
    for line, mean in zip(lines, found.means, strict=True):
        assert float(line["accuracy_mean"]) == mean.accuracy.mean
        assert {name: float(line[f"recall_{name}"]) for name in mean.recall} == mean.recall
    (line, *_) = csv.DictReader(io.StringIO(write_csv(found.comparisons)))
    assert line["first"] == " / ".join(found.comparisons[0].first)
    assert float(line["macro_f1_p"]) == found.comparisons[0].macro_f1.p


def test_panels_are_blank_where_nothing_was_tested(judged):
    found = judged.evaluation
    drawn = panels(found, found.ranking())
    assert len(drawn) == 4
    held_out = drawn["a_&_b, none\nheld-out laboratory"]
    np.testing.assert_array_equal(np.isnan(held_out), [[True, True, False]] * 3)
    means = {(m.source, m.target): m for m in found.means if (m.method, m.classifier) == ("a_&_b", "svm_linear")}
    assert held_out[1, 2] == means["south", "west"].accuracy.mean


def test_a_difference_of_which_nothing_is_known_has_no_p(judged):
    found = judged.evaluation
    one = found.comparisons[0]
    unknown = replace(one, accuracy=Difference(0.25, np.nan, np.nan, np.nan))
    text = write_tables(replace(found, comparisons=[unknown]), "markdown")
    line = cells_of(text[text.index("## Differences") :].split("\n\n")[2].splitlines()[2])
    assert line[3:5] == ["+25.0", ""]
    assert line[6] == f"{one.macro_f1.p:.3f}"


def test_laboratories_with_one_initial_are_numbered():
    assert short_names(["lab_a", "lab_b"]) == {"lab_a": "1", "lab_b": "2"}
    assert short_names(["north", "south"]) == {"north": "N", "south": "S"}
