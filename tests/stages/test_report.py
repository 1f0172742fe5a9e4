import base64
import csv
import io
import json
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dorl_jax.data.manifest import Cell, Manifest, save_cells
from dorl_jax.errors import InputError
from dorl_jax.evaluation.adaptation import standardise_by_laboratory
from dorl_jax.evaluation.latents import Latents, read_latents, take_rows, write_latents
from dorl_jax.evaluation.results import read_evaluation
from dorl_jax.stages.evaluate import EvaluateSettings, evaluate
from dorl_jax.stages.report import count_confusions, report
from dorl_jax.store import StoreWriter

MALICIOUS = "<script>alert('cell')</script>"
LABELS = ["basophil", "monocyte", MALICIOUS]
LABORATORIES = ["north & co", "south"]


def write_csv(path, header, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])


def copy(evaluated, path):
    path.write_bytes((evaluated / path.parent.name / path.name).read_bytes())


def discs(random, count, size):
    """Painted cells with their masks: (n, size, size, 3) uint8 and (n, size, size) bool."""
    y, x = np.mgrid[:size, :size]
    centres = size / 2 + random.uniform(-3, 3, (2, count, 1, 1))
    masks = np.hypot(y - centres[0], x - centres[1]) < size * random.uniform(0.2, 0.35, (count, 1, 1))
    images = np.where(masks[..., None], (120, 60, 150), (240, 220, 200)).astype(np.uint8)
    return images, masks


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The outcome of one evaluation, to be copied into runs."""
    folder = tmp_path_factory.mktemp("evaluated")
    random = np.random.default_rng(0)
    labels = np.tile(LABELS, 40)
    vectors = 1.2 * np.eye(4)[np.tile(np.arange(3), 40)] + random.normal(size=(120, 4))
    laboratories = np.repeat(LABORATORIES, 60)
    latents = Latents(np.array([f"cell {i}" for i in range(120)]), laboratories, labels, vectors.astype(np.float32))
    write_latents(latents, folder / "embed" / "latents.parquet")
    settings = EvaluateSettings(
        classifiers=("svm_linear", "logistic_regression"),
        headline="logistic_regression",
        resamples=100,
        few_cells=(5, 20),
    )
    evaluate(folder / "embed" / "latents.parquet", folder / "evaluation", settings, progress=False)
    return folder


PARTS = {
    "settings.toml": lambda path, source: path.write_text(f'seed = 1234\nnote = "{MALICIOUS}"\n'),
    "data/cells.parquet": lambda path, source: save_cells(
        Manifest(
            tuple(
                Cell(str(i), laboratory, Path(f"/d/{i}.png"), Path("/d/m.png") if i < 5 else None, LABELS[i % 3])
                for laboratory in LABORATORIES
                for i in range(31)
                if LABORATORIES[i % 2] == laboratory
            ),
            tuple(LABORATORIES),
            tuple(LABELS),
            {},
        ),
        path,
    ),
    "data/failures.csv": lambda path, source: write_csv(
        path, ["id", "image", "reason"], [("7", "/d/7.png", f"no image {MALICIOUS}")]
    ),
    "finetune_sam/metrics.csv": lambda path, source: write_csv(
        path,
        ["step", "loss", "stage", "iou"],
        [(i, 1 / (i + 1), "warm-up", i / 60 if i % 5 == 0 else "") for i in range(60)],
    ),
    "finetune_sam/held_out.json": lambda path, source: path.write_text(
        json.dumps({
            "mean_iou": {"south": 0.8123},
            "cells": [{"id": f"cell {i}", "laboratory": "south", "iou": 0.5 + i / 20} for i in range(10)],
        })
    ),
    "finetune_sam/held_out_samples.npz": lambda path, source: write_samples(
        path, ("image", "truth", "predicted", "laboratory", "iou")
    ),
    "extract/samples.npz": lambda path, source: write_samples(path, ("image", "mask", "laboratory", "label")),
    "train_cae/metrics.csv": lambda path, source: write_csv(
        path, ["step", "loss", "ssim", "mmd", "mse"], [(i, 1 / (i + 1), 0.5, 0, 2) for i in range(200)]
    ),
    "train_cae/samples.npz": lambda path, source: write_samples(
        path, ("target", "reconstruction", "laboratory", "label"), size=128
    ),
    "extract/store": lambda path, source: write_store(path),
    "embed/latents.parquet": lambda path, source: copy(source, path),
    "evaluation/predictions.parquet": lambda path, source: copy(source, path),
    "evaluation/invariance.json": lambda path, source: copy(source, path),
    "evaluation/few_cells.csv": lambda path, source: copy(source, path),
    "evaluation/summary.json": lambda path, source: copy(source, path),
    "evaluation/confusion.json": lambda path, source: copy(source, path),
}  # fmt: skip
CHARTS = {  # figures for light and for dark paper
    "finetune_sam/metrics.csv": 1,
    "train_cae/metrics.csv": 1,
    "embed/latents.parquet": 1,
    "evaluation/summary.json": 2,
    "evaluation/confusion.json": 2,
    "evaluation/few_cells.csv": 1,
}


def write_store(path):
    """Crops whose red tells the number of the cell; the tokens of each are the number, too."""
    writer = StoreWriter(path, [f"cell {i}" for i in range(120)], {})
    features = np.repeat(np.arange(120), 4 * 3).reshape(120, 2, 2, 3).astype(np.float32)
    crops = np.zeros((120, 16, 16, 3), np.uint8)
    crops[..., 0] = np.arange(120)[:, None, None]
    for number, cells in writer.missing():
        writer.write(number, {"feature": features[cells], "crop": crops[cells]})


def write_samples(path, names, size=48):
    random = np.random.default_rng(0)
    images, masks = discs(random, 24, size)
    every = {
        "image": images,
        "target": images,
        "reconstruction": 255 - images,
        "mask": masks,
        "truth": masks,
        "predicted": np.roll(masks, 2, axis=1),
        "laboratory": np.repeat(LABORATORIES, 12),
        "label": np.tile(LABELS, 8),
        "iou": np.linspace(0.3, 0.95, 24).astype(np.float32)[random.permutation(24)],
    }
    np.savez(path, **{name: every[name] for name in names})


@pytest.fixture
def make_run(tmp_path, evaluated):
    def make(parts=PARTS):
        for name in parts:
            path = tmp_path / "real <run>" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            PARTS[name](path, evaluated)
        return tmp_path / "real <run>"

    return make


class Page(HTMLParser):
    """The elements, texts and images of a page; refuses tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "source", "link", "br", "input"})

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.images, self.texts = [], [], [], [], []
        self.html = path.read_text()
        self.feed(self.html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        values = dict(attrs)
        if tag in ("img", "source"):
            self.images.append((tag, values.get("src") or values.get("srcset"), values))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def test_page_holds_everything_and_loads_nothing(make_run):
    run = make_run()
    assert report(run) == run / "report.html"
    page = Page(run / "report.html")
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert MALICIOUS not in page.html
    assert "<script" not in page.html.lower()
    assert "&lt;script&gt;" in page.html
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "srcset", "action"):
            assert value.startswith(("#", "data:image/png;base64,"))
    style = page.html[page.html.index("<style>") : page.html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?://|['\"]//", page.html)
    # Charts in two themes, one more of the tokens before; 8 tiles of 2 laboratories for held-out and extracted cells;
    # 8 pairs of 2; 5 cells of 2 with a neighbour each; 8 cells of 2 called wrong.
    assert len(page.images) == 2 * (sum(CHARTS.values()) + 1) + 2 * 8 * 2 + 2 * 8 * 2 + 2 * 5 * 2 + 2 * 8
    for tag, uri, attributes in page.images:
        image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        image.load()
        assert image.format == "PNG"
        if tag == "img":
            assert attributes["alt"]
        else:
            assert "dark" in attributes["media"]
    hidden = [text for name, text in page.attributes if name == "href"]
    ids = {text for name, text in page.attributes if name == "id"}
    assert {link[1:] for link in hidden} <= ids
    assert not list(run.glob("*.partial"))
    assert "not here yet" not in page.text


def test_page_states_the_figures(make_run):
    run = make_run()
    report(run)
    text = Page(run / "report.html").text
    summary = json.loads((run / "evaluation/summary.json").read_text())
    for one in summary["summaries"]:
        if one["classifier"] == "logistic_regression":
            for part in ("in_domain", "pairs"):
                for score in ("accuracy", "macro_f1"):
                    found = one[part][score]
                    interval = f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"
                    assert f"{100 * found['mean']:.1f} {interval}" in text
            assert f"{one['pairs']['above_floor']} of {one['pairs']['tests']}" in text
    assert "majority floor 33.3" in text
    assert "ceiling 100.0" in text
    best = best_of(summary)
    for mean in summary["means"]:
        if mean["adaptation"] == best:
            for score in ("accuracy", "macro_f1"):
                assert f"{100 * mean[score]['mean']:.1f} ±{100 * mean[score]['sd']:.1f}" in text
    measured = json.loads((run / "evaluation/invariance.json").read_text())["measured"]
    assert f"{measured[0]['probe']:.2f} {measured[0]['probe_forest']:.2f} {measured[0]['robustness']:.2f}" in text
    assert "Chance is 0.50 for the probes" in text
    for comparison in summary["comparisons"]:
        assert f"{100 * comparison['accuracy']['mean']:+.1f} {100 * comparison['accuracy']['low']:+.1f} to" in text
    assert "0.81 south" in text
    assert "south 10 0.812 0.500 cell 0" in text
    assert "real <run>" in text
    assert "seed = 1234" in text
    assert f"no image {MALICIOUS}" in text
    # Cells 0, 2, .. 30 are of the first laboratory; of them 0, 6, .. 30 are basophils; 0, 2, 4 have a mask.
    assert "north & co 6 5 5 16 3" in text
    assert "All 120 vectors of 4 numbers" in text


def best_of(summary):
    """The adaptation that ranks first."""
    own = [one for one in summary["summaries"] if one["classifier"] == "logistic_regression"]
    score = lambda one: one["pairs"]["accuracy"]["mean"] + one["pairs"]["macro_f1"]["mean"]  # noqa: E731
    return max(own, key=score)["adaptation"]


def test_the_cells_called_wrong_by_most_are_shown(make_run):
    """Counted again from the table of predictions; which picture is whose is told by its red."""
    run = make_run()
    report(run)
    page = Page(run / "report.html")
    best = best_of(json.loads((run / "evaluation/summary.json").read_text()))
    wrong, total = {}, {}
    for line in pq.read_table(run / "evaluation/predictions.parquet").to_pylist():
        headline = (line["classifier"], line["adaptation"]) == ("logistic_regression", best)
        if headline and line["source"] != line["laboratory"]:
            key = line["laboratory"], line["id"]
            total[key] = total.get(key, 0) + 1
            wrong[key] = wrong.get(key, 0) + (line["label"] != line["predicted"])
    section = page.html[page.html.index('id="worst"') : page.html.index('id="latent"')]
    uris = re.findall(r'src="data:image/png;base64,([^"]+)" alt="[^"]*: cell"', section)
    shown = [int(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))[0, 0, 0]) for uri in uris]
    assert len(shown) == 16
    assert set(total.values()) == {5}
    for laboratory, cells in zip(LABORATORIES, (shown[:8], shown[8:]), strict=True):
        counts = [wrong[laboratory, f"cell {cell}"] for cell in cells]
        rest = [count for (name, id), count in wrong.items() if name == laboratory and int(id[5:]) not in cells]
        assert counts == sorted(counts, reverse=True)
        assert min(counts) >= max(rest)


