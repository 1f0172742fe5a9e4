"""Pictures of a run as PNG, drawn for light or dark paper.

Everything is drawn on a transparent ground at two pixels a CSS pixel; nothing touches pyplot's global state.
Classes and laboratories differ in colour (Okabe and Ito's palette, safe for the colour-blind) and in marker.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dorl_jax.sheets import PREDICTED, TRUE

_DPI = 192  # two pixels a CSS pixel, of which there are 96 an inch
_SIZE = 9.0  # points, 12 CSS pixels
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_MARKERS = "os^Dv"


@dataclass(frozen=True)
class Theme:
    """Colours of ink and paper; `low` and `high` are the ends of the scale from 0 to 1."""

    ink: str
    muted: str
    line: str
    low: str
    high: str
    accent: str


LIGHT = Theme(ink="#1c2530", muted="#667380", line="#d5dbe1", low="#f1f5f9", high="#0b4f8a", accent="#0072B2")
DARK = Theme(ink="#e8ebef", muted="#97a3af", line="#3a434d", low="#1e252d", high="#8ccbff", accent="#56B4E9")


def heat_maps(
    scores: dict[str, Float[np.ndarray, "s t"]],
    laboratories: Sequence[str],
    floors: Float[np.ndarray, " t"],
    theme: Theme,
) -> bytes:
    """One panel a classifier: source laboratory down, target across; the target's majority floor beneath.

    Args:
      scores: title of the panel -> accuracy, 0..1.
      laboratories: names of the rows and columns.
      floors: share of each target's commonest class, 0..1.
      theme: colours.
    """
    n, names = len(laboratories), [_literal(name) for name in laboratories]
    columns = min(3, len(scores))
    rows = math.ceil(len(scores) / columns)
    panel = min(max(0.68 * n, 1.8), 9.2 / columns)
    titles = [_literal(_wrapped(name, panel)) for name in scores]
    above = 0.4 + 0.17 * max(0, *(title.count("\n") - 1 for title in titles))
    size = (panel * columns + 1.7, (panel * (n + 1.3) / n + above) * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = np.atleast_2d(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False))
    for axes in grid.flat[len(scores) :]:
        axes.set_visible(False)
    for index, values in enumerate(scores.values()):
        axes = grid.flat[index]
        _matrix(axes, values, theme, annotate=panel / n >= 0.3)
        axes.imshow(floors[None], extent=(-0.5, n - 0.5, n + 0.75, n - 0.25), **_scale(theme))
        for column, floor in enumerate(floors):
            _number(axes, float(column), n + 0.25, float(floor), theme)
        for i in range(n):
            axes.add_patch(_outline(i, theme))
        axes.set_xlim(-0.5, n - 0.5)
        axes.set_ylim(n + 0.75, -0.5)
        axes.set_title(titles[index], fontsize=_SIZE + 1, color=theme.ink, fontweight="bold")
        axes.set_xticks(range(n), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks([*range(n), n + 0.25], [*names, "majority floor"])
        axes.tick_params(labelbottom=index + columns >= len(scores), labelleft=index % columns == 0)
    figure.supxlabel("tested on", fontsize=_SIZE, color=theme.muted)
    figure.supylabel("trained on", fontsize=_SIZE, color=theme.muted)
    return _png(figure)


def on_white(png: bytes) -> bytes:
    """The picture on a white ground: of a file that is opened alone a dark viewer would show dark ink on dark."""
    with Image.open(io.BytesIO(png)) as image:
        drawn = image.convert("RGBA")
    return image_png(np.asarray(Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")))


def confusion_grid(
    counts: Int[np.ndarray, "rows columns k k"],
    classes: Sequence[str],
    row_names: Sequence[str],
    column_names: Sequence[str],
    theme: Theme,
) -> bytes:
    """A grid of confusion matrices, true class down, predicted across; each row is divided by its sum."""
    rows, columns, k = counts.shape[:3]
    classes, row_names, column_names = ([_literal(name) for name in of] for of in (classes, row_names, column_names))
    panel = min(max(0.36 * k, 1.3), 9.2 / columns)
    figure = Figure(figsize=(panel * columns + 1.9, (panel + 0.1) * rows + 1.3), layout="constrained")
    grid: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for i, j in np.ndindex(rows, columns):
        axes: Axes = grid[i, j]
        tested = counts[i, j].sum(axis=1, keepdims=True)
        shares = np.divide(counts[i, j], tested, out=np.full((k, k), np.nan), where=tested > 0)
        _matrix(axes, shares, theme, annotate=panel / k >= 0.24)
        axes.set_xticks(range(k), classes, rotation=90)
        axes.set_yticks(range(k), classes)
        axes.tick_params(labelsize=min(_SIZE - 1, 72 * panel / k))
        if i == 0:
            axes.set_title(column_names[j], fontsize=_SIZE, color=theme.ink, fontweight="bold")
        if j == columns - 1:
            axes.annotate(
                row_names[i],
                (1.04, 0.5),
                xycoords="axes fraction",
                rotation=270,
                va="center",
                fontsize=_SIZE,
                color=theme.ink,
                fontweight="bold",
            )
    figure.supxlabel("predicted class", fontsize=_SIZE, color=theme.muted)
    figure.supylabel("true class", fontsize=_SIZE, color=theme.muted)
    return _png(figure)


def spread(groups: Shaped[np.ndarray, " n"], most: int, seed: int = 0) -> Int[np.ndarray, " m"]:
    """At most `most` row numbers, in order; groups keep their shares, and one row of each at least."""
    rank = np.empty(len(groups))
    order = np.random.default_rng(seed).permutation(len(groups))
    for name in np.unique(groups):
        rows = order[groups[order] == name]
        rank[rows] = np.arange(len(rows)) / len(rows)
    return np.sort(np.argsort(rank, kind="stable")[:most])


def project(vectors: Float32[np.ndarray, "n d"], seed: int = 0) -> tuple[Float[np.ndarray, "n 2"], str]:
    """Two coordinates a vector, and how they were found.

    50 principal components, then UMAP, or t-SNE where umap-learn is not installed; components alone below 5 vectors.
    """
    plane = np.zeros((len(vectors), 2))
    if (vectors == vectors[0]).all():
        return plane, "principal components"
    components = min(50, *vectors.shape)
    coordinates = PCA(components, svd_solver="full").fit_transform(vectors.astype(np.float64))
    plane[:, : min(2, components)] = coordinates[:, :2]
    if len(vectors) < 5:
        return plane, "principal components"
    neighbours = _umap(coordinates, seed)
    if neighbours is not None:
        return neighbours, "principal components and UMAP"
    start = plane / plane[:, 0].std() * 1e-4
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # On several threads the sum over all pairs is rounded in any order, and TSNE's n_jobs does not reach it.
    with threadpool_limits(1, "openmp"):
        tsne = TSNE(perplexity=perplexity, init=start, random_state=seed, max_iter=600)
        return tsne.fit_transform(coordinates).astype(np.float64), "principal components and t-SNE"


def _umap(coordinates: Float[np.ndarray, "n c"], seed: int) -> Float[np.ndarray, "n 2"] | None:
    """None where umap-learn is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, and of few vectors
        try:
            from umap import UMAP
        except ImportError:
            return None
        neighbours = min(15, len(coordinates) - 1)
        way = "random" if len(coordinates) < 20 else "spectral"
        umap = UMAP(n_neighbors=neighbours, init=way, random_state=seed, n_jobs=1)
        return umap.fit_transform(coordinates).astype(np.float64)


