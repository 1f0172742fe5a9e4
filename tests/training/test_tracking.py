"""What a training shows: rows and pictures read back, also where it was killed and continued."""

import csv
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from dorl_jax.errors import InputError
from dorl_jax.training.metrics import MetricsFile
from dorl_jax.training.tracking import FileTracker, Trackers, open_trackers


def open_plain(folder: Path, first_step: int) -> Trackers:
    return open_trackers(folder, first_step, name="test", settings={})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> list[Any]:
    """All events in the order in which TensorBoard reads them: file by file, by name; a torn one ends its file."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            if place + 16 + length > len(data):
                break
            found.append(event_pb2.Event.FromString(data[place + 12 : place + 12 + length]))
            place += 16 + length
    return found


def shown(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard shows of each tag: a session's start hides what there is of its step and of later ones."""
    from tensorboardX.proto import event_pb2

    tags: dict[str, list[tuple[int, Any]]] = {}
    for event in events(folder):
        if event.session_log.status == event_pb2.SessionLog.START:
            tags = {tag: [entry for entry in entries if entry[0] < event.step] for tag, entries in tags.items()}
        for value in event.summary.value:
            content = value.image.encoded_image_string or value.simple_value
            tags.setdefault(value.tag, []).append((event.step, content))
    return tags


def train(tracker: Trackers, first: int, last: int, sign: float = 1.0) -> None:
    """Numbers of every second and validation of every fourth step."""
    for step in range(first + 1, last + 1):
        if step % 2 == 0:
            tracker.log(step, {"loss": sign / step, "learning_rate": 0.5**step})
        if step % 4 == 0:
            tracker.validated(step, {"iou": sign * step / 8})


def test_rows_of_steps_taken_again_are_there_once(tmp_path):
    train(open_plain(tmp_path, 0), 0, 9, sign=-1.0)  # not closed: killed
    with open_plain(tmp_path, 5) as tracker:
        train(tracker, 5, 12)
    signs = {2: -1, 4: -1, 6: 1, 8: 1, 10: 1, 12: 1}
    expected = [{"step": str(s), "loss": f"{i / s:.6g}", "learning_rate": f"{0.5**s:.6g}"} for s, i in signs.items()]
    assert rows(tmp_path / "metrics.csv") == expected
    assert rows(tmp_path / "validation.csv") == [
        {"step": "4", "iou": "-0.5"},
        {"step": "8", "iou": "1"},
        {"step": "12", "iou": "1.5"},
    ]


def test_a_training_that_starts_anew_measures_step_0_again(tmp_path):
    for value in (1.0, 2.0):
        with open_plain(tmp_path, 0) as tracker:
            tracker.validated(0, {"iou": value})
    assert rows(tmp_path / "validation.csv") == [{"step": "0", "iou": "2"}]
    assert shown(tmp_path / "tensorboard") == {"validation/iou": [(0, 2.0)]}


@pytest.mark.parametrize("cut", range(1, 15))
def test_a_torn_row_is_dropped_wherever_it_is_torn(tmp_path, cut):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path, 0)
    for step in (2, 4):
        metrics.append(step, {"a": 0.25, "b": 1.125})
    path.write_bytes(path.read_bytes()[:-cut])
    MetricsFile(path, 10).append(12, {"a": 1.0, "b": 2.0})
    assert rows(path) == [{"step": "2", "a": "0.25", "b": "1.125"}, {"step": "12", "a": "1", "b": "2"}]


