"""Where the time of a benchmark's step goes, by JAX's profiler.

    python scripts/profile_step.py TASK [--dtype bfloat16] [--top 15] [--by line]

The step is traced twice behind a warm one. Prints the operations of the compiled program that take longest, summed over
those of one kind, or over those that one line of the source became: forward, or in a gradient (back).
"""

import argparse
import collections
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_jax
import jax
from benchmark_tasks import TASKS, task_of, write_inputs

STEPS = 2


def main() -> None:
    """Trace and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tuple(TASKS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--variant", choices=("tiny", "vit_b", "vit_l", "vit_h"))
    parser.add_argument("--top", type=int, default=15, help="rows")
    parser.add_argument("--by", default="line", choices=("kind", "line", "operation"))
    options = parser.parse_args()
    task = task_of(options.task, options.batch, options.variant)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(task, folder)
        run, program = benchmark_jax.compile_step(task, options.dtype, folder)
        run()
        with jax.profiler.trace(str(folder / "trace")):
            for _ in range(STEPS):
                run()
        events = read_trace(folder / "trace")
    lines = source_lines(program.as_text() or "")
    labels: dict[str, Callable[[str], str]] = {
        "kind": lambda name: re.sub(r"[.\d]+$", "", name),
        "line": lambda name: lines.get(name, name),
        "operation": lambda name: f"{name}: {lines.get(name, '')}",
    }
    total: dict[str, float] = collections.defaultdict(float)
    count: dict[str, int] = collections.defaultdict(int)
    for event in events:
        name = labels[options.by](event["args"]["hlo_op"])
        total[name] += event["dur"] / 1e3 / STEPS
        count[name] += 1
    print(
        f"{options.task}, {options.dtype}, jax {jax.__version__}: {sum(total.values()):.0f} ms a step in operations\n"
    )
    print("| operation | times a step | ms a step |\n|---|---:|---:|")
    for name, milliseconds in sorted(total.items(), key=lambda item: -item[1])[: options.top]:
        print(f"| {name} | {count[name] / STEPS:.0f} | {milliseconds:.1f} |")


def source_lines(text: str) -> dict[str, str]:
    """For the operations of a compiled program what they do and the line that they come from."""

    def table(name: str, pattern: str) -> dict[str, tuple[str, ...]]:
        found = re.search(rf"^{name}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
        rows = re.findall(rf"^(\d+) {pattern}", found[1] if found else "", re.MULTILINE)
        return {number: rest for number, *rest in rows}

    files, functions = table("FileNames", '"(.*)"'), table("FunctionNames", '"(.*)"')
    places = table("FileLocations", r"{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)")
    frames = table("StackFrames", r"{file_location_id=(\d+) parent_frame_id=(\d+)")

    def own_line(frame: str) -> str:
        """The innermost line of this package on the stack."""
        while frame in frames:
            location, parent = frames[frame]
            file, function, line = places[location]
            if "dorl_jax" in files[file][0].split("/"):
                return f"{Path(files[file][0]).name}:{line} {functions[function][0]}"
            frame = str(int(parent) - 1)  # written one too high, so that 1 stands for none
        return ""

    found = {}
    for line in text.splitlines():
        one = re.match(r"\s*(?:ROOT )?%([\w.-]+) = ", line)
        data = re.search(r'metadata={op_name="([^"]*)"(?: stack_frame_id=(\d+))?', line)
        if one and data:
            back = " (back)" if "transpose(" in data[1] else ""
            found[one[1]] = f"{own_line(data[2] or '')} {data[1].rsplit('/', 1)[-1]}{back}".strip()
    return found


def read_trace(folder: Path) -> list[dict[str, Any]]:
    """The events of the compiled program's operations; of those inside others (loops, calls) the innermost alone."""
    (path,) = folder.rglob("*.trace.json.gz")
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    operations = [event for event in events if "hlo_op" in event.get("args", {})]
    threads: dict[Any, list[dict[str, Any]]] = collections.defaultdict(list)
    for event in operations:
        threads[event["tid"]].append(event)
    inner = []
    for of_thread in threads.values():
        of_thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        for event, after in zip(of_thread, [*of_thread[1:], None], strict=True):
            if after is None or after["ts"] >= event["ts"] + event["dur"]:
                inner.append(event)
    return inner


if __name__ == "__main__":
    main()
