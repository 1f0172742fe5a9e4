"""The losses against recordings of the original code, sums written out, and special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import as_nhwc, deviation, standard_normal
from scipy.ndimage import correlate1d

from dorl_jax.losses import cae_loss, mean_discrepancy, segmentation_loss, ssim


@pytest.fixture(scope="module")
def recorded(golden):
    return np.load(golden / "losses.npz")


def test_recorded_ssim(recorded):
    a, noise = (
        np.random.RandomState(int(recorded[f"ssim_{name}_seed"])).rand(2, 3, 128, 128).astype(np.float32)
        for name in "ab"
    )
    a, b = jnp.asarray(as_nhwc(a)), jnp.asarray(as_nhwc(0.5 * a + 0.5 * noise))
    value, gradient = jax.value_and_grad(ssim)(a, b)
    np.testing.assert_allclose(value, recorded["ssim"], rtol=1e-5)
    assert deviation(np.moveaxis(np.asarray(gradient), -1, 1)[:, :, ::8, ::8], recorded["ssim_grad_a_s8"]) < 1e-4


def test_recorded_segmentation_loss(recorded):
    logits = jnp.asarray(as_nhwc(standard_normal(int(recorded["logits_seed"]), (3, 2, 56, 56))))
    labels = jnp.asarray(recorded["labels"].astype(np.int32))
    losses = segmentation_loss(logits, labels)
    for name, expected in (("loss", "total"), ("ce", "ce"), ("dice", "dice")):
        np.testing.assert_allclose(losses[name], recorded[expected], rtol=1e-5)
    gradient = jax.grad(lambda x: segmentation_loss(x, labels)["loss"])(logits)
    assert deviation(np.moveaxis(np.asarray(gradient), -1, 1)[:, :, ::4, ::4], recorded["grad_logits_s4"]) < 1e-4


def draw(shape, seed):
    return np.random.RandomState(seed).rand(*shape).astype(np.float32)


def test_ssim_against_scipy():
    a, b = draw((2, 20, 17, 3), 0), draw((2, 20, 17, 3), 1)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()

    def blur(x):
        for axis in (1, 2):
            x = correlate1d(x.astype(np.float64), weights, axis=axis, mode="constant")
        return x

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-4)


def test_ssim_of_equal_images_is_one():
    a = draw((1, 16, 16, 3), 0)
    np.testing.assert_allclose(ssim(a, a), 1, rtol=1e-5)


def test_perfect_segmentation():
    labels = (draw((2, 8, 8), 0) > 0.5).astype(np.int32)
    logits = 40 * (jax.nn.one_hot(labels, 2) - 0.5)
    losses = segmentation_loss(logits, labels)
    np.testing.assert_allclose([losses[name] for name in ("loss", "ce", "dice")], 0, atol=1e-5)


def by_hand(projections, domains):
    present = [i for i in range(1, 4) if (domains == i).any() and (domains == 0).any()]
    zero = projections[domains == 0].mean(0) if present else 0
    return sum(((projections[domains == i].mean(0) - zero) ** 2).mean() for i in present)


@pytest.mark.parametrize(
    "domains",
    [
        [0, 1, 2, 3, 0, 1, 2, 3],
        [0, 0, 2, 2, 2, 0, 2, 0],
        [1, 2, 3, 1, 2, 3, 1, 2],
        [0] * 8,
        [0, 1, -1, -1, 2, 0, -1, 1],
    ],
    ids=["all", "two absent", "no first", "one alone", "left out"],
)
def test_mean_discrepancy(domains):
    projections, domains = draw((8, 5), 0), np.array(domains)
    # the same compiled function serves every composition of the batch
    value, gradient = jax.jit(jax.value_and_grad(mean_discrepancy), static_argnums=2)(projections, domains, 4)
    np.testing.assert_allclose(value, by_hand(projections, domains), rtol=1e-5, atol=1e-7)
    assert np.isfinite(np.asarray(gradient)).all()


def test_cae_loss_is_the_sum_of_its_parts():
    out = {"feature": draw((4, 3, 3, 6), 0), "image": draw((4, 12, 12, 3), 1), "projection": draw((4, 5), 2)}
    features, images, domains = draw((4, 3, 3, 6), 3), draw((4, 12, 12, 3), 4), np.array([0, 1, 1, 0])
    losses = cae_loss(out, features, images, domains, 2)
    mse = ((out["feature"] - features) ** 2).mean()
    expected = 1 - ssim(out["image"], images) + 2 * (by_hand(out["projection"], domains) + 0.5 * mse)
    np.testing.assert_allclose(losses["loss"], expected, rtol=1e-5)


def test_weights_of_classes_by_loops():
    rng = np.random.default_rng(5)
    logits, labels = rng.standard_normal((2, 3, 4, 2)).astype(np.float32), rng.integers(0, 2, (2, 3, 4))
    weights = (0.5, 2.0)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    total = sum(weights[k] for k in labels.ravel())
    ce = -sum(weights[labels[i]] * np.log(p[i][labels[i]]) for i in np.ndindex(labels.shape)) / total
    dice = 0.0
    for k, weight in enumerate(weights):
        t = labels == k
        dice += weight * (1 - (2 * p[..., k][t].sum() + 1e-5) / ((p[..., k] ** 2).sum() + t.sum() + 1e-5)) / 2
    found = segmentation_loss(jnp.asarray(logits), jnp.asarray(labels), 0.8, weights)
    np.testing.assert_allclose([found["ce"], found["dice"]], [ce, dice], rtol=1e-5)
    np.testing.assert_allclose(found["loss"], 0.2 * ce + 0.8 * dice, rtol=1e-5)


def test_a_batch_without_a_class_that_weighs():
    """Cross-entropy is of no pixel; Dice of the class that is not there stays, and so do finite gradients."""
    logits = jnp.asarray(np.random.default_rng(6).standard_normal((2, 3, 4, 2)), jnp.float32)
    labels = jnp.zeros((2, 3, 4), jnp.int32)
    loss, gradient = jax.value_and_grad(lambda x: segmentation_loss(x, labels, 0.8, (0.0, 1.0))["loss"])(logits)
    p = np.asarray(jax.nn.softmax(logits))[..., 1]
    np.testing.assert_allclose(loss, 0.8 * (1 - 1e-5 / ((p**2).sum() + 1e-5)) / 2, rtol=1e-5)
    assert np.isfinite(gradient).all()
