"""The launchers parse, and what they start is a command that `dorl-jax` takes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dorl_jax.cli import main

LAUNCHERS = Path(__file__).parents[2] / "scripts" / "launch"
SHELL = ["tpu_pod.sh", "slurm.sbatch"]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Runs a launcher with stand-ins for the cluster's commands; what it would have started, word by word."""
    for name in ("gcloud", "srun", "scontrol"):
        stand_in = tmp_path / "bin" / name
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> "$OUT"\n[ {name} != srun ] || exit "$STATUS"\n')
        stand_in.chmod(0o755)

    def start(launcher: str, status: int = 0, **settings: str) -> list[str]:
        out = tmp_path / "out"
        out.unlink(missing_ok=True)
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OUT": str(out), "STATUS": str(status)}
        done = subprocess.run(["bash", LAUNCHERS / launcher], env=environment | settings, check=False, timeout=20)
        assert done.returncode == status
        return out.read_text().splitlines()

    return start


def options(words: list[str], monkeypatch, capsys) -> dict:
    """What the command line makes of the words behind `dorl-jax`."""
    taken = {}
    monkeypatch.setattr("dorl_jax.cli._run_stages", lambda options: taken.update(vars(options)))
    try:
        assert main(words) == 0
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    return taken


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts_parse(name):
    subprocess.run(["bash", "-n", LAUNCHERS / name], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", LAUNCHERS / name], check=True)


def test_the_command_on_a_slice(started, monkeypatch, capsys):
    words = started("tpu_pod.sh", TPU="slice", ZONE="us-east5-b", SHARED="/data")
    ssh = "gcloud compute tpus tpu-vm ssh slice --zone us-east5-b --worker=all --command"
    assert words[:-1] == ssh.split()
    program, *command = words[-1].split()
    assert program == "/data/venv/bin/dorl-jax"
    taken = options(command, monkeypatch, capsys)
    assert (taken["stage"], taken["config"], taken["run"], taken["distributed"]) == (
        "run",
        Path("/data/settings.toml"),
        Path("/data/runs/settings"),
        True,
    )


def test_a_slice_must_be_named():
    done = subprocess.run(["bash", LAUNCHERS / "tpu_pod.sh"], env={"PATH": os.environ["PATH"]}, capture_output=True)
    assert done.returncode
    assert b"name of the slice" in done.stderr


@pytest.mark.parametrize("status", [0, 2, 143])
def test_the_command_of_slurm(started, status, monkeypatch, capsys):
    words = started("slurm.sbatch", status, CONFIG="a.toml", RUN="runs/a b", SLURM_JOB_ID="17")
    end = words.index("scontrol") if "scontrol" in words else len(words)
    assert words[:3] == ["srun", "--kill-on-bad-exit=1", ".venv/bin/dorl-jax"]
    # Only a run that was told to stop goes back into the queue.
    assert words[end:] == (["scontrol", "requeue", "17"] if status == 143 else [])
    taken = options(words[3:end], monkeypatch, capsys)
    assert (taken["config"], taken["run"], taken["distributed"]) == (Path("a.toml"), Path("runs/a b"), True)


def test_a_task_for_every_gpu():
    lines = (LAUNCHERS / "slurm.sbatch").read_text().splitlines()
    settings = dict(
        line.removeprefix("#SBATCH --").split("=") for line in lines if line.startswith("#SBATCH") and "=" in line
    )
    assert settings["ntasks-per-node"] == settings["gpus-per-node"]
    assert settings["signal"].startswith("TERM@")


def test_the_command_of_a_pod(monkeypatch, capsys):
    jobset = yaml.safe_load((LAUNCHERS / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [job] = jobset["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    [container] = pods["template"]["spec"]["containers"]
    values = {variable["name"]: variable.get("value", "1") for variable in container["env"]}
    # The address is that of the first pod, as JobSet names it; every count is the same.
    name, network = jobset["metadata"]["name"], jobset["spec"]["network"]
    assert network["enableDNSHostnames"]
    host, port = values["COORDINATOR"].split(":")
    assert host == f"{name}-{job['name']}-0-0.{network['subdomain']}"
    assert int(port) == container["ports"][0]["containerPort"]
    assert int(values["PROCESSES"]) == pods["completions"] == pods["parallelism"]
    assert pods["completionMode"] == "Indexed"
    # A volume for every mount.
    volumes = {volume["name"] for volume in pods["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes

    assert container["command"] == ["dorl-jax"]
    words = container["args"]
    for key, value in values.items():
        words = [word.replace(f"$({key})", value) for word in words]
    assert not any("$" in word for word in words)
    taken = options(words, monkeypatch, capsys)
    assert (taken["coordinator"], taken["processes"], taken["process"]) == (values["COORDINATOR"], 2, 1)


def test_cluster_and_address_together(capsys):
    assert main(["run", "--config", "a.toml", "--distributed", "--process", "1"]) == 2
    assert "--distributed asks the cluster" in capsys.readouterr().err


def test_half_an_address(capsys):
    assert main(["embed", "--run", "a", "--coordinator", "localhost:1"]) == 2
    assert "processes and process missing" in capsys.readouterr().err
