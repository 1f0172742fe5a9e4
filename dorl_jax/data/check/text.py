"""A report for the terminal."""

from dorl_jax.data.check.report import LaboratoryReport, Report


def format_report(report: Report) -> str:
    """One page of text."""
    lines = [report.summary, ""]
    lines += [f"{problem.severity:<8} {problem}" for problem in report.problems]
    if report.problems:
        lines.append("")
    width = max(10, *(len(one.name) for one in report.laboratories))
    heads = [label[:14] for label in report.classes] + ["dropped", "unmapped", "unusable", "masks"]
    lines.append(" " * width + "".join(f"{head:>{max(9, len(head) + 2)}}" for head in heads))
    for one in report.laboratories:
        lines.append(f"{one.name:<{width}}" + _cells(_counts(one), heads))
    lines += ["", f"{'':<{width}}  {'images':>7} {'groups':>7}  {'size, median (least to most)':<38}kinds"]
    for one in report.laboratories:
        size = f"{_size(one.median)} ({_size(one.smallest)} to {_size(one.largest)})"
        kinds = "; ".join(f"{count} {kind}" for kind, count in one.kinds.items())
        lines.append(f"{one.name:<{width}}  {one.rows:>7} {one.groups or '-':>7}  {size:<38}{kinds}")
    lines += ["", f"{'':<{width}}  {'mean RGB':<16}{'background':<16}density  saturation  contrast  sharpness"]
    for one in report.laboratories:
        if look := one.colours:
            lines.append(
                f"{one.name:<{width}}  {_rgb(look.mean):<16}{_rgb(look.background):<16}{look.optical_density:>7.3f}"
                f"{look.saturation:>12.3f}{look.contrast:>10.1f}{look.sharpness:>11.0f}"
            )
    if report.colour_distances:
        listed = ", ".join(f"{one}-{other} {distance:.0f}" for one, other, distance in report.colour_distances)
        lines += ["", f"distance of mean colours (Delta E, 10 is plainly seen): {listed}"]
    return "\n".join(lines)


def _counts(one: LaboratoryReport) -> list[int]:
    left_out = [sum(one.dropped.values()), sum(one.unmapped.values()), len(one.unusable)]
    return [*one.classes.values(), *left_out, one.masks.count if one.masks else 0]


def _cells(values: list[int], heads: list[str]) -> str:
    return "".join(f"{value:>{max(9, len(head) + 2)}}" for value, head in zip(values, heads, strict=True))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _rgb(colour: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.0f}" for value in colour)
