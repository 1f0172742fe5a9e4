"""A file of vectors comes out the same to the last byte, whoever did which part of it and wherever it was killed."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_dorl import save_small_run, small_dorl, write_images

from dorl_jax import DoRL
from dorl_jax.cli import main
from dorl_jax.data.image_lists import ImageList, open_images
from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.manifest import make_manifest
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.embedding import job as job_module
from dorl_jax.embedding.extracted import extracted_cells
from dorl_jax.embedding.job import Done, EmbedJob, embed_images, extract_images
from dorl_jax.embedding.table import read_provenance
from dorl_jax.errors import InputError
from dorl_jax.locks import locked
from dorl_jax.stages.extract import ExtractSettings, extract
from dorl_jax.store import Store

COUNT = 22
JOB = EmbedJob(batch_size=2, shard_size=3, workers=0)  # six shards of two batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "some", COUNT)


@pytest.fixture(scope="module")
def images(folder: Path) -> ImageList:
    return open_images(folder)


@pytest.fixture(scope="module")
def dorl() -> DoRL:
    return small_dorl(0.0)


@pytest.fixture(scope="module")
def whole(dorl: DoRL, images: ImageList, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "vectors.parquet"
    done = embed_images(dorl, images, out, JOB, progress=False)
    assert (done.images, done.failed, done.finished) == (COUNT, 2, True)
    return out


def test_the_file_is_the_table(whole: Path, dorl: DoRL, images: ImageList) -> None:
    found, expected = pq.read_table(whole), dorl.embed_table(images, batch_size=2, workers=0)
    assert found.replace_schema_metadata(None).equals(expected)
    assert read_provenance(whole)["weights"] == dorl.provenance["weights"]
    assert [path.name for path in whole.parent.iterdir()] == ["vectors.parquet"]  # no part is left


class Killed(Exception):
    pass


def dying(after: int) -> type[ImageList]:
    """Lists whose reading ends in a crash, as a killed process does."""

    class Dying(ImageList):
        left = after

        def source(self, place: int) -> str:
            type(self).left -= 1
            if self.left < 0:
                raise Killed
            return str(super().source(place))

    return Dying


@pytest.mark.parametrize("after", [0, 9, 15, 22, 27])
def test_a_broken_run_goes_on_to_the_same_bytes(
    whole: Path, dorl: DoRL, images: ImageList, tmp_path: Path, after: int
) -> None:
    out = tmp_path / "vectors.parquet"
    images.__class__ = dying(after)
    try:
        with pytest.raises(Killed):
            embed_images(dorl, images, out, JOB, progress=False)
    finally:
        images.__class__ = ImageList
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parts/shard_*")}
    assert not out.exists()
    done = embed_images(dorl, images, out, JOB, progress=False)
    assert done.images == COUNT - 4 * len(shards)
    assert out.read_bytes() == whole.read_bytes()


def test_a_damaged_shard_is_done_again_alone(
    whole: Path, dorl: DoRL, images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "vectors.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(job_module, "write_vectors", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            embed_images(dorl, images, out, JOB, progress=False)
    torn = tmp_path / "vectors.parquet.parts" / "shard_00003" / "vector.npy"
    content = bytearray(torn.read_bytes())
    content[-1] ^= 1
    torn.write_bytes(content)
    done = embed_images(dorl, images, out, JOB, progress=False)
    assert done.images == 4
    assert out.read_bytes() == whole.read_bytes()


def test_any_number_of_processes_makes_the_same_file(
    whole: Path, dorl: DoRL, images: ImageList, tmp_path: Path
) -> None:
    out = tmp_path / "vectors.parquet"
    first = embed_images(dorl, images, out, share(1, 2), progress=False)
    assert (first.images, first.finished) == (10, False)  # shards 1, 3, 5; the last has two images
    # The other died before it began; three go on.
    dones = [embed_images(dorl, images, out, share(process, 3), progress=False) for process in range(3)]
    assert [done.images for done in dones] == [4, 4, 4]
    assert [done.finished for done in dones] == [False, False, True]
    assert out.read_bytes() == whole.read_bytes()


def test_a_file_that_another_process_wrote_first(
    dorl: DoRL, images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find all shards done; the one that waits for the lock tells the same as the one that writes."""
    embed_images(dorl, images, tmp_path / "vectors.parquet", share(1, 2), progress=False)
    dones: list[Done | None] = []

    @contextmanager
    def overtaken(path: Path, **how: bool) -> Iterator[None]:
        if path.name == "finishing.lock" and not dones:
            dones.append(None)
            dones[0] = embed_images(dorl, images, tmp_path / "vectors.parquet", share(1, 2), progress=False)
        with locked(path, **how):
            yield

    monkeypatch.setattr(job_module, "locked", overtaken)
    dones.append(embed_images(dorl, images, tmp_path / "vectors.parquet", share(0, 2), progress=False))
    assert [(done.finished, done.failed) for done in dones if done] == [(True, 2), (True, 2)]