def test_confusions_are_of_one_setting(make_run):
    evaluation = read_evaluation(make_run() / "evaluation")
    best = evaluation.ranking()[0]
    names = [best.classifier]
    own = [
        one
        for one in evaluation.confusions
        if (one.method, one.adaptation, one.classifier) == (best.method, best.adaptation, best.classifier)
    ]
    pairs = [one for one in own if one.kind == "pair"]
    assert {one.setting for one in pairs} == {best.setting}
    others = [one if one is not pairs[0] else replace(one, setting="labelled") for one in own]
    of_pairs, of_classifiers = count_confusions(replace(evaluation, confusions=others), best, names)
    at = [list(evaluation.laboratories).index(name) for name in (pairs[0].source, pairs[0].target)]
    assert of_pairs[at[0], at[1]].sum() == 0
    assert of_classifiers[1, 0].sum() == sum(np.sum(one.counts) for one in pairs[1:]) > 0


def test_neighbours_are_the_nearest_of_the_other_laboratory(make_run):
    run = make_run(["embed/latents.parquet", "extract/store"])
    page = Page(report(run))
    section = page.html[page.html.index('id="neighbours"') : page.html.index('id="masks"')]
    uris = re.findall(r'src="data:image/png;base64,([^"]+)"', section)
    cells = [int(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))[0, 0, 0]) for uri in uris]
    assert len(cells) == 20
    latents = standardise_by_laboratory(read_latents(run / "embed/latents.parquet"))
    for query, found in zip(cells[::2], cells[1::2], strict=True):
        distances = {
            other: np.linalg.norm(latents.vectors[other] - latents.vectors[query])
            for other in range(120)
            if latents.laboratories[other] != latents.laboratories[query]
        }
        assert found == min(distances, key=distances.get)


