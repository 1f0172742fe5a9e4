"""The files of the baselines: whole, made once, and made again where their settings changed."""

import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dorl_jax import config
from dorl_jax.baselines.cells import Cells
from dorl_jax.baselines.settings import BASELINES, BaselineSettings, ResNetSettings
from dorl_jax.errors import InputError
from dorl_jax.stages import baselines as making
from dorl_jax.stages.baselines import baselines, read_baseline

QUICK = ("majority", "mean_token", "pooled_tokens")


def make(cells: Cells, store: Path, out: Path, *names: str, **changed: object) -> dict[str, tuple[Path, ...]]:
    settings = replace(BaselineSettings(names=names or QUICK), **changed)  # type: ignore[arg-type]
    return baselines(cells.manifest, store, out, settings, progress=False)


def test_vectors_are_those_of_the_cells(cells: Cells, store_folder: Path, tmp_path: Path) -> None:
    files = make(cells, store_folder, tmp_path)
    assert files == {name: (tmp_path / f"{name}.parquet",) for name in QUICK}
    latents = read_baseline(tmp_path, "mean_token")[""]
    assert latents.ids.tolist() == cells.ids
    assert latents.laboratories.tolist() == [cell.laboratory for cell in cells.manifest.cells]
    assert latents.labels.tolist() == [cell.label for cell in cells.manifest.cells]
    assert latents.seen is not None
    assert set(latents.seen) == {"unlabelled"}
    np.testing.assert_allclose(latents.vectors[7], cells.features[7].mean(axis=(0, 1)), atol=1e-6)


def test_what_is_there_is_not_made_again(
    cells: Cells, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cells.manifest.laboratories
    begun: list[str] = []
    killed = [True]

    def networks(
        cells: Cells, settings: ResNetSettings, seed: int, made: Collection[str], progress: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        for source in (first, second):
            if source not in made:
                begun.append(f"{settings.steps} {seed} {source}")
                if settings.steps == 3 and source == second and killed:
                    raise KeyboardInterrupt
                yield source, np.full((len(cells), 2), settings.steps, np.float32)

    monkeypatch.setattr(making, "resnet", networks)
    for steps, seed in ((1, 0), (1, 0), (2, 0), (2, 5), (2, 5)):
        files = make(cells, store_folder, tmp_path, "resnet", resnet=ResNetSettings(steps=steps), seed=seed)
    assert begun == [f"{what} {source}" for what in ("1 0", "2 0", "2 5") for source in (first, second)]
    assert files["resnet"] == tuple(tmp_path / f"resnet/{name}.parquet" for name in cells.manifest.laboratories)
    assert list(read_baseline(tmp_path, "resnet")) == list(cells.manifest.laboratories)
    # Half made is not made, and goes on with the sources that are missing; a damaged mark is made again.
    with pytest.raises(KeyboardInterrupt):
        make(cells, store_folder, tmp_path, "resnet", resnet=ResNetSettings(steps=3))
    with pytest.raises(InputError, match="no baseline 'resnet' in .*: make it first"):
        read_baseline(tmp_path, "resnet")
    killed.clear()
    make(cells, store_folder, tmp_path, "resnet", resnet=ResNetSettings(steps=3))
    assert begun[6:] == [f"3 0 {first}", f"3 0 {second}", f"3 0 {second}"]
    assert {name: latents.vectors[0, 0] for name, latents in read_baseline(tmp_path, "resnet").items()} == {
        first: 3,
        second: 3,
    }
    (tmp_path / "resnet.json").write_text("{")
    make(cells, store_folder, tmp_path, "resnet", resnet=ResNetSettings(steps=4))
    assert begun[-2:] == [f"4 0 {first}", f"4 0 {second}"]


def test_what_is_there_is_taken_without_its_store(
    cells: Cells, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, out = tmp_path / "store", tmp_path / "out"
    shutil.copytree(store_folder, copied)
    files = make(cells, copied, out, "mean_token", "majority")
    shutil.rmtree(copied)
    monkeypatch.setattr(making, "mean_tokens", None)
    assert make(cells, copied, out, "mean_token", "majority") == files
    # Of other cells, or not made yet, it cannot be had.
    cut = Cells(replace(cells.manifest, cells=cells.manifest.cells[1:]), cells.store)
    for given, name in ((cut, "mean_token"), (cells, "pooled_tokens")):
        with pytest.raises(InputError, match="no store at .*: store.json is missing"):
            make(given, copied, out, name)
    assert read_baseline(out, "mean_token")[""].ids.tolist() == [cell.id for cell in cells.manifest.cells]


def test_another_seed_makes_nothing_again_that_is_not_trained(
    cells: Cells, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def tokens(cells: Cells) -> np.ndarray:
        made.append(len(cells))
        return np.ones((len(cells), 2), np.float32)

    monkeypatch.setattr(making, "mean_tokens", tokens)
    for seed in (0, 5):
        make(cells, store_folder, tmp_path, "mean_token", seed=seed)
    assert made == [len(cells)]


def test_what_was_seen_is_told(cells: Cells) -> None:
    first, second = cells.manifest.laboratories
    unseen = replace(cells, unseen=(second,))
    assert [cells.manifest.cells[place].laboratory for place in unseen.training] == [first] * 20
    assert not unseen.domains.any()
    vectors = np.zeros((len(cells), 1), np.float32)
    for source, expected in (("", ["unlabelled", "no"]), (second, ["unlabelled", "labelled"])):
        seen = unseen.latents(vectors, source).seen
        assert seen is not None
        assert seen.tolist() == [expected[0]] * 20 + [expected[1]] * 20


def test_labels_that_the_segmenter_saw_are_told(cells: Cells, store_folder: Path, tmp_path: Path) -> None:
    for labels_seen, expected in ((False, "unlabelled"), (True, "labelled")):
        settings = BaselineSettings(names=("majority",))
        baselines(cells.manifest, store_folder, tmp_path, settings, labels_seen=labels_seen, progress=False)
        seen = read_baseline(tmp_path, "majority")[""].seen
        assert seen is not None
        assert set(seen) == {expected}


def test_groups_of_two_laboratories_are_apart(cells: Cells) -> None:
    named = tuple(replace(cell, group="1") for cell in cells.manifest.cells)
    latents = Cells(replace(cells.manifest, cells=named), cells.store).latents(np.zeros((len(cells), 1), np.float32))
    assert latents.groups is not None
    assert set(latents.groups) == {f"{name}/1" for name in cells.manifest.laboratories}


def test_names_and_stores_that_are_refused(cells: Cells, store_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no baseline 'mean_tokens' \(did you mean 'mean_token'\?\); there are: maj"):
        make(cells, store_folder, tmp_path, "mean_tokens")
    with pytest.raises(InputError, match="named twice: majority, majority"):
        make(cells, store_folder, tmp_path, "majority", "majority")
    fewer = Cells(replace(cells.manifest, cells=cells.manifest.cells[1:]), cells.store)
    with pytest.raises(InputError, match="holds other cells"):
        make(fewer, store_folder, tmp_path, "majority")


def test_each_baseline_has_a_maker_and_settings_are_read(cells: Cells) -> None:
    assert list(making._makers(cells, BaselineSettings(), (), False)) == list(BASELINES)
    settings = config.build(BaselineSettings, {"names": ["resnet"], "resnet": {"steps": 7}}, {"ae_cfe.steps": "8"})
    assert (settings.names, settings.resnet.steps, settings.ae_cfe.steps) == (("resnet",), 7, 8)
