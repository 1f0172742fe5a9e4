"""Contrast within laboratories against loops and PyTorch's cross-entropy."""

import jax
import numpy as np
import pytest

from dorl_jax.contrast import contrastive_loss, standardise_in_domains

torch = pytest.importorskip("torch")

DOMAINS = np.array([0, 2, 0, 2, 2, 0, 0], np.int32)
A, B = np.random.RandomState(0).standard_normal((2, 7, 6)).astype(np.float32)


def test_each_domain_has_mean_0_and_sd_1():
    found, of = np.asarray(standardise_in_domains(A, DOMAINS, 3)), DOMAINS
    for domain in (0, 2):
        own = A[of == domain].astype(np.float64)
        expected = (own - own.mean(0)) / np.sqrt(own.var(0) + 1e-4)
        np.testing.assert_allclose(found[of == domain], expected, atol=1e-5)


def test_another_laboratory_s_shift_and_scale_are_gone():
    moved = np.where(DOMAINS[:, None] == 2, 50 * A + 1000, 50 * A)
    found = standardise_in_domains(moved, DOMAINS, 3)
    np.testing.assert_allclose(found, standardise_in_domains(50 * A, DOMAINS, 3), atol=1e-3)


def test_cross_entropy_over_the_views_of_the_laboratory():
    found = contrastive_loss(A, B, DOMAINS, 0.3)
    views = torch.nn.functional.normalize(torch.tensor(np.concatenate([A, B])), dim=1)
    of = np.concatenate([DOMAINS, DOMAINS])
    losses, nearest = [], []
    for view in range(14):
        others = [other for other in range(14) if other != view and of[other] == of[view]]
        scores = views[others] @ views[view] / 0.3
        partner = others.index((view + 7) % 14)
        losses.append(torch.nn.functional.cross_entropy(scores[None], torch.tensor([partner])).item())
        nearest.append(int(scores.argmax()) == partner)
    np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(found["found"], np.mean(nearest), rtol=1e-6)


def test_a_cell_of_another_laboratory_pushes_nothing():
    gradient = jax.grad(lambda b: contrastive_loss(A[:2], b, DOMAINS[:2], 0.3)["loss"])(B[:2])
    # each view's only other of its laboratory is its partner: nothing to tell apart
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert contrastive_loss(A[:2], B[:2], DOMAINS[:2], 0.3)["found"] == 1


def test_equal_views_are_found():
    assert contrastive_loss(A, A, DOMAINS, 0.1)["found"] == 1
