"""Time images to vectors beside the way of the original: one image at a time in PyTorch, and in batches.

    python scripts/benchmark_extract.py --out FOLDER [--data FOLDER] [--images 32] [--pairs 7] [--batch 8]

All contestants have the same weights (drawn; ViT-B with LoRA at 224 pixels, and its autoencoder), the same image files,
and the same cores:

  files, files_bf16   `dorl-jax embed`: files in, Parquet out, models loaded and compiled before
  bare, bare_bf16     the same compiled program on arrays that are there already
  torch_b1            PyTorch in the manner of the released code: Pillow, one image at a time, everything kept
  torch_b8, torch_b16 PyTorch as a skilled user would: inference mode, LoRA merged, batches
  torch_b8_bf16       that under autocast

They take turns, one pass over all images each; a ratio is that of two times of one round. First vectors are compared,
and the cosine between those of fp32 and bf16 is printed. `--memory 1000 --memory 20000` measures in its place the peak
memory of the command `dorl-jax embed` for so many images (the same files over and over), with the variant of
`--variant`, from its start to its end: starting Python, reading the models and compiling included.

Prints Markdown; writes extract.csv (with timm's names of columns) and extract_ratios.csv. Ratios of a busy machine are
worthless.
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_contestants import Contestant, Process, environment, hold
from tqdm import tqdm

WORKER = Path(__file__).with_name("benchmark_extract_worker.py")
# name -> (package, dtype, images a step)
WAYS = {
    "files": ("jax", "float32", 0),
    "bare": ("jax", "float32", 0),
    "files_bf16": ("jax", "bfloat16", 0),
    "bare_bf16": ("jax", "bfloat16", 0),
    "torch_b1": ("torch", "float32", 1),
    "torch_b8": ("torch", "float32", 8),
    "torch_b16": ("torch", "float32", 16),
    "torch_b8_bf16": ("torch", "bfloat16", 8),
}
OURS = tuple(name for name, (package, _, _) in WAYS.items() if package == "jax")


def main() -> None:
    """Race or measure, and print."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = options.data or os.environ.get("DORL_JAX_DATA", "")
        prepare = [sys.executable, str(WORKER), "inputs", options.variant, str(folder), str(data), str(options.images)]
        subprocess.run(prepare, check=True, env=environment())
        if options.memory:
            _memory(folder, options)
            return
        rows, ratios = _race(folder, options)
    _print(rows, ratios)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        _write(options.out / "extract.csv", rows)
        if ratios:  # two ways of one package have none
            _write(options.out / "extract_ratios.csv", ratios)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results; none to print only")
    parser.add_argument("--data", type=Path, help="folder of laboratories; default: DORL_JAX_DATA, or drawn cells")
    parser.add_argument("--images", type=int, default=32, help="images a pass")
    parser.add_argument("--batch", type=int, default=8, help="of ours")
    parser.add_argument("--pairs", type=int, default=7, help="rounds")
    parser.add_argument("--way", action="append", choices=tuple(WAYS), help="repeatable; default: all")
    parser.add_argument("--variant", default="vit_b", choices=("tiny", "vit_b", "vit_l", "vit_h"))
    parser.add_argument("--threads", type=int, default=2, help="cores, the first of those this process may use")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--hold", help="command that keeps the machine quiet in each round; says so by printing a line")
    parser.add_argument("--memory", type=int, action="append", metavar="IMAGES", help="measure memory; repeatable")
    return parser


