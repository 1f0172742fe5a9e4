"""Time the loader beside a plain PyTorch DataLoader with Pillow that does the same work, and beside what it must feed.

    python scripts/benchmark_loader.py [--data FOLDER] [--workers 2] [--rounds 7] [--out FOLDER]

Two tasks, each on all cells of the laboratories in FOLDER (drawn ones if none is given), in one shuffled order, in
batches of 16 of 224 x 224 pixels, by the same number of worker processes that read two batches ahead:

  images   decode and resize every image
  pairs    decode and resize image and mask, turn, flip, rotate and zoom both, change the stain

The loader reads the files, what `dorl-jax data build` made of them, and what it made of them with --size 224; PyTorch
reads the files. The contestants take turns, a round each; a ratio is that of one round. What starts (processes, first
batches) is not counted. Then: images a second that ViT-B embeds on one core (float32, batches of 8), and the memory
that loading 1,000 and 10,000 images takes, this process and its largest worker together. Timings count on a quiet
machine only.

Prints Markdown, and writes loader.csv into --out. PyTorch is left out where it is not installed.
"""

import argparse
import csv
import itertools
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dorl_jax.data.augment import Augmentation
from dorl_jax.data.built import build, read_built
from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.loader import image_batches, segmentation_batches
from dorl_jax.data.manifest import Cell, make_manifest
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError

BATCH, SIZE = 16, 224
PAIRS = Augmentation(blur=0.0)


@dataclass(frozen=True)
class TorchCells:
    """A map-style dataset as one writes it with Pillow and NumPy: (image, mask or nothing) at 224 x 224."""

    images: list[str]
    masks: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        with Image.open(self.images[place]) as file:
            image = file.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if not self.masks:
            return np.asarray(image)
        with Image.open(self.masks[place]) as file:
            mask = file.convert("L").resize((SIZE, SIZE), Image.Resampling.NEAREST)
        rng = np.random.default_rng(place)
        for turn in (rng.integers(4), 4 + rng.integers(2)):
            if turn % 4:
                method = Image.Transpose((2, 3, 4)[turn - 1] if turn < 4 else 0)
                image, mask = image.transpose(method), mask.transpose(method)
        angle, zoom = np.radians(rng.uniform(-20, 20)), np.exp(rng.uniform(-0.22, 0.22))
        cos, sin, centre = np.cos(angle) / zoom, np.sin(angle) / zoom, (SIZE - 1) / 2
        affine = (cos, sin, centre * (1 - cos - sin), -sin, cos, centre * (1 - cos + sin))
        image = image.transform((SIZE, SIZE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        mask = mask.transform((SIZE, SIZE), Image.Transform.AFFINE, affine, Image.Resampling.NEAREST)
        density = -np.log((np.asarray(image, np.float32) + 0.5) / 255.5)
        matrix = (np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3))).astype(np.float32)
        light = rng.uniform(-0.2, 0.2, 3).astype(np.float32)
        stained = np.clip(np.exp(-(density @ matrix + light)) * 255.5, 0, 255).astype(np.uint8)
        return stained, (np.asarray(mask) > 64).astype(np.uint8)


def torch_batches(cells: Sequence[Cell], pairs: bool, workers: int) -> Iterator[Any]:
    """The plain way."""
    from torch.utils.data import DataLoader

    masks = [str(cell.mask) for cell in cells] if pairs else []
    loader: Any = DataLoader(
        TorchCells([str(cell.image) for cell in cells], masks),  # type: ignore[arg-type]
        BATCH,
        num_workers=workers,
        drop_last=True,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=2 if workers else None,
    )
    while True:
        yield from loader


def our_batches(cells: Sequence[Cell], pairs: bool, workers: int) -> Iterator[Any]:
    """The loader."""
    if pairs:
        with closing(segmentation_batches(cells, SIZE, BATCH, 0, augmentation=PAIRS, workers=workers)) as batches:
            yield from batches
    yield from image_batches(cells, SIZE, BATCH, originals=False, workers=workers)


