"""How long a process takes from its start to the first vectors, cold and warm, and compiling the encoder of every size.

    python scripts/start_up.py [--variant vit_b] [--images 8] [--rounds 3] [--compile vit_b --compile vit_h]

Cold is a process with an empty compilation cache of JAX, warm one that finds what the cold one compiled. A command gets
the cache by its environment:

    JAX_COMPILATION_CACHE_DIR=~/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 dorl-jax embed ...

Each process imports the package, reads a run (drawn weights), and embeds one batch twice; the second time is what a
batch takes when everything is there. Prints Markdown, medians and ranges in seconds.

With `--compile` the encoder's forward is compiled, without weights and without running it, in a process of its own for
each size; given alone (`--rounds 0`) nothing else is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmark_contestants import environment

WORKER = Path(__file__).with_name("benchmark_extract_worker.py")
STEPS = ("import", "read the run", "first batch", "to the first vectors", "second batch")

_FIRST_VECTORS = """
import json, sys, time
from pathlib import Path
started, run, images = float(sys.argv[1]), sys.argv[2], sorted(map(str, Path(sys.argv[3]).iterdir()))
import dorl_jax.cli
from dorl_jax import DoRL
imported = time.time()
dorl = DoRL.load(run, only="float32")
read = time.time()
dorl.embed(images, batch_size=len(images), workers=0)
first = time.time()
dorl.embed(images, batch_size=len(images), workers=0)
print(json.dumps([imported - started, read - imported, first - read, first - started, time.time() - first]))
"""

_COMPILE = """
import json, sys, time
import jax, jax.numpy as jnp
from flax import nnx
from dorl_jax.models import LoraSam, SamConfig
model = nnx.eval_shape(lambda: LoraSam(SamConfig.preset(sys.argv[1], 224), rngs=nnx.Rngs(0)))
graph, state = nnx.split(model)
images = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.uint8)
start = time.perf_counter()
lowered = jax.jit(lambda state, images: nnx.merge(graph, state).sam.encode_image(images)["tokens"]).lower(state, images)
traced = time.perf_counter()
lowered.compile()
print(json.dumps([traced - start, time.perf_counter() - traced]))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="vit_b", choices=("tiny", "vit_b", "vit_l", "vit_h"))
    parser.add_argument("--images", type=int, default=8, help="of the batch")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of a cold and a warm process")
    parser.add_argument("--compile", action="append", default=[], choices=("tiny", "vit_b", "vit_l", "vit_h"))
    options = parser.parse_args()
    if options.rounds:
        _first_vectors(options)
    if options.compile:
        print("| encoder, forward of 8 at 224 | trace, s | compile, s |\n|---|---:|---:|")
        for variant in options.compile:
            found = [_answer([_COMPILE, variant], {}) for _ in range(max(1, options.rounds))]
            trace, compiled = (_spread([one[place] for one in found]) for place in (0, 1))
            print(f"| {variant} | {trace} | {compiled} |", flush=True)


def _first_vectors(options: argparse.Namespace) -> None:
    times: dict[str, list[list[float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = os.environ.get("DORL_JAX_DATA", "")
        prepare = [sys.executable, str(WORKER), "inputs", options.variant, str(folder), data, str(options.images)]
        subprocess.run(prepare, check=True, env=environment())
        arguments = [str(folder / "run"), str(folder / "images")]
        for number in range(options.rounds):
            cache = {
                "JAX_COMPILATION_CACHE_DIR": str(folder / f"cache_{number}"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            for name in ("cold", "warm"):
                times[name].append(_answer([_FIRST_VECTORS, str(time.time()), *arguments], cache))
    print(f"{options.variant}, a batch of {options.images}, {options.rounds} rounds:\n")
    print("| seconds | cold | warm | warm / cold |\n|---|---:|---:|---:|")
    for step, name in enumerate(STEPS):
        cold, warm = ([one[step] for one in times[kind]] for kind in ("cold", "warm"))
        ratio = statistics.median(w / c for c, w in zip(cold, warm, strict=True))
        print(f"| {name} | {_spread(cold)} | {_spread(warm)} | {ratio:.2f} |")
    print(flush=True)


def _answer(program: Sequence[str], more: dict[str, str]) -> list[float]:
    command = [sys.executable, "-c", *program]
    found = subprocess.run(command, check=True, env={**environment(), **more}, stdout=subprocess.PIPE).stdout
    return json.loads(found.decode().splitlines()[-1])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