def _race(folder: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    with ExitStack() as stack:
        running = [stack.enter_context(_process(name, folder, options)) for name in options.way or WAYS]
        for process in running:
            process.wait()
        vectors = {process.name: np.array(process.began["vectors"]) for process in running}
        _require_agreement(vectors)
        seconds: dict[str, list[float]] = {process.name: [] for process in running}
        memory, idle = dict.fromkeys(seconds, 0), dict.fromkeys(seconds, 0.0)
        for turn in tqdm(range(options.pairs), unit="round"):
            with hold(options.hold):
                for process in running if turn % 2 == 0 else running[::-1]:
                    answer = process.ask("pass")
                    seconds[process.name].append(answer["seconds"])
                    memory[process.name] = max(memory[process.name], answer["peak_bytes"])
                    idle[process.name] = max(idle[process.name], answer["idle_share"])
        rows = [_row(process, seconds, memory, idle, options) for process in running]
    pairs = [(ours, peer) for ours in seconds if ours in OURS for peer in seconds if peer != ours]
    ratios = [_ratio(ours, peer, seconds) for ours, peer in pairs if peer not in OURS or peer.startswith("bare")]
    if "bare" in vectors and "bare_bf16" in vectors:
        cosine = _cosine(vectors["bare"], vectors["bare_bf16"])
        print(
            f"Cosine between vectors of fp32 and bf16: at least {cosine.min():.5f}, median {np.median(cosine):.5f}.\n"
        )
    return rows, ratios


def _process(name: str, folder: Path, options: argparse.Namespace) -> Process:
    package, dtype, batch = WAYS[name]
    python = sys.executable if package == "jax" else options.torch_python
    command = [str(WORKER), package, name, str(batch or options.batch), dtype, options.variant, str(folder)]
    return Process(Contestant(name, package, dtype, python), command, options.threads)


def _require_agreement(vectors: dict[str, np.ndarray]) -> None:
    reference = vectors[min(vectors, key=lambda name: "bf16" in name)]  # one of fp32 where there is any
    for name, found in vectors.items():
        least = 0.99 if "bf16" in name else 0.99999
        # Where an image shrinks by two or more, Pillow averages differently; the contestants all resize with ours.
        if not (cosine := _cosine(reference, found).min()) >= least:  # so written that NaN is no agreement
            sys.exit(f"error: {name} gives other vectors (cosine {cosine}): they do not compute the same")


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def _row(
    process: Process,
    seconds: dict[str, list[float]],
    memory: dict[str, int],
    idle: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    name = process.name
    median = statistics.median(seconds[name])
    batch = WAYS[name][2] or options.batch
    return {
        "model": f"samvit_{options.variant.removeprefix('vit_')}+lora+cae",
        "contestant": name,
        "version": process.began["version"],
        "img_size": process.began["img_size"],
        "batch_size": batch,
        "dtype": process.contestant.dtype,
        "infer_samples_per_sec": f"{options.images / median:.3f}",
        "infer_step_time": f"{1e3 * median * batch / options.images:.1f}",
        "samples_per_sec_min": f"{options.images / max(seconds[name]):.3f}",
        "samples_per_sec_max": f"{options.images / min(seconds[name]):.3f}",
        "peak_memory_mb": round(memory[name] / 1e6),
        "idle_share": f"{idle[name]:.4f}" if name in OURS else "",
        "threads": options.threads,
        "pairs": options.pairs,
    }


def _ratio(ours: str, peer: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [their / own for own, their in zip(seconds[ours], seconds[peer], strict=True)]
    three = (statistics.median(ratios), min(ratios), max(ratios))
    spelled = dict(zip(("ratio_median", "ratio_min", "ratio_max"), (f"{x:.3f}" for x in three), strict=True))
    return {"contestant": ours, "peer": peer, "dtype": WAYS[ours][1], **spelled, "pairs": len(ratios)}


def _print(rows: Sequence[dict[str, Any]], ratios: Sequence[dict[str, Any]]) -> None:
    print("| | batch | images/s | peak memory, MB | device waited |\n|---|---:|---:|---:|---:|")
    for row in rows:
        low, high = row["samples_per_sec_min"], row["samples_per_sec_max"]
        rate = f"{row['infer_samples_per_sec']} ({low} to {high})"
        waited = f"{float(row['idle_share']):.1%}" if row["idle_share"] else ""
        print(f"| {row['contestant']} | {row['batch_size']} | {rate} | {row['peak_memory_mb']} | {waited} |")
    print("\n| | as fast as | median | least | most |\n|---|---|---:|---:|---:|")
    for row in ratios:
        three = " | ".join(row[name] for name in ("ratio_median", "ratio_min", "ratio_max"))
        print(f"| {row['contestant']} | {row['peer']} | {three} |")


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _memory(folder: Path, options: argparse.Namespace) -> None:
    print(f"Peak memory of `dorl-jax embed`, {options.variant}:\n\n| images | dtype | MB | |\n|---:|---|---:|---|")
    files = sorted((folder / "images").iterdir())
    for count in options.memory:
        table = folder / f"{count}.csv"
        rows = [f"{path},{place:07d}" for place, path in zip(range(count), itertools.cycle(files), strict=False)]
        table.write_text("\n".join(["path,name", *rows]) + "\n")
        for dtype in ("float32", "bfloat16"):
            peak, told = _peak_of_command(folder, table, dtype, options.batch)
            print(f"| {count:,} | {dtype} | {peak / 1e6:.0f} | {told} |", flush=True)


def _peak_of_command(folder: Path, table: Path, dtype: str, batch: int) -> tuple[int, str]:
    """Bytes at most of its processes, and the first line that the command prints."""
    out = folder / f"{table.stem}_{dtype}.parquet"
    command = [sys.executable, "-m", "dorl_jax", "embed", str(table), "--column", "path", "--id-column", "name"]
    command += ["--model", str(folder / "run"), "--out", str(out), "--dtype", dtype, "--batch-size", str(batch)]
    with subprocess.Popen([*command, "--quiet"], env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    # Linux counts in KiB; the Mac in bytes.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), told.splitlines()[0]


if __name__ == "__main__":
    main()