def latent_space(
    plane: Float[np.ndarray, "n 2"],
    labels: Shaped[np.ndarray, " n"],
    laboratories: Shaped[np.ndarray, " n"],
    theme: Theme,
) -> bytes:
    """The projected vectors twice: coloured by class and by laboratory."""
    figure = Figure(figsize=(11.0, 6.2), layout="constrained")
    for axes, title, groups in zip(
        figure.subplots(1, 2), ("by class", "by laboratory"), (labels, laboratories), strict=True
    ):
        names = np.unique(groups)
        # Drawn in one shuffled order, so that no group lies on top of all others.
        order = np.random.default_rng(0).permutation(len(groups))
        size = float(np.clip(9000 / len(groups), 9, 40))
        height = np.argsort(order)
        for index, name in enumerate(names):
            rows = groups == name
            for part in np.array_split(np.flatnonzero(rows)[np.argsort(height[rows])], 8):
                axes.scatter(
                    *plane[part].T,
                    s=size,
                    c=_COLOURS[index % len(_COLOURS)],
                    marker=_MARKERS[index % len(_MARKERS)],
                    linewidths=0,
                    alpha=0.75,
                    zorder=2 + float(height[part].mean()) / len(groups) if len(part) else 2,
                )
            axes.scatter(
                [],
                [],
                s=42,
                c=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                linewidths=0,
                label=_literal(f"{name} ({rows.sum()})"),
            )
        axes.set_title(title, fontsize=_SIZE + 2, color=theme.ink, fontweight="bold", loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        _frame(axes, theme)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.01),
            ncols=3,
            frameon=False,
            fontsize=_SIZE,
            labelcolor=theme.ink,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    return _png(figure)