def test_without_rows_there_is_no_file(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv", 0)
    metrics.append(3, {"a": 1.0})
    MetricsFile(tmp_path / "metrics.csv", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [{"a": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "c": 3.0}])
def test_other_columns_are_named(tmp_path, values):
    metrics = MetricsFile(tmp_path / "metrics.csv", 0)
    metrics.append(3, {"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match=rf"columns step, a, b; the row of step 6 has step, {', '.join(values)}"):
        metrics.append(6, values)
    metrics.append(6, {"b": 5.0, "a": 4.0})
    assert rows(tmp_path / "metrics.csv")[1] == {"step": "6", "a": "4", "b": "5"}


def test_a_run_that_goes_on_elsewhere_may_measure_something_else(tmp_path):
    """From a GPU, which tells its memory, to a CPU."""
    path = tmp_path / "metrics.csv"
    MetricsFile(path, 0).append(3, {"loss": 1.0, "device_memory_mb": 2.0})
    metrics = MetricsFile(path, 3)
    for step in (6, 9):
        metrics.append(step, {"loss": 3.0, "memory_mb": 4.0})
    with pytest.raises(ValueError, match="the row of step 12 has step, loss"):
        metrics.append(12, {"loss": 5.0})
    MetricsFile(path, 9).append(12, {"loss": 5.0, "device_memory_mb": 6.0})
    first = {"step": "3", "loss": "1", "device_memory_mb": "2", "memory_mb": ""}
    others = [{"step": step, "loss": "3", "device_memory_mb": "", "memory_mb": "4"} for step in ("6", "9")]
    last = {"step": "12", "loss": "5", "device_memory_mb": "6", "memory_mb": ""}
    assert rows(path) == [first, *others, last]


def test_tensorboard_shows_each_step_once(tmp_path):
    with open_plain(tmp_path, 0) as tracker:
        train(tracker, 0, 9, sign=-1.0)
    with open_plain(tmp_path, 4) as tracker:  # within the same second: a file of its own all the same
        train(tracker, 4, 7, sign=-1.0)
    with open_plain(tmp_path, 5) as tracker:
        train(tracker, 5, 12)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
    signs = {2: -1, 4: -1, 6: 1, 8: 1, 10: 1, 12: 1}
    assert shown(tmp_path / "tensorboard") == {
        "train/loss": [(step, float(np.float32(sign / step))) for step, sign in signs.items()],
        "train/learning_rate": [(step, 0.5**step) for step in signs],
        "validation/iou": [(4, -0.5), (8, 1.0), (12, 1.5)],
    }


@pytest.mark.slow
def test_a_killed_training_leaves_event_files_that_can_be_read(tmp_path):
    script = f"""
import os, signal, time
from pathlib import Path
from dorl_jax.training import tracking
tracking._FLUSH_SECONDS = 0.2
tracker = tracking.open_trackers(Path({str(tmp_path)!r}), 0, name="test", settings={{}})
for step in range(1, 40):
    tracker.log(step, {{"loss": step / 4}})
time.sleep(1.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, timeout=60, check=False)
    assert done.returncode == -9
    assert shown(tmp_path / "tensorboard") == {"train/loss": [(step, step / 4) for step in range(1, 40)]}
    assert len(rows(tmp_path / "metrics.csv")) == 39


def test_pictures_are_kept_whole_in_files_and_in_tensorboard(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    with open_plain(tmp_path, 0) as tracker:
        tracker.picture(0, "masks", pictures[0])
        tracker.picture(1200, "masks", pictures[1])
    folder = tmp_path / "pictures"
    assert sorted(path.name for path in folder.iterdir()) == ["masks_0000000.png", "masks_0001200.png"]
    for path, picture in zip(sorted(folder.iterdir()), pictures, strict=True):
        np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], picture)
    inside = shown(tmp_path / "tensorboard")["masks"]
    assert [step for step, _ in inside] == [0, 1200]
    for (_, png), picture in zip(inside, pictures, strict=True):
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), 1)[..., ::-1], picture)


class Recorder:
    """Stands in for the module `wandb`: keeps the rows of a run, and refuses those of steps it has had, as it does."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        self.exit_codes: list[int] = []

    def init(self, **options: Any) -> Any:
        outer, had = self, self.rows.setdefault(options["id"], {})
        self.inits.append(options)

        class Run:
            step = max(had) + 1 if had else 0

            def log(self, values: dict[str, Any], step: int) -> None:
                assert step >= self.step, f"step {step} would be dropped"
                self.step = step
                had.setdefault(step, {}).update(values)

            def finish(self, exit_code: int) -> None:
                outer.exit_codes.append(exit_code)

        return Run()

    @staticmethod
    def Image(image: np.ndarray) -> tuple[str, np.ndarray]:
        return "image", image


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    module, recorder = ModuleType("wandb"), Recorder()
    vars(module).update(init=recorder.init, Image=recorder.Image, Error=recorder.Error)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return recorder


def test_a_continued_training_goes_on_in_its_run_of_weights_and_biases(tmp_path, recorder):
    settings = {"steps": 12, "lora": {"rank": 4}}
    picture = np.full((2, 3, 3), 7, np.uint8)

    def train_and_stop() -> None:
        with open_trackers(tmp_path, 0, name="sam", settings=settings, wandb="p") as one:
            train(one, 0, 9)
            one.picture(9, "masks", picture)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_stop()
    with open_trackers(tmp_path, 5, name="sam", settings=settings, wandb="p") as two:
        two.picture(8, "masks", picture)  # it has this one
        train(two, 5, 12)
    (run, kept), *others = recorder.rows.items()
    assert not others
    assert (tmp_path / "wandb_id.txt").read_text().strip() == run
    assert sorted(kept) == [2, 4, 6, 8, 9, 10, 12]
    assert kept[2] == {"train/loss": 0.5, "train/learning_rate": 0.25}
    assert kept[12] == {"train/loss": 1 / 12, "train/learning_rate": 0.5**12, "validation/iou": 1.5}
    assert kept[9] == {"masks": ("image", picture)}
    for options in recorder.inits:
        assert {key: options[key] for key in ("project", "name", "resume", "config", "dir")} == {
            "project": "p",
            "name": "sam",
            "resume": "allow",
            "config": settings,
            "dir": str(tmp_path),
        }
    assert recorder.exit_codes == [1, 0]


def test_another_training_is_another_run(tmp_path, recorder):
    for name in ("a", "b"):
        open_trackers(tmp_path / name, 0, name=name, settings={}, wandb="p").close()
    assert len(recorder.rows) == 2


def test_weights_and_biases_only_when_wished_for(tmp_path, recorder):
    open_plain(tmp_path, 0).close()
    assert not recorder.inits
    assert not (tmp_path / "wandb_id.txt").exists()


def test_weights_and_biases_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'dorl-jax\[wandb\]'"):
        open_trackers(tmp_path, 0, name="test", settings={}, wandb="p")
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_not_to_be_reached(tmp_path, recorder, monkeypatch):
    def refuse(**options: Any) -> None:
        raise recorder.Error("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(InputError, match=r"project 'p': no API key; log in by `wandb login`"):
        open_trackers(tmp_path, 0, name="test", settings={}, wandb="p")


def test_all_are_closed_even_if_one_cannot_be(tmp_path):
    closed = []

    class Broken(FileTracker):
        def close(self, failed: bool = False) -> None:
            closed.append(failed)
            raise OSError("disk full")

    trackers = Trackers([Broken(tmp_path / "a", 0), Broken(tmp_path / "b", 0)])
    with pytest.raises(InputError, match="cannot be written \\(disk full\\)"):
        trackers.close()
    # Where an error has ended the training, that error counts.
    trackers.close(failed=True)
    assert closed == [False, False, True, True]
