import io
import itertools
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from dorl_jax.evaluation import plots


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def coloured(image, colour, tolerance=60):
    """Where the pixels are near a colour."""
    return (np.abs(image[..., :3] - rgb(colour)).sum(axis=-1) < tolerance) & (image[..., 3] > 200)


@pytest.fixture
def disc():
    y, x = np.mgrid[:64, :64]
    return np.hypot(y - 31.5, x - 31.5)


def test_outlines_lie_on_the_rims_of_the_masks(disc):
    image = np.full((64, 64, 3), 120, np.uint8)
    drawn = pixels(plots.cell_with_masks(image, disc < 14, disc < 26, width=256))
    assert drawn.shape == (256, 256, 4)
    y, x = np.mgrid[:256, :256]
    radius = np.hypot(y - 127.5, x - 127.5) / 4
    predicted, true = coloured(drawn, plots.PREDICTED), coloured(drawn, plots.TRUE)
    assert np.abs(radius[predicted] - 14).max() < 1.6
    assert np.abs(radius[true] - 26).max() < 1.6
    # The predicted one is whole, the true one dashed: all and about half of the directions.
    angle = np.arctan2(y - 127.5, x - 127.5)
    seen = [len(np.unique((angle[where] * 30 / np.pi).astype(int))) for where in (predicted, true)]
    assert seen[0] > 55
    untouched = (np.abs(radius - 14) > 4) & (np.abs(radius - 26) > 4)
    assert np.abs(drawn[untouched][:, :3] - 120).max() <= 1
    assert predicted.sum() / 14 > true.sum() / 26


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks_are_drawn_without_a_warning(value):
    image = np.full((32, 48, 3), 120, np.uint8)
    drawn = pixels(plots.cell_with_masks(image, np.full((32, 48), value), width=240))
    assert drawn.shape == (160, 240, 4)
    rim = coloured(drawn, plots.PREDICTED)
    assert rim.any() == value
    assert not rim[8:-8, 8:-8].any()


def test_image_png_keeps_every_pixel():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    np.testing.assert_array_equal(pixels(plots.image_png(image))[..., :3], image)


def test_spread_keeps_shares_and_every_group():
    groups = np.repeat(["common", "less", "rare"], [3000, 1000, 2])
    chosen = plots.spread(groups, 400)
    assert len(chosen) == len(set(chosen)) == 400
    assert (np.diff(chosen) > 0).all()
    names, counts = np.unique(groups[chosen], return_counts=True)
    assert names.tolist() == ["common", "less", "rare"]
    assert counts == pytest.approx([300, 100, 1], abs=2)
    np.testing.assert_array_equal(plots.spread(groups, 400), chosen)
    np.testing.assert_array_equal(plots.spread(groups, 10_000), np.arange(4002))


def test_projection_keeps_neighbours_together():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 40)
    vectors = (20 * np.eye(12)[groups] + random.normal(size=(160, 12))).astype(np.float32)
    plane, _ = plots.project(vectors)
    assert KNeighborsClassifier(5).fit(plane, groups).score(plane, groups) == 1.0
    np.testing.assert_array_equal(plots.project(vectors)[0], plane)


@pytest.mark.parametrize(("cells", "dimensions"), [(1, 3), (2, 3), (4, 1), (5, 1), (6, 2), (20, 1), (7, 100)])
def test_projection_of_few_cells(cells, dimensions):
    vectors = np.random.default_rng(0).normal(size=(cells, dimensions)).astype(np.float32)
    plane, _ = plots.project(vectors)
    assert plane.shape == (cells, 2)
    assert np.isfinite(plane).all()


def test_projection_of_equal_vectors_is_one_point():
    np.testing.assert_array_equal(plots.project(np.ones((9, 4), np.float32))[0], np.zeros((9, 2)))


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK])
def test_heat_map_is_darker_ink_where_accuracy_is_higher(theme):
    values = np.array([[1.0, 0.0], [0.0, 1.0]])
    drawn = pixels(plots.heat_maps({"SVM": values}, ["a", "b"], np.array([0.0, 0.0]), theme))
    high, low = (coloured(drawn, colour, 12) for colour in (theme.high, theme.low))
    # Two of six squares (two rows and the floor) are at the top of the scale, four at the bottom.
    assert low.sum() / high.sum() == pytest.approx(2, rel=0.15)
    rows, columns = np.nonzero(high)
    assert np.corrcoef(rows, columns)[0, 1] > 0.6


def test_on_white_what_was_drawn_stays_and_nothing_shines_through():
    transparent = plots.heat_maps({"SVM": np.eye(2)}, ["a", "b"], np.zeros(2), plots.LIGHT)
    before, after = pixels(transparent), pixels(plots.on_white(transparent))
    assert (before[..., 3] == 0).any()
    share = before[..., 3:] / 255
    np.testing.assert_allclose(after[..., :3], share * before[..., :3] + (1 - share) * 255, atol=1)
    assert (after[..., 3] == 255).all()


