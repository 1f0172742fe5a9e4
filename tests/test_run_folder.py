"""The folder of a run: one process at a time, what cannot be written, and what its log keeps."""

import re
from pathlib import Path

import pytest

from dorl_jax.cli import main
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.locks import locked
from dorl_jax.stages import run as stages

SETTINGS = "[data]\nsynthetic_cells = 1\n"


@pytest.fixture
def prepare(tmp_path: Path) -> list[str]:
    """A command of a second; its folder is `run`."""
    (tmp_path / "settings.toml").write_text(SETTINGS)
    return ["prepare", "--config", str(tmp_path / "settings.toml"), "--run", str(tmp_path / "run"), "--quiet"]


def test_a_folder_in_which_another_process_works(tmp_path, prepare, capsys):
    assert main(prepare) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with locked(tmp_path / "run" / "writing.lock"):
        assert main([*prepare, "--redo", "prepare"]) == 2
    assert f"another process is writing into {tmp_path / 'run'}: wait for it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert main(prepare) == 0


def test_a_folder_that_cannot_be_written(tmp_path, prepare, capsys):
    (tmp_path / "run").write_text("a file in the way")
    assert main(prepare) == 2
    message = capsys.readouterr().err
    assert message.startswith("dorl-jax: [Errno ")
    assert str(tmp_path / "run") in message
    assert "Traceback" not in message


def test_what_a_stage_needs_is_not_removed_first(tmp_path, prepare, capsys):
    assert main(prepare) == 0
    before = sorted(tmp_path.rglob("*"))
    assert main(["extract", *prepare[1:], "--redo", "prepare"]) == 2
    assert "--redo prepare would remove what extract needs" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_that_made_nothing_can_be_mended(tmp_path, prepare, capsys):
    cells = write_laboratories(tmp_path / "cells", cells_per_class=1)
    wrong = [*prepare, "--source", "folder", "--root", str(tmp_path / "cell")]
    assert main(wrong) == 2
    assert "no data folder at" in capsys.readouterr().err
    assert main([*wrong[:-1], str(cells)]) == 0
    # What did make something stays as it was made.
    assert main(wrong) == 2
    assert "made with other settings of prepare: root" in capsys.readouterr().err


def test_what_cannot_be_removed_is_not_taken_for_new(tmp_path, prepare, capsys, monkeypatch):
    assert main(prepare) == 0

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", rmtree)
    assert main([*prepare, "--redo", "prepare"]) == 2
    assert f"Permission denied: '{tmp_path / 'run' / 'data'}'" in capsys.readouterr().err


def test_the_log_says_why_a_run_ended(tmp_path, prepare, capsys, monkeypatch):
    assert main(prepare) == 0
    capsys.readouterr()
    assert main([*prepare, "--set", "data.synthetic_cells=2"]) == 2
    message = capsys.readouterr().err
    assert message.count("made with other settings of prepare") == 1  # on the screen once
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "made with other settings of prepare: synthetic_cells (1, now 2)" in log
    assert "Traceback" not in log

    def fails(*anything: object) -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(stages, "_begin", fails)
    with pytest.raises(ZeroDivisionError):
        main(prepare)
    assert "ZeroDivisionError: unforeseen" in (tmp_path / "run" / "log.txt").read_text()
    assert "ZeroDivisionError" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((), "too few cells for 5 folds"),
        (("data.synthetic_cells=5", "evaluate.tested=unseen"), "the making of the vectors has seen all cells of cream"),
        # Of grey, which the training sees, it would be none.
        (("data.synthetic_cells=5", "data.unseen=['cream']", "evaluate.require=held_out"), "on grey .* is no test"),
    ],
)
def test_what_the_last_stage_would_refuse_is_told_before_a_training(tmp_path, prepare, capsys, changes, said):
    settings = [part for change in changes for part in ("--set", change)]
    assert main(["run", *prepare[1:], *settings, "--set", "evaluate.adaptations=['none']"]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert (tmp_path / "run" / "data" / "cells.parquet").is_file()
    assert not (tmp_path / "run" / "finetune_sam").exists()