def share(process: int, processes: int) -> EmbedJob:
    return EmbedJob(batch_size=2, shard_size=3, workers=0, process=process, processes=processes)


def test_what_does_not_fit_is_refused(whole: Path, dorl: DoRL, images: ImageList, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"made with another batch_size \(2, now 4\)"):
        embed_images(dorl, images, whole, EmbedJob(batch_size=4), progress=False)
    with pytest.raises(InputError, match=r"made with another images \("):
        embed_images(dorl, images[1:], whole, JOB, progress=False)
    with pytest.raises(InputError, match=r"another zoom \(0.0, now 1.25\)"):
        embed_images(small_dorl(1.25), images, whole, JOB, progress=False)
    again = embed_images(dorl, images, whole, JOB, progress=False)
    assert (again.images, again.failed) == (0, 2)
    with pytest.raises(InputError, match=r"export"):
        embed_images(dorl, images, tmp_path / "vectors.csv", JOB, progress=False)
    with pytest.raises(InputError, match="process 2 of 2"):
        embed_images(dorl, images, tmp_path / "v.parquet", share(2, 2), progress=False)
    for name in ("batch_size", "shard_size"):
        with pytest.raises(InputError, match=f"{name} = 0: at least 1 is needed"):
            embed_images(dorl, images, tmp_path / "v.parquet", replace(JOB, **{name: 0}), progress=False)
    other = tmp_path / "other.parquet"
    with (
        locked(Path(f"{other}.parts") / "writing.lock"),
        pytest.raises(InputError, match="another process is writing into .*other.parquet.parts"),
    ):
        embed_images(dorl, images, other, JOB, progress=False)
    strict = EmbedJob(batch_size=2, workers=0, strict=True)
    with pytest.raises(InputError, match="003.png"):
        embed_images(dorl, images, tmp_path / "strict.parquet", strict, progress=False)
    with pytest.raises(
        InputError, match=r"vectors.parquet is whole, but 2 images have no vector; the first: .*003.png"
    ):
        embed_images(dorl, images, whole, replace(JOB, strict=True), progress=False)