def test_the_worst_masks_are_shown_first(make_run):
    run = make_run(["finetune_sam/held_out_samples.npz"])
    report(run)
    iou = np.load(run / "finetune_sam/held_out_samples.npz")["iou"]
    text = Page(run / "report.html").text
    for laboratory, of in (("north & co", iou[:12]), ("south", iou[12:])):
        shown = re.search(rf"{laboratory}((?: IoU [0-9.]+(?: \(worst\))?)+)", text).group(1)
        values = [float(v) for v in re.findall(r"[0-9.]+", shown)]
        ordered = np.sort(of)
        assert len(values) == 8
        assert values == sorted(values)
        assert values[:2] == [pytest.approx(v, abs=0.006) for v in ordered[:2]]
        assert values[-1] == pytest.approx(ordered[-1], abs=0.006)
        assert shown.count("worst") == 1


def test_reconstructions_stand_beside_their_targets(make_run):
    run = make_run(["train_cae/samples.npz"])
    report(run)
    page = Page(run / "report.html")
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for _, uri, _ in page.images]
    assert len(decoded) == 32
    for target, reconstruction in zip(decoded[::2], decoded[1::2], strict=True):
        np.testing.assert_array_equal(255 - target, reconstruction)


NO_PAGE_ALONE = (
    "settings.toml", "evaluation/confusion.json", "evaluation/predictions.parquet", "evaluation/invariance.json",
    "evaluation/few_cells.csv", "extract/store",
)  # fmt: skip