def few_cell_curves(panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], theme: Theme) -> bytes:
    """Panel -> laboratory -> number of cells -> scores of the draws: the mean as a line, all draws as a band.

    Scores at 0 cells, without any statistics of the target, are drawn as a mark at the left.
    """
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(min(11.0, 4.2 * across), 3.0 * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, laboratories) in zip(grid.flat, panels.items(), strict=False):
        least = min((size for of in laboratories.values() for size in of if size), default=2)
        for number, (name, of_sizes) in enumerate(laboratories.items()):
            colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
            sizes = sorted(size for size in of_sizes if size)
            means = [100 * float(np.mean(of_sizes[size])) for size in sizes]
            axes.plot(sizes, means, color=colour, marker=marker, ms=4, lw=1.5, label=_literal(name))
            low, high = ([100 * end(of_sizes[size]) for size in sizes] for end in (min, max))
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0)
            if 0 in of_sizes:
                axes.plot(
                    [least / 2], [100 * float(np.mean(of_sizes[0]))], color=colour, marker=marker, ms=6, mfc="none"
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _, least=least: "0" if x == least / 2 else f"{x:g}")
        ticks = sorted({size for of in laboratories.values() for size in of if size} | {least / 2})
        axes.set_xticks(ticks, minor=False)
        axes.set_xticks([], minor=True)
        axes.set_title(_literal(title), fontsize=_SIZE, color=theme.ink, loc="left", fontweight="bold")
        axes.grid(axis="y", color=theme.line, lw=0.6)
        axes.tick_params(length=0, labelsize=_SIZE - 1, labelcolor=theme.muted)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(theme.line)
    figure.supxlabel("unlabelled cells of the target", fontsize=_SIZE, color=theme.muted)
    handles, names = grid.flat[0].get_legend_handles_labels()
    # Above: below it would lie on the label of the axes, for which no room is made there.
    figure.legend(
        handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=_SIZE, labelcolor=theme.ink
    )
    return _png(figure)


