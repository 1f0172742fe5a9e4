"""Pictures of a judged run, drawn again from its tables."""

import json
import sys
from pathlib import Path

import heat_maps
import numpy as np
import pytest

from dorl_jax.errors import InputError
from dorl_jax.evaluation import plots
from dorl_jax.evaluation.results import Evaluation, Mean, Score, Summary

# method, adaptation, setting, kind, source, target, classifier, accuracy, majority's floor
ROWS = (
    "ours,none,transductive,in_domain,east,east,mlp,0.9,0.5",
    "ours,none,transductive,pair,east,west,mlp,0.3,0.6",
    "ours,none,transductive,pair,west,east,mlp,0.4,0.5",
    "ours,none,transductive,in_domain,west,west,mlp,0.8,0.6",
    "ours,own,transductive,pair,east,west,mlp,0.7,0.6",
    "ours,none,transductive,leave_one_out,all but east,east,mlp,0.1,0.5",
    "theirs,none,transductive,pair,east,west,mlp,0.2,0.6",
    "theirs,none,transductive,pair,east,west,xgboost,0.1,0.6",
    "mixed,none,transductive,pair,east,west,mlp,0.1,0.6",
    "mixed,none,held_out,pair,west,east,mlp,0.1,0.5",
)


def draw(run: Path, monkeypatch: pytest.MonkeyPatch, *panels: str) -> tuple:
    """What is handed to be drawn."""
    drawn: list[tuple] = []
    monkeypatch.setattr(plots, "heat_maps", lambda *given: (drawn.append(given), b"")[1])
    monkeypatch.setattr(plots, "on_white", lambda png: b"picture")
    named = [word for panel in panels for word in ("--panel", panel)]
    monkeypatch.setattr(sys, "argv", ["heat_maps.py", str(run), *named, "--out", str(run / "out.png")])
    heat_maps.main()
    assert (run / "out.png").read_bytes() == b"picture"
    return drawn[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    means, summaries = [], {}
    for row in ROWS:
        *names, accuracy, floor = row.split(",")
        score = Score(float(accuracy))
        means.append(Mean(*names, 1, score, score, score, score, {}, float(floor), 0.1, 1.0))
        method, adaptation, setting, *_, classifier = names
        summaries[method, adaptation, setting, classifier] = Summary(
            method, adaptation, setting, classifier, 1, None, None, None
        )
    laboratories = {"east": {"a": 1, "b": 1}, "west": {"a": 3, "b": 2}}
    found = Evaluation([], means, list(summaries.values()), [], [], laboratories, ["a", "b"], "mlp", [], {})
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text(json.dumps(found.to_summary()))
    return tmp_path


def test_sources_are_rows_and_targets_columns(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, laboratories, floors, _ = draw(run, monkeypatch, "as it is=ours, none", "ours, own")
    assert laboratories == ["east", "west"]
    np.testing.assert_array_equal(floors, [0.5, 0.6])
    np.testing.assert_array_equal(scores["as it is"], [[0.9, 0.3], [0.4, 0.8]])
    np.testing.assert_array_equal(scores["ours, own"], [[np.nan, 0.7], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        ("ours, nine", "no panel 'ours, nine', only 'ours, none', 'ours, own'"),
        ("theirs, none", "has 2 classifiers"),
        ("mixed, none", "several settings, transductive, held_out"),
    ],
)
def test_panels_that_are_not_one_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, panel: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        draw(run, monkeypatch, panel)


def test_a_run_that_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="dorl-jax evaluate"):
        draw(tmp_path, monkeypatch, "ours, none")
