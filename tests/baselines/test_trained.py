"""Baselines that are trained: their losses against PyTorch, what they learn from, and that they learn."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dorl_jax.baselines import ae_cfe as ae_cfe_module
from dorl_jax.baselines import bc_sam as bc_sam_module
from dorl_jax.baselines import resnet as resnet_module
from dorl_jax.baselines.ae_cfe import ae_cfe, moment_discrepancy
from dorl_jax.baselines.bc_sam import bc_sam, scaled_config
from dorl_jax.baselines.cells import Cells
from dorl_jax.baselines.fitting import fit, image_target
from dorl_jax.baselines.resnet import resnet
from dorl_jax.baselines.settings import AeCfeSettings, BcSamSettings, ResNetSettings
from dorl_jax.baselines.tokens import mean_tokens, pool, pooled_tokens
from dorl_jax.errors import InputError
from dorl_jax.models.conv_autoencoder import ConvAutoencoderConfig

RNG = np.random.default_rng(2)
SMALL = ResNetSettings(steps=2, batch_size=4, size=16, width=8, folds=4)


def test_tokens_are_pooled_over_the_cell(cells: Cells) -> None:
    mean, pooled = mean_tokens(cells), pooled_tokens(cells)
    for place in (0, 33):
        tokens = cells.features[place].reshape(-1, cells.features[place].shape[-1]).astype(np.float64)
        np.testing.assert_allclose(mean[place], tokens.mean(axis=0), atol=1e-5)
        # Each token as often as its share of cell.
        often = np.repeat(tokens, cells.foreground(place).ravel(), axis=0)
        np.testing.assert_allclose(pooled[place], np.concatenate([often.mean(axis=0), often.std(axis=0)]), atol=1e-5)


def test_without_a_mask_all_tokens_count_alike() -> None:
    tokens = RNG.standard_normal((9, 4)).astype(np.float32)
    found = pool(tokens, np.zeros(9, np.uint8))
    np.testing.assert_allclose(found, np.concatenate([tokens.mean(axis=0), tokens.std(axis=0)]), atol=1e-6)


def test_the_distance_of_moments_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    latents = RNG.standard_normal((30, 6)).astype(np.float32)
    domains = RNG.permutation(np.repeat([0, 1, 2], [12, 10, 8]))

    def divergence(p: Any, q: Any) -> Any:
        return (torch.softmax(q, 0) * (torch.log_softmax(q, 0) - torch.log_softmax(p, 0))).mean()

    parts = [torch.tensor(latents[domains == number]) for number in range(3)]
    expected = 0.0
    for other in parts[1:]:
        expected += float(((parts[0].mean(0) - other.mean(0)) ** 2).mean())
        a, b = torch.cov(parts[0].T), torch.cov(other.T)
        expected += float(0.5 * (divergence(a, b) + divergence(b, a)))
    assert float(moment_discrepancy(jnp.asarray(latents), jnp.asarray(domains), 3)) == pytest.approx(expected, rel=1e-5)
    # A laboratory that is not there, and one of a single cell, whose covariance is not known.
    few = np.where(domains == 2, 1, domains)
    first = float(moment_discrepancy(jnp.asarray(latents), jnp.asarray(few), 2))
    assert float(moment_discrepancy(jnp.asarray(latents), jnp.asarray(few), 4)) == pytest.approx(first, rel=1e-5)


def test_bc_sam_has_the_original_shape_at_the_original_width() -> None:
    assert scaled_config(768, 50) == ConvAutoencoderConfig()
    assert scaled_config(192, 50).decoder_channels == (38, 50, 64, 50, 45, 38, 32)
    half = scaled_config(192, 50, 64)
    assert (half.decoder_channels, len(half.decoder_layers)) == ((38, 50, 64, 50, 45, 32), 7)


def test_targets_are_means_of_pixels() -> None:
    crops = RNG.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    small = np.asarray(image_target(crops, 4))
    np.testing.assert_allclose(small[1, 2, 3], crops[1, 4:6, 6:8].mean(axis=(0, 1)) / 255, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(image_target(crops, 8)), crops / 255, rtol=1e-6)


def test_ae_cfe_wants_its_grid(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ae_cfe_module, "_GRID", 7)
    with pytest.raises(InputError, match="a grid of 7 x 7, the store has 14 x 14"):
        ae_cfe(cells, AeCfeSettings(), 0, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("module", [bc_sam_module, ae_cfe_module], ids=["bc_sam", "ae_cfe"])
def test_autoencoders_learn(cells: Cells, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls, and every cell has a vector of its own."""
    losses = []

    def watched(model: Any, step: Any, batches: Any, optimiser: Any, steps: int, **named: Any) -> None:
        for part in (1, steps):
            losses.append(fit(model, step, batches, optimiser, part, **named)["loss"])

    monkeypatch.setattr(module, "fit", watched)
    if module is bc_sam_module:
        vectors = bc_sam(cells, BcSamSettings(steps=40, batch_size=4, latent=5), 0, progress=False)
    else:
        settings = AeCfeSettings(steps=40, batch_size=4, latent=5, image_channels=4)
        vectors = ae_cfe(cells, settings, 0, progress=False)
    assert losses[1] < 0.9 * losses[0]
    assert vectors.shape == (len(cells), 5)
    assert len(np.unique(vectors, axis=0)) == len(cells)


def of_three(cells: Cells) -> Cells:
    """Every second cell of the second laboratory is of a third."""
    second = cells.manifest.laboratories[1]
    changed = tuple(
        replace(cell, laboratory="third") if cell.laboratory == second and place % 2 else cell
        for place, cell in enumerate(cells.manifest.cells)
    )
    return Cells(
        replace(cells.manifest, cells=changed, laboratories=(*cells.manifest.laboratories, "third")), cells.store
    )


