"""What a compiled program sends between devices, and what it thinks it takes: read off its text (HLO)."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16}
_BITS |= {"f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_SHAPE = re.compile(r"\b(pred|bf16|[sfu]\d+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One kind of operation between devices, over groups of one size.

    Attributes:
      kind: one of KINDS.
      group: devices that take part in each.
      count: how often a step runs it.
      elements, bytes: of the results, all together, on each device.
    """

    kind: str
    group: int
    count: int
    elements: int
    bytes: int

    def sent(self, group: int | None = None) -> float:
        """Bytes that each device sends, by the best algorithm on a ring (or on a torus, over all its axes)."""
        group = self.group if group is None else group
        share = (group - 1) / group
        whole = {
            "all-reduce": 2 * share,
            "reduce-scatter": group - 1,
            "collective-permute": 1,
            "collective-broadcast": 1,
        }
        return self.bytes * whole.get(self.kind, share)


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a program, the inside of a loop as often as it runs.

    Args:
      text: of the compiled program.
      devices: it runs on.
    """
    found: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    computations = _computations(text)
    for name, times in _times(computations).items():
        for line in computations[name]:
            instruction = _INSTRUCTION.match(line)
            if instruction is None or instruction[2].removesuffix("-start") not in KINDS:
                continue
            kind = instruction[2].removesuffix("-start")
            shapes = [(type_, math.prod(map(int, filter(None, sizes.split(","))))) for type_, sizes in
                      _SHAPE.findall(instruction[1])]  # fmt: skip
            if instruction[2].endswith("-start") and kind != "all-reduce":
                shapes = shapes[len(shapes) // 2 :] if kind == "all-gather" else shapes[1:2]  # (operands, results, ..)
            group = 2 if kind == "collective-permute" else _group(line, devices)
            if group > 1:
                total = found[kind, group]
                total[0] += times
                total[1] += times * sum(size for _, size in shapes)
                total[2] += times * sum(size * _BITS[type_] // 8 for type_, size in shapes)
    return [Collective(kind, group, *total) for (kind, group), total in sorted(found.items())]


def estimated_cycles(text: str) -> int:
    """Sum of what the TPU compiler estimates for every operation, one after the other; 0 where it says nothing."""
    return sum(cycles for _, _, cycles in costly_operations(text))


def costly_operations(text: str) -> list[tuple[str, int, int]]:
    """Operations of one kind that became of one operation of JAX, how often, and their cycles; the costliest first."""
    computations = _computations(text)
    often: Counter[str] = Counter()
    cycles: Counter[str] = Counter()
    for name, times in _times(computations).items():
        for line in computations[name]:
            found = re.search(r'"estimated_cycles":"(\d+)"', line)
            if found:
                kind = re.sub(r"[.\d]+$", "", line.split(" = ")[0].removeprefix("  ROOT ").strip(" %"))
                source = re.search(r'op_name="([^"]*)"', line)
                key = kind + (" of " + source[1].rpartition(")/")[2] if source else "")
                often[key] += times
                cycles[key] += times * int(found[1])
    return [(key, often[key], some) for key, some in cycles.most_common()]


def holds_square(text: str, side: int) -> bool:
    """Whether the program has an array with two axes of that length, such as the scores of all tokens."""
    return any(sizes.split(",").count(str(side)) > 1 for _, sizes in _SHAPE.findall(text))


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of each computation; that where the program begins is called ENTRY."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        heading = _COMPUTATION.match(line)
        if heading:
            lines = computations.setdefault("ENTRY" if heading[1] else heading[2], [])
        elif line.startswith(" "):
            lines.append(line)
    return computations


def _times(computations: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one run of the program."""
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations[name]:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line) if " while(" in line else None
            for called in _CALLED.findall(line):
                if called in computations:
                    visit(called, count * int(trips[1]) if trips else count)

    visit("ENTRY", 1)
    return times


def _group(line: str, devices: int) -> int:
    """Devices in each group of a collective."""
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if axes:  # over axes of a mesh: mesh['a'=4,'b'=2] {'a'}
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", axes[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(listed[1].split(",")) if listed else devices
