"""What a conversion did with every tensor, as a table to read."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One tensor.

    Attributes:
      source: its name in the state dict; "" for a tensor of the model that the state dict does not fill.
      shape: in the state dict.
      target: its path in the model; "" for a tensor that is left out.
      target_shape: in the model.
      how: "as is", "transposed", "resized", "ignored: why", "fresh", ...
    """

    source: str
    shape: Shape | None
    target: str
    target_shape: Shape | None
    how: str


def format_report(rows: Sequence[Row]) -> str:
    """A text table, tensors that differ in their numbers alone in one line, and the totals below.

    What stands before the last number that varies, or before the first dot, is a heading of its own.
    """
    groups: dict[tuple[str, Shape | None, str, Shape | None, str], list[Row]] = {}
    for row in rows:
        key = (_unnumbered(row.source), row.shape, _unnumbered(row.target), row.target_shape, row.how)
        groups.setdefault(key, []).append(row)
    sections: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for (_, shape, _, target_shape, how), members in groups.items():
        source_head, source = _heading([row.source for row in members])
        target_head, target = _heading([row.target for row in members])
        line = (f"{len(members)} x", source, _spell(shape), target, _spell(target_shape), how)
        sections.setdefault((source_head, target_head), []).append(line)
    text = []
    for (source_head, target_head), lines in sections.items():
        heading = [head for head in (source_head, target_head) if head]
        text += ["", " -> ".join(heading) or "(by itself)"]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text += [_align(line, widths) for line in lines]
    totals = Counter(row.how.split(":")[0] for row in rows)
    return "\n".join([*text[1:], "", f"{len(rows)} tensors: " + ", ".join(f"{n} {how}" for how, n in totals.items())])


def _align(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(line[1:], widths[1:], strict=True) if width]
    return "  ".join([line[0].rjust(6), *cells]).rstrip()


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _heading(names: list[str]) -> tuple[str, str]:
    """`["blocks.0.x", "blocks.1.x"]` -> `("blocks.0-1", "x")`."""
    spans = list(re.finditer(r"\d+", names[0]))
    columns = list(zip(*(re.findall(r"\d+", name) for name in names), strict=True))
    varying = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    text, done, split = "", 0, None
    for place, (span, column) in enumerate(zip(spans, columns, strict=True)):
        text += names[0][done : span.start()] + _range(column)
        done = span.end()
        if varying and place == varying[-1]:
            split = len(text)
    text += names[0][done:]
    if split is None or split == len(text):
        split = text.find(".") if "." in text else 0
    return text[:split], text[split:].lstrip(".")


def _range(column: Iterable[str]) -> str:
    found = sorted(set(column), key=int)
    numbers = list(map(int, found))
    if len(found) == 1:
        return found[0]
    step = numbers[1] - numbers[0]
    if numbers != list(range(numbers[0], numbers[-1] + 1, step)):
        return ",".join(found)
    return f"{found[0]}-{found[-1]}" + (f" by {step}" if step > 1 else "")


def _spell(shape: Shape | None) -> str:
    return "" if shape is None else " x ".join(map(str, shape)) or "()"
