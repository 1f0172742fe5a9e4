"""The array launchers of `dorl-jax embed`: tasks that know nothing of each other make one file."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from small_dorl import save_small_run, small_dorl, write_images

from dorl_jax.cli import main

LAUNCHERS = Path(__file__).parents[2] / "scripts" / "launch"


def task(number: int, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """A task of an array of 3 that begins at 5, as Slurm starts it."""
    slurm = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5"}
    command = ["bash", str(LAUNCHERS / "embed_array.sbatch"), "--batch-size", "2", "--shard-size", "2"]
    return subprocess.run(command, env={**os.environ, **environment, **slurm}, check=False, capture_output=True)


@pytest.mark.slow
def test_an_array_of_jobs_makes_one_file(tmp_path: Path) -> None:
    images, run, out = (
        write_images(tmp_path / "images", 6),
        save_small_run(tmp_path / "run", 0.0),
        tmp_path / "v.parquet",
    )
    program = tmp_path / "venv" / "bin" / "dorl-jax"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dorl_jax "$@"\n')
    program.chmod(0o755)
    named = {"IMAGES": images, "MODEL": run, "OUT": out, "VENV": tmp_path / "venv"}
    environment = {name: str(value) for name, value in named.items()}
    for number in (7, 5):
        assert task(number, environment).returncode == 0
        assert not out.exists()
    assert task(6, environment).returncode == 0
    expected = small_dorl(0.0).embed_table(images, batch_size=2, workers=0)
    assert pq.read_table(out).replace_schema_metadata(None).equals(expected)
    missing = task(6, {**environment, "MODEL": ""})
    assert missing.returncode
    assert b"folder of the run" in missing.stderr


def test_the_command_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    job = yaml.safe_load((LAUNCHERS / "embed_job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    [container] = spec["template"]["spec"]["containers"]
    values = {variable["name"]: variable.get("value", "3") for variable in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert int(values["PROCESSES"]) == spec["completions"] == spec["parallelism"]
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    words = container["args"]
    for key, value in values.items():
        words = [word.replace(f"$({key})", value) for word in words]
    taken = {}
    monkeypatch.setattr("dorl_jax.embedding.command.run", lambda options: taken.update(vars(options)))
    assert main(words) == 0
    assert (taken["processes"], taken["process"], taken["images"]) == (32, 3, ["/shared/images"])