def test_what_is_known_of_images_may_change_behind_their_vectors(
    dorl: DoRL, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".png")[:8]
    listed = tmp_path / "listed.csv"

    def embedded(out: Path, label: str) -> Done:
        rows = [f"{folder / name},{label},0.5,scanner" for name in names]
        listed.write_text("\n".join(["file,label,score,source", *rows]) + "\n")
        return embed_images(dorl, open_images(listed), out, JOB, progress=False)

    caplog.set_level("INFO", logger="dorl_jax")
    assert embedded(tmp_path / "v.parquet", "monocyte").images == 8
    assert "source of the images is left out, for v.parquet has columns of its own" in caplog.text
    first = (tmp_path / "v.parquet").read_bytes()
    assert embedded(tmp_path / "v.parquet", "monocyte").images == 0
    assert "had changed" not in caplog.text
    assert (tmp_path / "v.parquet").read_bytes() == first
    assert embedded(tmp_path / "v.parquet", "basophil").images == 0
    assert "had changed and is written anew" in caplog.text
    assert embedded(tmp_path / "fresh.parquet", "basophil").images == 8
    again, fresh = (pq.read_table(tmp_path / name) for name in ("v.parquet", "fresh.parquet"))
    assert again.equals(fresh, check_metadata=True)
    assert set(again["label"].to_pylist()) == {"basophil"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_run(tmp_path_factory.mktemp("run"), zoom=0.0)


def command(folder: Path, run: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--batch-size", "2", "--shard-size", "3", "--workers", "0", "--quiet"]
    return ["embed", str(folder), "--model", str(run), "--out", str(out), *sizes, *more]


def test_the_command(whole: Path, folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "vectors.parquet"
    assert main(command(folder, run, out)) == 0
    assert "2 images have no vector" in capsys.readouterr().out
    assert out.read_bytes() == whole.read_bytes()
    assert main(command(folder, run, out)) == 0
    assert "2 images have no vector" in capsys.readouterr().out
    assert main(command(folder, run, out, "--config", "x.toml")) == 2
    assert "takes no --config" in capsys.readouterr().err
    assert main(command(folder, run, out, "--set", "extract.zoom=0")) == 2
    assert "takes no --set" in capsys.readouterr().err
    for option, value in (("--batch-size", "abc"), ("--batch-size", "0"), ("--shard-size", "0")):
        assert main(command(folder, run, tmp_path / "new.parquet", option, value)) == 2
        assert f"{option} {value}: take a whole number, 1 or more" in capsys.readouterr().err
    told = ["extract", str(folder), "--model", str(run), "--out", str(tmp_path / "new")]
    assert main([*told, "--shard-size", "0"]) == 2
    assert "shard_size = 0: at least 1 is needed" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors.parquet"]
    assert main(["embed", str(folder), "--out", str(out)]) == 2
    assert "needs --model" in capsys.readouterr().err


def test_extracted_as_the_stage_does(tmp_path: Path) -> None:
    """The same cells by the command and by a run's own stage: the same numbers."""
    root = write_laboratories(tmp_path / "cells", cells_per_class=1, laboratories=2)
    cells = make_manifest(open_laboratories(root), load_taxonomy("five_classes"))
    run = save_small_run(tmp_path / "run")
    sizes = ["--batch-size", "2", "--shard-size", "3", "--workers", "0", "--dtype", "float32"]
    expected = extract(
        cells,
        run / "finetune_sam" / "model",
        tmp_path / "stage",
        ExtractSettings(batch_size=2, dtype="float32", workers=0),
        weights="",
        progress=False,
    )
    names = [str(cell.image) for cell in cells.cells]
    told = ["extract", *names, "--model", str(run), "--out", str(tmp_path / "out"), "--quiet", *sizes]
    assert main(told) == 0
    found = Store(tmp_path / "out")
    assert (len(found), found.shards, found.failed) == (len(names), -(-len(names) // 4), {})
    for place in range(len(names)):
        # The command merges the LoRA, the stage does not.
        np.testing.assert_allclose(found["feature"][place], expected["feature"][place], atol=1e-5)
        for name in ("crop", "foreground", "empty"):
            np.testing.assert_array_equal(found[name][place], expected[name][place])
    sources = pq.read_table(tmp_path / "out" / "images.parquet")["source"].to_pylist()
    assert [Path(source) for source in sources] == [cell.image for cell in cells.cells]
    # A shard that is lost comes back as it was.
    torn = tmp_path / "out" / "shard_00001" / "feature.npy"
    content = torn.read_bytes()
    torn.unlink()
    assert main(told) == 0
    assert torn.read_bytes() == content


def test_extracting_what_cannot_be_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_small_run(tmp_path / "run")
    told = ["extract", str(folder), "--model", str(run), "--quiet", "--workers", "0"]
    assert main([*told, "--out", str(tmp_path / "out")]) == 0
    assert "2 images have no features" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out" / "images.parquet").to_pylist()
    assert [row["id"] for row in table if row["reason"]] == ["003.png", "007.png"]
    assert Store(tmp_path / "out")["feature"][0].dtype == ml_dtypes.bfloat16
    assert main([*told, "--out", str(tmp_path / "out"), "--zoom", "2.0"]) == 2
    assert "made with another zoom (1.25, now 2.0)" in capsys.readouterr().err
    assert main([*told, "--out", str(tmp_path / "out.parquet")]) == 2
    assert "features are written into a folder" in capsys.readouterr().err


def test_processes_that_end_extracting_together(
    images: ImageList, dorl: DoRL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extracted(job: EmbedJob, given: ImageList = images) -> Done:
        return extract_images(
            dorl.lora_sam, given, tmp_path, job, zoom=0.0, parity=False, kept="float32", made_by={}, progress=False
        )

    extracted(JOB)
    expected = (tmp_path / "images.parquet").read_bytes()
    (tmp_path / "images.parquet").unlink()
    together, write_table = threading.Barrier(2), pq.write_table

    def slow(table: pa.Table, path: Path) -> None:
        write_table(table, path)
        with suppress(threading.BrokenBarrierError):  # nobody else may come here now
            together.wait(timeout=1)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(job_module.pq, "write_table", slow)
        dones = list(pool.map(extracted, [share(0, 2), share(1, 2)]))
    assert [(done.finished, done.failed) for done in dones] == [(True, 2), (True, 2)]
    assert (tmp_path / "images.parquet").read_bytes() == expected
    assert not list(tmp_path.glob("*.partial"))
    # Labels that have been put right since go with the same features.
    labels = [f"class{place % 3}" for place in range(COUNT)]
    sources = [images.source_text(place) for place in range(COUNT)]
    labelled = ImageList(images.ids.to_pylist(), sources, columns={"label": labels})
    assert extracted(JOB, labelled).images == 0
    assert pq.read_table(tmp_path / "images.parquet")["label"].to_pylist() == labels


def test_the_cells_of_what_was_extracted(folder: Path, tmp_path: Path) -> None:
    """They go with the store, as those of a run do."""
    root = write_laboratories(tmp_path / "cells", cells_per_class=1, laboratories=2)
    cells = make_manifest(open_laboratories(root), load_taxonomy("five_classes"))
    run = save_small_run(tmp_path / "run")
    table, out = tmp_path / "cells.csv", tmp_path / "out"
    lines = [f"{cell.image},{cell.id},{cell.laboratory},{cell.label}" for cell in cells.cells]
    table.write_text("\n".join(["path,name,laboratory,label", *lines]) + "\n")
    columns = ["--column", "path", "--id-column", "name"]
    with pytest.raises(InputError, match="writes it when it is done"):
        extracted_cells(out)
    assert main(["extract", str(table), *columns, "--model", str(run), "--out", str(out), "--quiet"]) == 0
    found = extracted_cells(out)
    for mine, theirs in zip(found.cells, cells.cells, strict=True):
        assert (mine.id, mine.laboratory, mine.label) == (theirs.id, theirs.laboratory, theirs.label)
        assert Path(str(mine.image)) == theirs.image
    assert found.laboratories == cells.laboratories
    Store(out).require_ids([cell.id for cell in found.cells])
    assert main(["extract", str(folder), "--model", str(run), "--out", str(tmp_path / "broken"), "--quiet"]) == 0
    with pytest.raises(InputError, match=r"nothing was extracted of 003.png, 007.png"):
        extracted_cells(tmp_path / "broken")


@pytest.mark.slow
def test_killed_processes_are_made_up_for(whole: Path, folder: Path, run: Path, tmp_path: Path) -> None:
    """Two at a time, SIGKILLed at random moments, the last two left to end."""
    out = tmp_path / "vectors.parquet"
    rng = random.Random(0)
    program = [sys.executable, "-m", "dorl_jax"]
    for life in range(4):
        processes = [
            subprocess.Popen([*program, *command(folder, run, out, "--processes", "2", "--process", str(number))])
            for number in range(2)
        ]
        if life == 3:
            assert [process.wait() for process in processes] == [0, 0]
            break
        # Before the first shard, and among them.
        wait_for_shards(out, life, rng.uniform(0, 0.2))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert hashlib.sha256(out.read_bytes()).digest() == hashlib.sha256(whole.read_bytes()).digest()
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.parquet"]


def wait_for_shards(out: Path, count: int, more: float) -> None:
    end = time.monotonic() + 120
    while len(list(Path(f"{out}.parts").glob("shard_*"))) < count and not out.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(more)


@pytest.mark.slow
def test_devices_share_a_batch(folder: Path, run: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.parquet"
    arguments = command(folder, run, out, "--batch-size", "8")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-m", "dorl_jax", *arguments], env=environment, check=True)
    one, four = (pq.read_table(path)["vector"].to_pylist() for path in (whole, out))
    assert [vector is None for vector in one] == [vector is None for vector in four]
    pairs = [pair for pair in zip(one, four, strict=True) if pair[0] is not None]
    np.testing.assert_allclose([pair[1] for pair in pairs], [pair[0] for pair in pairs], rtol=1e-4, atol=1e-5)
    small = command(folder, run, tmp_path / "w.parquet", "--batch-size", "6")
    refused = subprocess.run([sys.executable, "-m", "dorl_jax", *small], env=environment, stderr=subprocess.PIPE)
    assert refused.returncode == 2
    assert b"take a multiple of the 4 devices" in refused.stderr
