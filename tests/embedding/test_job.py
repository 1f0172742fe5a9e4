"""A file of vectors comes out the same to the last byte, whoever did which part of it and wherever it was killed."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_dorl import save_small_run, small_dorl, write_images

from dorl_jax import DoRL
from dorl_jax.cli import main
from dorl_jax.data.image_lists import ImageList, open_images
from dorl_jax.embedding import job as job_module
from dorl_jax.embedding.job import EmbedJob, embed_images
from dorl_jax.embedding.table import read_provenance
from dorl_jax.errors import InputError
from dorl_jax.locks import locked

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


def share(process: int, processes: int) -> EmbedJob:
    return EmbedJob(batch_size=2, shard_size=3, workers=0, process=process, processes=processes)


def test_what_does_not_fit_is_refused(whole: Path, dorl: DoRL, images: ImageList, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"made with another batch_size \(2, now 4\)"):
        embed_images(dorl, images, whole, EmbedJob(batch_size=4), progress=False)
    with pytest.raises(InputError, match=r"made with another images \("):
        embed_images(dorl, images[1:], whole, JOB, progress=False)
    with pytest.raises(InputError, match=r"another zoom \(0.0, now 1.25\)"):
        embed_images(small_dorl(1.25), images, whole, JOB, progress=False)
    assert embed_images(dorl, images, whole, JOB, progress=False).images == 0
    with pytest.raises(InputError, match=r"export"):
        embed_images(dorl, images, tmp_path / "vectors.csv", JOB, progress=False)
    with pytest.raises(InputError, match="process 2 of 2"):
        embed_images(dorl, images, tmp_path / "v.parquet", share(2, 2), progress=False)
    other = tmp_path / "other.parquet"
    with (
        locked(Path(f"{other}.parts") / "writing.lock"),
        pytest.raises(InputError, match="another process is writing into .*other.parquet.parts"),
    ):
        embed_images(dorl, images, other, JOB, progress=False)
    strict = EmbedJob(batch_size=2, workers=0, strict=True)
    with pytest.raises(InputError, match="003.png"):
        embed_images(dorl, images, tmp_path / "strict.parquet", strict, progress=False)


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
    assert main(command(folder, run, out, "--config", "x.toml")) == 2
    assert "takes no --config" in capsys.readouterr().err
    assert main(["embed", str(folder), "--out", str(out)]) == 2
    assert "needs --model" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_processes_are_made_up_for(whole: Path, folder: Path, run: Path, tmp_path: Path) -> None:
    """Two at a time, SIGKILLed at random moments, the last two left to end."""
    out = tmp_path / "vectors.parquet"
    rng = random.Random(0)
    program = [sys.executable, "-m", "dorl_jax.cli"]
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
    subprocess.run([sys.executable, "-m", "dorl_jax.cli", *arguments], env=environment, check=True)
    one, four = (pq.read_table(path)["vector"].to_pylist() for path in (whole, out))
    assert [vector is None for vector in one] == [vector is None for vector in four]
    pairs = [pair for pair in zip(one, four, strict=True) if pair[0] is not None]
    np.testing.assert_allclose([pair[1] for pair in pairs], [pair[0] for pair in pairs], rtol=1e-4, atol=1e-5)
    small = command(folder, run, tmp_path / "w.parquet", "--batch-size", "6")
    refused = subprocess.run([sys.executable, "-m", "dorl_jax.cli", *small], env=environment, stderr=subprocess.PIPE)
    assert refused.returncode == 2
    assert b"take a multiple of the 4 devices" in refused.stderr