@pytest.mark.parametrize("part", [name for name in PARTS if name not in NO_PAGE_ALONE])
def test_any_single_part_makes_a_page(make_run, part):
    run = make_run([part])
    page = Page(report(run))
    assert "not here yet" in page.text
    assert len(page.images) >= 2 * CHARTS.get(part, 0)
    for other, chart in CHARTS.items():
        if other != part and other not in NO_PAGE_ALONE:
            assert f"writes {other}" in page.text, chart
    if part != "evaluation/summary.json":
        assert "The stage evaluate writes evaluation/summary.json" in page.text


def test_charts_are_drawn_at_two_pixels_a_css_pixel(make_run):
    run = make_run(["train_cae/metrics.csv"])
    (_, dark, _), (_, light, attributes) = Page(report(run)).images
    sizes = [struct.unpack(">II", base64.b64decode(uri.split(",")[1])[16:24]) for uri in (dark, light)]
    assert sizes[0] == sizes[1]
    assert sizes[0] == pytest.approx((2 * int(attributes["width"]), 2 * int(attributes["height"])), abs=1)


def test_the_same_run_gives_the_same_page(make_run):
    run = make_run(["embed/latents.parquet", "evaluation/summary.json", "extract/samples.npz"])
    first = report(run).read_bytes()
    assert report(run).read_bytes() == first


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match=r"no run folder at .*missing"):
        report(tmp_path / "missing")
    (tmp_path / "settings.toml").write_text("seed = 1\n")
    with pytest.raises(InputError, match=r"nothing to report in .* stage `evaluate`"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("data/cells.parquet", b"", "cells.parquet"),
        ("data/failures.csv", b"id,reason\n", "lacks the column image"),
        ("finetune_sam/metrics.csv", b"loss\n1\n", "lacks the column step"),
        ("finetune_sam/metrics.csv", b"step,stage\n1,warm\n", "holds no numbers over `step`"),
        ("finetune_sam/held_out.json", b'{"mean_iou": {"a": "high"}}', r"cannot be read: .*mean_iou"),
        ("finetune_sam/held_out_samples.npz", b"not a zip", "run the stage `finetune-sam` again"),
        ("extract/samples.npz", b"", "run the stage `extract` again"),
        ("embed/latents.parquet", b"", "not a readable Parquet file"),
        ("evaluation/invariance.json", b"{}", r"cannot be read: .*remark"),
        ("evaluation/few_cells.csv", b"method\n1\n", r"cannot be read: .*seed"),
        ("evaluation/summary.json", b"{}", r"cannot be read: .*rows"),
        ("evaluation/confusion.json", b"[", "cannot be read"),
    ],
)
def test_spoilt_files_are_named(make_run, part, content, message):
    run = make_run([part, "evaluation/summary.json"])
    (run / part).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        report(run)
    assert str(run / part) in str(caught.value)
    assert not (run / "report.html").exists()


