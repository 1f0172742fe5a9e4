"""The scripts that read runs: which vectors they test, and what they refuse."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import baseline_figures
import benchmark_extract
import choose_parts
import familiarity_check
import numpy as np
import pytest
import recipe_figures
from benchmark_extract_worker import in_turn
from benchmark_report import read_rows, write_rows

from dorl_jax import config
from dorl_jax.errors import InputError
from dorl_jax.evaluation.latents import Latents, write_latents
from dorl_jax.stages.run import RunSettings

LABORATORIES = ("east", "north", "south")


def latents(
    laboratories: Sequence[str] = LABORATORIES, parts: dict[str, int] | None = None, serves: str = ""
) -> Latents:
    """Six cells of two classes in each laboratory."""
    count = 6 * len(laboratories)
    return Latents(
        ids=np.array([f"cell {number}" for number in range(count)]),
        laboratories=np.repeat(laboratories, 6),
        labels=np.array(["a", "b"] * (count // 2)),
        vectors=np.random.default_rng(0).standard_normal((count, 4), np.float32),
        parts=parts,
        serves=serves,
    )


def test_vectors_that_know_labels_serve_their_own_sources_alone() -> None:
    """Those of `all but east` know the labels of the others, whether these were seen or not."""
    made = {name: latents(serves=name) for name in (*LABORATORIES, "all but east", "all but north")}
    assert baseline_figures.serving(made, ["north", "south"]) is made["all but east"]
    assert baseline_figures.serving(made, ["south"]) is made["south"]
    assert baseline_figures.serving(made, ["east", "north"]) is None
    of_all = latents()
    assert baseline_figures.serving({"": of_all}, ["south"]) is of_all


def test_settings_of_baselines_are_gathered_from_every_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = []
    monkeypatch.setattr(baseline_figures, "seen", lambda runs, settings: given.append(settings))
    command = ["baseline_figures.py", str(tmp_path), "--set", "baselines.names=['resnet']", "baselines.seed=3"]
    monkeypatch.setattr(sys, "argv", [*command, "--set", "baselines.resnet.steps=7"])
    baseline_figures.main()
    assert [(one.names, one.seed, one.resnet.steps) for one in given] == [(("resnet",), 3, 7)]
    monkeypatch.setattr(sys, "argv", [*command, "baselines.seed"])
    with pytest.raises(InputError, match="--set baselines.seed: expected KEY=VALUE"):
        baseline_figures.main()


@pytest.mark.parametrize("main", [recipe_figures.main, baseline_figures.main])
def test_a_run_that_has_seen_all_has_none_to_hold_out(main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config.save(RunSettings(), tmp_path / config.SETTINGS_FILE)
    write_latents(latents(), tmp_path / "embed" / "latents.parquet")
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path), "--held-out"])
    with pytest.raises(InputError, match="has seen all laboratories"):
        main()


def test_parts_are_chosen_where_there_are_parts_and_others_to_choose_on(tmp_path: Path) -> None:
    path = tmp_path / "embed" / "latents.parquet"
    write_latents(latents(), path)
    with pytest.raises(InputError, match="have no parts to choose from"):
        choose_parts.score_all([tmp_path])
    write_latents(latents(LABORATORIES[:2], {"one": 1, "rest": 3}), path)
    with pytest.raises(InputError, match="has 2 laboratories"):
        choose_parts.score_all([tmp_path])


def test_a_benchmark_without_a_peer_leaves_earlier_ratios(tmp_path: Path) -> None:
    path = tmp_path / "ratios.csv"
    write_rows(path, [], ("task",))
    assert not path.exists()
    write_rows(path, [{"task": "b", "ratio": "1"}, {"task": "a", "ratio": "2"}], ("task",))
    write_rows(path, [], ("task",))
    write_rows(path, [{"task": "b", "ratio": "3"}], ("task",))
    assert read_rows(path) == [{"task": "a", "ratio": "2"}, {"task": "b", "ratio": "3"}]


def test_a_pass_has_as_many_images_as_its_rate_counts() -> None:
    assert in_turn(["ab", "c"], 2) == ["a", "c"]
    assert in_turn(["ab", "c"], 7) == ["a", "c", "b", "a", "c", "b", "a"]


def test_vectors_that_are_no_numbers_agree_with_none() -> None:
    right = np.random.default_rng(0).standard_normal((3, 4))
    rough = right + 0.05 * np.random.default_rng(1).standard_normal((3, 4))  # of bf16; its cosine is above 0.99
    benchmark_extract._require_agreement({"files_bf16": rough, "files": right, "torch_b8": right})
    for wrong in (rough, np.full((3, 4), np.nan)):
        with pytest.raises(SystemExit, match="torch_b8 gives other vectors"):
            benchmark_extract._require_agreement({"files": right, "torch_b8": wrong})


@pytest.mark.slow
def test_memory_is_that_of_an_embedding() -> None:
    """Of the command that ran, for it tells what it embedded."""
    # Not in this process: the peak that Linux tells of a child begins with its parent's memory.
    script = [sys.executable, benchmark_extract.__file__, "--variant", "tiny", "--images", "2", "--batch", "2"]
    found = subprocess.run([*script, "--memory", "3"], check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [line.split(" | ") for line in found.splitlines() if line.startswith("| 3 |")]
    assert [row[1] for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        assert row[3].startswith("3 images in ")
        assert 200 < int(row[2]) < 4000


def test_a_laboratory_too_small_to_be_known_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    write_latents(latents(), path)
    monkeypatch.setattr(sys, "argv", ["familiarity_check.py", str(path)])
    with pytest.raises(InputError, match=r"each of 40 cells or more; there is east \(6 cells\)"):
        familiarity_check.main()