def test_a_source_is_answered_by_networks_that_never_saw_the_cell(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With networks whose answer is the crops that they were trained on."""
    three = of_three(cells)
    first, second, third = three.manifest.laboratories
    trained_on = {
        first: (first,),
        second: (second,),
        third: (third,),
        f"all but {first}": (second, third),
        f"all but {second}": (first, third),
        f"all but {third}": (first, second),
    }
    seen: list[set[bytes]] = []

    def remember(model: object, step: object, batches: Any, *rest: object, **named: object) -> None:
        seen.append({crop.tobytes() for crop in batches})

    def answer(encode: object, model: object, rows: np.ndarray, size: int) -> np.ndarray:
        return np.array([[crop.tobytes() in seen[-1]] * 5 for crop in rows], np.float32)

    monkeypatch.setattr(resnet_module, "_batches", lambda crops, *rest: list(crops))
    monkeypatch.setattr(resnet_module, "fit", remember)
    monkeypatch.setattr(resnet_module, "encode_all", answer)
    vectors = dict(resnet(three, SMALL, 0, progress=False))
    assert list(vectors) == list(trained_on)
    assert len(seen) == 4 * 6
    for number, (source, names) in enumerate(trained_on.items()):
        assert not vectors[source].any()
        own = seen[4 * number : 4 * number + 4]
        # Every cell of the source is in all networks but one, and no other cell is in any.
        counts = [
            sum(resnet_module._resized(cells.crops[place], 16).tobytes() in one for one in own)
            for place in range(len(cells))
        ]
        assert counts == [3 if laboratory in names else 0 for laboratory in three.laboratories]


def test_networks_of_some_sources_are_made(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet_module, "fit", lambda *rest, **named: None)
    three = of_three(cells)
    first, second, third = three.manifest.laboratories

    def made(cells: Cells, which: Any, *rest: str) -> list[str]:
        return [source for source, _ in resnet(cells, replace(SMALL, sources=which), 0, made=rest, progress=False)]

    assert made(three, "one", second) == [first, third]
    assert made(three, "others") == [f"all but {name}" for name in (first, second, third)]
    # Where a laboratory was left out, the others to it are what is asked.
    assert made(replace(three, unseen=(third,)), "both", first) == [second, third, f"all but {third}"]
    assert made(cells, "both") == [first, second]
    with pytest.raises(InputError, match=r"resnet\.sources = 'others' takes three laboratories or more, not 2"):
        made(cells, "others")


def test_laboratories_are_drawn_alike_often_and_classes_by_the_root_of_their_numbers() -> None:
    laboratories = np.repeat(["small", "large"], [5, 160])
    # Of the large one 9 times 16 cells of one class and 16 of another, of the small one a class each.
    targets = np.concatenate([np.arange(5), np.repeat([0, 1], [144, 16])])
    crops = np.full((165, 16, 16, 3), 128, np.uint8)
    crops[np.arange(165), 8, 8] = np.arange(165)[:, None]
    settings = replace(SMALL, batch_size=64)
    batches = resnet_module._batches(crops, targets, laboratories, settings, 0)
    drawn = np.concatenate([next(batches)["target"] for _ in range(60)])
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    # A tenth of each class from the small laboratory, and of the large one 3 : 1 of a half.
    np.testing.assert_allclose(shares, [0.1 + 0.375, 0.1 + 0.125, 0.1, 0.1, 0.1], atol=0.03)


def test_groups_are_on_one_side_of_a_fold(cells: Cells) -> None:
    grouped = tuple(replace(cell, group=f"slide {place // 3}") for place, cell in enumerate(cells.manifest.cells))
    several = Cells(replace(cells.manifest, cells=grouped), cells.store)
    rows = np.flatnonzero(cells.laboratories == cells.manifest.laboratories[0])
    targets = np.unique(cells.labels[rows], return_inverse=True)[1]
    folds = resnet_module._folds(several, rows, targets, 4, 0)
    assert set(folds) == {0, 1, 2, 3}
    for slide in {grouped[row].group for row in rows}:
        assert len({folds[place] for place, row in enumerate(rows) if grouped[row].group == slide}) == 1
    with pytest.raises(InputError, match=r"folds = 9: take 2 or more, and no more than .* has cells \(or groups\), 7"):
        resnet_module._folds(several, rows, targets, 9, 0)


def test_rare_classes_are_no_warning_in_the_folds(cells: Cells) -> None:
    targets = np.zeros(20, int)
    targets[[3, 4]], targets[9] = 1, 2
    folds = resnet_module._folds(cells, np.arange(20), targets, 5, 0)
    assert np.bincount(folds).tolist() == [4] * 5


@pytest.mark.slow
def test_the_network_learns_its_source(cells: Cells) -> None:
    """Synthetic cells of 16 pixels: most of those it never saw are told right."""
    settings = ResNetSettings(steps=60, batch_size=16, size=32, width=8, folds=4)
    source = cells.manifest.laboratories[0]
    vectors = dict(resnet(cells, settings, 0, progress=False))[source]
    np.testing.assert_allclose(np.exp(vectors[cells.laboratories == source]).sum(axis=1), 1, rtol=1e-4)
    own = cells.laboratories == source
    classes = np.unique(cells.labels)
    assert (classes[vectors[own].argmax(axis=1)] == cells.labels[own]).mean() > 0.5


def test_sizes_are_halved_four_times() -> None:
    with pytest.raises(InputError, match=r"resnet\.size = 40: take a multiple of 16"):
        ResNetSettings(size=40)
