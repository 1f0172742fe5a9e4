"""How the benchmark's results are kept, printed and drawn."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """A CSV's rows; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Write a CSV; of what is in it already, rows with other keys stay."""
    if not rows:
        return
    new = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in read_rows(path) if tuple(row[key] for key in keys) not in new]
    every = sorted([*kept, *rows], key=lambda row: [row[key] for key in keys])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(every[0]))
        writer.writeheader()
        writer.writerows(every)


def print_tables(rows: Sequence[Row], ratios: Sequence[Row], title: str) -> None:
    """Both tables in Markdown."""
    print(f"{title}\n")
    print("| task | contestant | dtype | samples/s | ms a step | MB | GFLOP/s | of the fp32 matmul peak |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        rate, step = (row[f"infer_{name}"] or row[f"train_{name}"] for name in ("samples_per_sec", "step_time"))
        share = f"{100 * float(row['share_of_fp32_peak']):.0f} % of {float(row['fp32_peak_gflop_per_sec']):.0f}"
        print(
            f"| {row['task']} | {row['contestant']} ({row['version']}) | {row['dtype']} | {float(rate):.2f} | {step} "
            f"| {row['peak_memory_mb']} | {row['gflop_per_sec']} | {share} |"
        )
    print("\n| task | dorl_jax in | over | ratio (least to most) | pairs |\n|---|---|---|---:|---:|")
    for row in ratios:
        spread = f"{float(row['ratio_median']):.2f} ({float(row['ratio_min']):.2f} to {float(row['ratio_max']):.2f})"
        print(f"| {row['task']} | {row['dtype']} | {row['peer']} | {spread} | {row['pairs']} |")


def draw(ratios: Sequence[Row], path: Path) -> None:
    """Ratios with their spread, a panel a task."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    tasks = sorted({row["task"] for row in ratios})
    figure, panels = plt.subplots(
        len(tasks), 1, figsize=(7, 1 + 1.6 * len(tasks)), sharex=True, squeeze=False, layout="constrained"
    )
    for task, panel in zip(tasks, panels[:, 0], strict=True):
        rows = [row for row in ratios if row["task"] == task]
        middle = [float(row["ratio_median"]) for row in rows]
        below = [float(row["ratio_median"]) - float(row["ratio_min"]) for row in rows]
        above = [float(row["ratio_max"]) - float(row["ratio_median"]) for row in rows]
        colours = ["tab:blue" if row["dtype"] == "float32" else "tab:orange" for row in rows]
        labels = [f"{row['dtype']} over {row['peer']}" for row in rows]
        panel.barh(labels, middle, xerr=[below, above], color=colours, ecolor="0.3")
        panel.axvline(1.0, color="0.3", linewidth=1)
        panel.set_title(task, loc="left")
        panel.invert_yaxis()
    panels[-1, 0].set_xlabel("times as fast as PyTorch (median; whiskers: least and most)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