def training_curves(columns: dict[str, Float[np.ndarray, " steps"]], theme: Theme) -> bytes:
    """A panel for every column but `step`, over `step`; NaN where a column has no value at a step.

    Where there are many steps the values are drawn pale, and their running median over a fiftieth of them
    dark.
    """
    steps = columns["step"]
    curves = {name: values for name, values in columns.items() if name != "step"}
    across = min(4, len(curves))
    down = math.ceil(len(curves) / across)
    figure = Figure(figsize=(11.0 if across > 2 else 3.6 * across, 1.9 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(grid.flat, curves.items(), strict=False):
        known = np.isfinite(values)
        x, y = steps[known], values[known]
        window = len(y) // 50
        axes.plot(
            x, y, color=theme.accent, lw=0.8 if window > 1 else 1.6, alpha=0.4 if window > 1 else 1,
            marker="o" if len(y) < 12 else None, ms=3,
        )  # fmt: skip
        if window > 1:
            axes.plot(x, _running_median(y, window), color=theme.accent, lw=1.7)
        axes.set_title(name.replace("_", " "), fontsize=_SIZE, color=theme.ink, loc="left", fontweight="bold")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=theme.line, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=_SIZE - 1, labelcolor=theme.muted)
        axes.yaxis.get_offset_text().set(color=theme.muted, fontsize=_SIZE - 2)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(theme.line)
    figure.supxlabel("step", fontsize=_SIZE, color=theme.muted)
    return _png(figure)


def cell_with_masks(
    image: UInt8[np.ndarray, "h w 3"],
    predicted: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "h w"] | None = None,
    width: int = 260,
) -> bytes:
    """A cell, `width` pixels wide, with the outlines of its predicted (solid) and true mask (dashed)."""
    height, across = predicted.shape
    figure = Figure(figsize=(width / 100, width * height / across / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, interpolation="bicubic")
    if truth is not None:
        _contour(axes, truth, TRUE, (0, (3, 2)))
    _contour(axes, predicted, PREDICTED, "solid")
    axes.set_xlim(-0.5, across - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return file.getvalue()


def image_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The pixels as they are."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return file.getvalue()


def _contour(axes: Axes, mask: Bool[np.ndarray, "h w"], colour: str, style: object) -> None:
    if not mask.any():
        return  # nothing to draw, and matplotlib warns
    # A rim of background closes the outline of a mask that touches the border.
    rim = np.pad(mask, 1).astype(float)
    y, x = (np.arange(size) - 1.0 for size in rim.shape)
    inside = (np.clip(x, -0.3, mask.shape[1] - 0.7), np.clip(y, -0.3, mask.shape[0] - 0.7))
    lines = axes.contour(*inside, rim, [0.5], colors=[colour], linewidths=2.2, linestyles=[style])
    lines.set_path_effects([patheffects.withStroke(linewidth=3.4, foreground="#00000060"), patheffects.Normal()])


def _running_median(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    half = window // 2
    padded = np.pad(values, half, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)


def _scale(theme: Theme) -> dict[str, Any]:
    ramp = LinearSegmentedColormap.from_list("paper to ink", [theme.low, theme.high])
    return {"cmap": ramp, "vmin": 0.0, "vmax": 1.0, "aspect": "equal"}


def _literal(name: str) -> str:
    """A name that is drawn as it is: between two dollars Matplotlib would look for a formula."""
    return name.replace("$", r"\$")


def _wrapped(title: str, inches: float) -> str:
    """The title of a panel in lines as wide as it, but for a longer word."""
    letters = int(72 * inches / (0.58 * (_SIZE + 1)))  # 0.58: width over size of a bold letter, on average
    return "\n".join(textwrap.fill(line, letters, break_long_words=False) for line in title.split("\n"))


def _matrix(axes: Axes, values: Float[np.ndarray, "r c"], theme: Theme, annotate: bool) -> None:
    axes.imshow(values, **_scale(theme))
    if annotate:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                _number(axes, float(j), float(i), float(value), theme)
    axes.tick_params(length=0, labelsize=_SIZE, labelcolor=theme.ink)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _number(axes: Axes, x: float, y: float, value: float, theme: Theme) -> None:
    # The scale runs from paper to ink: its dark half wants paper-coloured digits.
    colour = theme.low if value > 0.58 else theme.muted if value < 0.005 else theme.ink
    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=_SIZE - 1, color=colour)


def _outline(i: int, theme: Theme) -> Rectangle:
    return Rectangle((i - 0.47, i - 0.47), 0.94, 0.94, fill=False, ec=theme.ink, lw=1.1)


def _frame(axes: Axes, theme: Theme) -> None:
    for spine in axes.spines.values():
        spine.set_color(theme.line)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Laid out twice: what is square shrinks only after a first layout has given its title room.
    figure.draw_without_rendering()
    # No version in the file: the same run gives the same bytes.
    figure.savefig(file, format="png", dpi=_DPI, transparent=True, metadata={"Software": None})
    return file.getvalue()