def test_pickles_are_refused(make_run):
    run = make_run(["extract/samples.npz"])
    path = run / "extract/samples.npz"
    given = dict(np.load(path))
    np.savez(path, **(given | {"label": np.array([{"a": 1}] * 24, object)}))
    with pytest.raises(InputError, match=r"samples.npz cannot be read: Object arrays cannot be loaded"):
        report(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("mask"), "lacks the array mask"),
        (lambda a: a.update(label=a["label"][:3]), "differ in length"),
    ],
)
def test_incomplete_samples_are_named(make_run, change, message):
    run = make_run(["extract/samples.npz"])
    path = run / "extract/samples.npz"
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        report(run)


def test_a_summary_without_some_pair_is_named(make_run):
    run = make_run(["evaluation/summary.json"])
    path = run / "evaluation/summary.json"
    summary = json.loads(path.read_text())
    pairs = [number for number, mean in enumerate(summary["means"]) if mean["kind"] == "pair"]
    del summary["means"][pairs[0]]
    path.write_text(json.dumps(summary))
    with pytest.raises(InputError, match="lacks the mean of some classifier"):
        report(run)


def test_a_single_laboratory(evaluated, tmp_path):
    """Nothing on its page is of others, and its figures are those within it."""
    cells = read_latents(evaluated / "embed" / "latents.parquet")
    south = take_rows(cells, cells.laboratories == "south")
    (tmp_path / "embed").mkdir()
    write_latents(south, tmp_path / "embed" / "latents.parquet")
    write_store(tmp_path / "extract" / "store")
    settings = EvaluateSettings(
        classifiers=("svm_linear", "logistic_regression"), headline="logistic_regression", adaptations=("none",),
        leave_one_out=False, resamples=100,
    )  # fmt: skip
    found = evaluate(tmp_path / "embed" / "latents.parquet", tmp_path / "evaluation", settings, progress=False)
    page = Page(report(tmp_path))
    best = found.ranking()[0]
    assert f"{100 * best.in_domain.accuracy.mean:.1f}" in page.text
    for other in ("Across laboratories", "Neighbours", "Laboratory to laboratory", "cross-domain"):
        assert other not in page.text, other
    # What is said to be missing is what no stage has made here.
    assert re.findall(r'<p class="absent">([^:]+): not here yet', page.html) == [
        "Held-out cells with true masks", "Predicted masks of all laboratories", "Reconstructions",
        "Curves of the segmentation", "Curves of the autoencoder", "Counts of cells", "The list of files left out",
        "Settings",
    ]  # fmt: skip
    assert "recognised in other cells of it" in page.text
    assert "trained on the other folds called wrong" in page.text
