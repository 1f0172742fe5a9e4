"""Time this package beside plain PyTorch, on this machine, in one run.

    python scripts/benchmark.py --out FOLDER [--task forward_b8 ...] [--pairs 7] [--dtype float32 ...]

Tasks, each with ViT-B at 224 pixels: forward_b1 and forward_b8 (images to encoder features, LoRA merged), finetune_b8
(an optimiser step of LoRA-SAM) and cae_b16 (one of the autoencoder). Contestants: this package in fp32 and bf16, and
PyTorch twins of the original with the same weights and the same batch: `torch` as installed, `torch_switched` with the
slow path of MKL on other makers' processors switched off (needs a C compiler, `cc`), `torch_bf16` under autocast.

Every contestant lives in a process of its own that sleeps while another runs. They take turns; a ratio is that of two
times of one round, above 1 where this package is faster. What starts and compiles is not counted. What the contestants
give in their first step (a loss, or the mean square of the features) must agree, or nothing is timed.

Prints Markdown; writes benchmark.csv (one row a contestant, with timm's names of columns), ratios.csv and speed.png
into FOLDER. Rows of tasks and contestants that are not run again stay. Ratios of a busy machine are worthless.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmark_contestants import Contestant, Process, hold, make_inputs, switched_library, worker
from benchmark_report import draw, print_tables, read_rows, write_rows
from benchmark_tasks import TASKS, Task, multiply_adds, task_of

from dorl_jax.errors import InputError

PEERS = ("torch", "torch_switched", "torch_bf16")
MATMUL = 2048
# How far first numbers may lie apart: fp32 from fp32, and bf16 from fp32.
CLOSE = {"float32": 1e-3, "bfloat16": 5e-2}


def main() -> None:
    """Run the tasks, print, write."""
    options = _parser().parse_args()
    try:
        rows, ratios = [], []
        for name in options.task or TASKS:
            task = task_of(name, options.batch, options.variant)
            new_rows, new_ratios = race(name, task, options)
            rows += new_rows
            ratios += new_ratios
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                write_rows(options.out / "benchmark.csv", rows, ("task", "contestant"))
                write_rows(options.out / "ratios.csv", ratios, ("task", "peer", "dtype"))
        print_tables(rows, ratios, f"{_processor()}, {options.threads} threads, {options.pairs} pairs")
        drawn = read_rows(options.out / "ratios.csv") if options.out else []
        if drawn:  # without a peer there is no ratio
            draw(drawn, options.out / "speed.png")
    except InputError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results; none to print only")
    parser.add_argument("--task", action="append", choices=tuple(TASKS), help="repeatable; default: all")
    parser.add_argument("--peer", action="append", choices=PEERS, help="repeatable; default: all there are")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"), help="ours; repeatable")
    parser.add_argument("--pairs", type=int, default=7, help="rounds")
    parser.add_argument("--steps", type=int, default=1, help="steps of a contestant in a round")
    parser.add_argument("--batch", type=int, help="instead of the task's")
    parser.add_argument("--variant", choices=("tiny", "vit_b", "vit_l", "vit_h"), help="instead of ViT-B")
    parser.add_argument("--threads", type=int, default=2, help="cores, the first of those this process may use")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--hold", help="command that keeps the machine quiet in each round; says so by printing a line")
    return parser


def race(name: str, task: Task, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of benchmark.csv and of ratios.csv."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_inputs(name, task, folder)
        running = [
            stack.enter_context(Process(one, worker(one.package, name, task, one.dtype, folder), options.threads))
            for one in _contestants(options, folder)
        ]
        for process in running:  # they start and compile at the same time
            process.wait()
        _require_agreement(running)
        seconds: dict[str, list[float]] = {one.name: [] for one in running}
        memory = {one.name: one.ask("memory 2")["peak_bytes"] for one in running}
        peaks = dict.fromkeys(seconds, 0.0)
        for turn in range(options.pairs):
            with hold(options.hold):
                for process in running if turn % 2 == 0 else running[::-1]:
                    seconds[process.name].append(statistics.mean(process.ask(f"step {options.steps}")["seconds"]))
                for process in running:
                    if turn == 0 or process is running[turn % len(running)]:
                        peaks[process.name] = max(peaks[process.name], process.ask(f"matmul {MATMUL}")["flops"])
            print(f"{name}: round {turn + 1} of {options.pairs}", file=sys.stderr)
    peak = max(peaks.values())
    rows = [_row(name, task, process, seconds, memory, peaks, peak, options.threads) for process in running]
    ours = [process.contestant for process in running if process.contestant.package == "jax"]
    peers = [process.contestant for process in running if process.contestant.package == "torch"]
    ratios = [
        _ratio(name, one.dtype, peer.name, seconds[one.name], seconds[peer.name]) for one in ours for peer in peers
    ]
    return rows, ratios


def _contestants(options: argparse.Namespace, folder: Path) -> list[Contestant]:
    ours = [
        Contestant(f"dorl_jax_{short}", "jax", dtype, sys.executable)
        for dtype, short in (("float32", "fp32"), ("bfloat16", "bf16"))
        if dtype in (options.dtype or CLOSE)
    ]
    wanted = options.peer or PEERS
    python = options.torch_python
    found = subprocess.run([python, "-c", "import torch"], capture_output=True)
    if found.returncode:
        print(f"the peers are left out: {python} has no PyTorch (pip install 'dorl-jax[convert]')", file=sys.stderr)
        return ours
    peers = [Contestant("torch", "torch", "float32", python)]
    library = switched_library(folder) if "torch_switched" in wanted else None
    if library:
        peers.append(Contestant("torch_switched", "torch", "float32", python, {"LD_PRELOAD": str(library)}))
    peers.append(Contestant("torch_bf16", "torch", "bfloat16", python))
    return ours + [peer for peer in peers if peer.name in wanted]


def _require_agreement(running: Sequence[Process]) -> None:
    """
    Raises:
      InputError: the contestants do not compute the same.
    """
    exact = [one.began["first"] for one in running if one.contestant.dtype == "float32"]
    reference = (exact or [one.began["first"] for one in running])[-1]
    for one in running:
        first, allowed = one.began["first"], CLOSE[one.contestant.dtype]
        if not abs(first - reference) <= allowed * abs(reference):
            raise InputError(f"{one.name} gives {first}, another contestant {reference}: they do not compute the same")


def _row(
    name: str,
    task: Task,
    process: Process,
    seconds: dict[str, list[float]],
    memory: dict[str, int],
    peaks: dict[str, float],
    peak: float,
    threads: int,
) -> dict[str, Any]:
    step = statistics.median(seconds[process.name])
    gmacs = multiply_adds(task) / 1e9
    part = "train" if task.trains else "infer"
    times = {
        f"{one}_{column}": value if one == part else ""
        for one in ("infer", "train")
        for column, value in (("samples_per_sec", f"{task.batch / step:.3f}"), ("step_time", f"{1e3 * step:.1f}"))
    }
    return {
        "model": f"samvit_{task.variant.removeprefix('vit_')}",
        "task": name,
        "contestant": process.name,
        "version": process.began["version"],
        "img_size": task.image_size,
        "batch_size": task.batch,
        "dtype": process.contestant.dtype,
        **times,
        "peak_memory_mb": round(memory[process.name] / 1e6),
        "gmacs": f"{gmacs:.1f}",
        "gflop_per_sec": f"{2 * gmacs / step:.1f}",
        "own_matmul_gflop_per_sec": f"{peaks[process.name] / 1e9:.1f}",
        "fp32_peak_gflop_per_sec": f"{peak / 1e9:.1f}",
        "share_of_fp32_peak": f"{2e9 * gmacs / step / peak:.3f}",
        "first_step_seconds": f"{process.began['first_seconds']:.1f}",
        "threads": threads,
        "processor": _processor(),
    }


def _ratio(task: str, dtype: str, peer: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {
        "task": task,
        "peer": peer,
        "dtype": dtype,
        "ratio_median": f"{statistics.median(ratios):.3f}",
        "ratio_min": f"{min(ratios):.3f}",
        "ratio_max": f"{max(ratios):.3f}",
        "pairs": len(ratios),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