@pytest.mark.parametrize("laboratories", [2, 4])
def test_titles_of_heat_maps_are_neither_cut_nor_over_each_other(monkeypatch, laboratories):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *file, **how: figures.append(figure))
    names = [f"hospital_{number}" for number in range(laboratories)]
    titles = ["this run, self_training\nunlabelled target", "colour_texture, co_training\nunlabelled target"]
    for given in (
        ["random forest", "logistic regression, balanced"],
        titles,
        [*titles, "logistic regression, balanced"],
    ):
        plots.heat_maps({title: np.eye(laboratories) for title in given}, names, np.zeros(laboratories), plots.LIGHT)
        figure = figures.pop()
        figure.draw_without_rendering()
        boxes = [axes.title.get_window_extent() for axes in figure.axes]
        assert len(boxes) == len(given)
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("laboratories", [2, 9])
def test_nothing_is_written_over_the_names_of_few_cell_curves(monkeypatch, laboratories):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *file, **how: figures.append(figure))
    curves = {f"hospital_{number}": {0: [0.2], 5: [0.3, 0.4], 10: [0.5]} for number in range(laboratories)}
    plots.few_cell_curves({"ours: accuracy": curves, "ours: macro-F1": curves}, plots.LIGHT)
    (figure,) = figures
    figure.draw_without_rendering()
    names = figure.legends[0].get_window_extent()
    inside = [one for axes in figure.axes for one in axes.get_children() if isinstance(one, Text) and one.get_text()]
    assert len(inside) == 2  # the titles
    assert len(figure.texts) == 1  # what the axes count
    assert not any(names.overlaps(one.get_window_extent()) for one in [*figure.texts, *inside])


def test_names_with_dollars_are_no_formulas(monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *file, **how: figures.append(figure))
    names = ["a $x^$ b", r"a $\foo$ b"]
    plots.heat_maps({name: np.eye(2) for name in names}, names, np.zeros(2), plots.LIGHT)
    plots.confusion_grid(np.ones((1, 1, 2, 2), int), names, names[:1], names[1:], plots.LIGHT)
    plots.few_cell_curves({name: {name: {0: [0.2], 5: [0.3]} for name in names} for name in names}, plots.LIGHT)
    plots.latent_space(np.eye(2), np.array(names), np.array(names), plots.LIGHT)
    for figure in figures:
        figure.draw_without_rendering()
    assert len(figures) == 4


@pytest.mark.parametrize("classes", [2, 13])
def test_confusion_grid_divides_by_the_row(classes):
    counts = np.zeros((1, 1, classes, classes), int)
    counts[0, 0] = np.diag(np.arange(1, classes + 1) * 7)
    names = [f"class {i}" for i in range(classes)]
    even = plots.confusion_grid(counts, names, ["from a"], ["on b"], plots.LIGHT)
    counts[0, 0] = np.eye(classes, dtype=int)
    assert even == plots.confusion_grid(counts, names, ["from a"], ["on b"], plots.LIGHT)
    high = coloured(pixels(even), plots.LIGHT.high, 12)
    rows, columns = np.nonzero(high)
    assert np.corrcoef(rows, columns)[0, 1] > 0.6


def test_confusion_grid_leaves_untested_classes_blank():
    counts = np.array([[[[5, 0], [0, 0]]]])
    drawn = pixels(plots.confusion_grid(counts, ["a", "b"], ["from x"], ["on y"], plots.LIGHT))
    high, low = (coloured(drawn, colour, 12) for colour in (plots.LIGHT.high, plots.LIGHT.low))
    assert low.sum() == pytest.approx(high.sum(), rel=0.15)  # one square each, none in the second row


def test_latent_space_draws_every_group_in_its_colour():
    random = np.random.default_rng(0)
    plane = random.normal(size=(300, 2))
    labels = np.repeat([f"class {i}" for i in range(13)], 24)[:300]
    drawn = pixels(plots.latent_space(plane, labels, np.full(300, "one"), plots.LIGHT))
    assert drawn.shape[1] == 11 * 192
    for colour in ("#0072B2", "#E69F00", "#009E73"):
        assert coloured(drawn, colour).sum() > 300


@pytest.mark.parametrize("steps", [1, 5, 400])
def test_training_curves_with_gaps(steps):
    values = np.linspace(1, 0, steps)
    sparse = np.where(np.arange(steps) % 3 == 0, values, np.nan)
    drawn = pixels(plots.training_curves({"step": np.arange(steps) * 1.0, "loss": values, "iou": sparse}, plots.LIGHT))
    halves = np.array_split(coloured(drawn, plots.LIGHT.accent), 2, axis=1)
    assert all(half.sum() > 20 for half in halves)


def test_figures_are_the_same_bytes_every_time():
    columns = {"step": np.arange(9.0), "loss": np.arange(9.0)}
    assert plots.training_curves(columns, plots.DARK) == plots.training_curves(columns, plots.DARK)


def test_no_warning_from_long_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = ["a laboratory with a very long name indeed " + str(i) for i in range(8)]
        plots.heat_maps({f"c{i}": np.eye(8) for i in range(6)}, names, np.ones(8) / 3, plots.LIGHT)