def rate(make: Callable[[], Iterator[Any]], count: int, warm: int) -> float:
    """Images a second over `count` batches behind the first `warm`."""
    batches = make()
    for _ in range(warm):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    taken = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    return count * BATCH / taken


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, least and most."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def race(cells: list[Cell], built: list[Cell], ready: list[Cell], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rounds of both tasks."""
    workers = options.workers
    rows = []
    parts = (cells, built, ready)
    tasks = {"images": parts, "pairs": tuple([cell for cell in part if cell.mask] for part in parts)}
    warm = 3 * max(1, workers)
    for task, members in tasks.items():
        pairs = task == "pairs"
        if not members[0]:
            print("pairs is left out: no cell has a mask", file=sys.stderr)
            continue
        # Over and over, so that a round lasts for seconds.
        files, packed, sized = (
            list(itertools.islice(itertools.cycle(part), (options.batches + warm) * BATCH)) for part in members
        )
        contestants: dict[str, Callable[[], Iterator[Any]]] = {
            "dorl_jax, files": lambda files=files, pairs=pairs: our_batches(files, pairs, workers),  # type: ignore[misc]
            "dorl_jax, built": lambda packed=packed, pairs=pairs: our_batches(packed, pairs, workers),  # type: ignore[misc]
            f"dorl_jax, built at {SIZE}": lambda sized=sized, pairs=pairs: our_batches(sized, pairs, workers),  # type: ignore[misc]
        }
        if find_spec("torch"):
            contestants["PyTorch + Pillow, files"] = lambda files=files, pairs=pairs: torch_batches(  # type: ignore[misc]
                files, pairs, workers
            )
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in tqdm(range(options.rounds), task, unit="round"):
            for name, make in contestants.items():
                rates[name].append(rate(make, options.batches, warm))
        peer = rates.get("PyTorch + Pillow, files")
        for name, values in rates.items():
            ratios = [own / other for own, other in zip(values, peer, strict=True)] if peer else []
            rows.append({"task": task, "loader": name, "rates": values, "ratios": ratios})
    return rows


# On one core: threads of XLA are pinned with the process, before JAX starts.
_EMBED = """
import os, sys, time, statistics
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, numpy as np
from flax import nnx
from dorl_jax.models import LoraSam, SamConfig
model = LoraSam(SamConfig.vit_b(224), None, rngs=nnx.Rngs(0))
forward = nnx.jit(lambda model, images: model.sam.encode_image(images)["tokens"])
images = np.zeros((8, 224, 224, 3), np.uint8)
jax.block_until_ready(forward(model, images))
times = []
for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(forward(model, images))
    times.append(time.perf_counter() - start)
print(8 / statistics.median(times))
"""


def embed_rate() -> float:
    """Images a second through ViT-B's encoder on one core."""
    return float(subprocess.run([sys.executable, "-c", _EMBED], check=True, capture_output=True, text=True).stdout)


def memory(folder: Path, count: int, workers: int) -> float:
    """Peak resident megabytes of a process that loads that many images, and of its largest worker."""
    command = [sys.executable, __file__, "--data", str(folder), "--workers", str(workers), "--memory", str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def load_for_memory(cells: Sequence[Cell], count: int, workers: int) -> None:
    """Load `count` images (the cells over and over, as if they were others) and print the peak."""
    many = list(itertools.islice(itertools.cycle(cells), count))
    loaded = sum(int(batch["valid"].sum()) for batch in image_batches(many, SIZE, BATCH, workers=workers))
    assert loaded == count, f"{loaded} of {count} images"
    own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print((own + worker) / 1024)


def main() -> None:
    """Race, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of laboratories; default: DORL_JAX_DATA, or drawn ones")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=300, help="batches counted in a round")
    parser.add_argument("--out", type=Path, help="folder for loader.csv")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.data or Path(os.environ.get("DORL_JAX_DATA", ""))
        if not options.data and "DORL_JAX_DATA" not in os.environ:
            folder = write_laboratories(Path(place) / "drawn", cells_per_class=150)
        taxonomy = load_taxonomy("five_classes")
        listings = open_laboratories(folder)
        cells = list(make_manifest(listings, taxonomy).cells)
        np.random.default_rng(0).shuffle(cells)
        if options.memory:
            load_for_memory(cells, options.memory, options.workers)
            return
        print("building", file=sys.stderr)
        built = []
        for size in (None, SIZE):
            packed = [read_built(build(one, Path(place) / f"built_{size}", size=size).folder) for one in listings]
            of = {cell.id: cell for cell in make_manifest(packed, taxonomy).cells}
            built.append([of[cell.id] for cell in cells])
        rows = race(cells, built[0], built[1], options)
        one_core = embed_rate()
        few, many = (memory(folder, count, options.workers) for count in (1000, 10_000))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.workers} workers, ", end="")
    print(f"{len(cells)} cells, {options.rounds} rounds\n")
    print("| task | loader | images/s | over PyTorch + Pillow |\n|---|---|---:|---:|")
    for row in rows:
        ratio = spread(row["ratios"], 2) if row["ratios"] else ""
        print(f"| {row['task']} | {row['loader']} | {spread(row['rates'])} | {ratio} |")
    best = statistics.median(rows[0]["rates"])
    print(f"\nViT-B embeds {one_core:.1f} images/s on one core; the loader feeds {best / one_core:.0f} times that.")
    print(f"Peak memory: {few:.0f} MB for 1,000 images, {many:.0f} MB for 10,000: {many / few:.3f} times.")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / "loader.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["task", "loader", "workers", "img_per_s", "ratio_median", "ratio_min", "ratio_max", "pairs"]
            )
            for row in rows:
                ratios = row["ratios"]
                three = [statistics.median(ratios), min(ratios), max(ratios)] if ratios else ["", "", ""]
                median = statistics.median(row["rates"])
                writer.writerow([row["task"], row["loader"], options.workers, median, *three, len(ratios)])


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
