"""The pixel encoder against PyTorch, and what it must not see."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dorl_jax.data.views import small_crop
from dorl_jax.models.cae import Cae, CaeConfig
from dorl_jax.models.pixel_encoder import PixelEncoder, in_own_units, shrink, side_multiple

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def encoder():
    return PixelEncoder((16, 24, 8), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).random((2, 16, 16, 3)).astype(np.float32)


def test_the_same_as_in_pytorch(encoder, images):
    x = torch.tensor((images * 255 - 128) / 64).permute(0, 3, 1, 2)
    with torch.no_grad():
        # pixel_unshuffle counts channel, row, column; squares here row, column, channel
        x = torch.nn.functional.pixel_unshuffle(x, 2).reshape(2, 3, 4, 8, 8).transpose(1, 2).reshape(2, 12, 8, 8)
        for index, (conv, norm) in enumerate(zip(encoder.convs, encoder.norms, strict=True)):
            if index:
                x = torch.nn.functional.avg_pool2d(x, 2)
            x = torch.nn.functional.conv2d(
                x, torch.tensor(np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1)), padding=1
            )
            scale, bias = torch.tensor(np.asarray(norm.scale[...])), torch.tensor(np.asarray(norm.bias[...]))
            x = torch.relu(torch.nn.functional.group_norm(x, 8, scale, bias, 1e-5))
    np.testing.assert_allclose(encoder(images), x.mean((2, 3)).numpy(), atol=2e-5)


def test_grey_around_the_cell_is_zero(encoder):
    # what the first convolution sees of it is what it sees beyond the edge
    grey = jnp.full((1, 16, 16, 3), 128 / 255)
    np.testing.assert_allclose(encoder.convs[0](jnp.zeros((1, 8, 8, 12))), 0, atol=1e-7)
    np.testing.assert_allclose(encoder(grey), 0, atol=1e-5)


def test_cells_do_not_mix(encoder, images):
    np.testing.assert_allclose(encoder(images)[1:], encoder(images[1:]), atol=1e-6)


def test_sides_that_can_be_halved():
    assert side_multiple(1) == 2
    assert side_multiple(3) == 8


@pytest.mark.parametrize(("side", "size"), [(128, 48), (128, 64), (48, 48)])
def test_shrunk_as_the_crops_of_training(side, size):
    crops = np.random.RandomState(1).randint(0, 256, (2, side, side, 3), np.uint8)
    expected = np.stack([small_crop(crop, size) for crop in crops])
    found = np.asarray(shrink(crops / np.float32(255), size)) * 255
    # A half is rounded to either side.
    np.testing.assert_allclose(found, expected, atol=1.001)
    assert np.mean(np.abs(found - expected) > 0.1) < 0.01


def test_own_units_are_the_cells():
    rng = np.random.default_rng(0)
    images = np.full((2, 8, 8, 3), 128 / 255, np.float32)
    cells = np.zeros((2, 8, 8), bool)
    cells[0, 2:6, 1:7], cells[1, 3:, :4] = True, True
    for image, cell in zip(images, cells, strict=True):
        image[cell] = rng.uniform(0.7, 1, (cell.sum(), 3))  # nowhere near grey
    found = np.asarray(in_own_units(jnp.asarray(images)))
    assert not found[~cells].any()
    for image, cell, one in zip(images, cells, found, strict=True):
        expected = (image[cell] - image[cell].mean(axis=0)) / (image[cell].std(axis=0) + 4 / 255)
        np.testing.assert_allclose(one[cell], expected, atol=1e-5)


def test_own_units_forget_light():
    """A cell in another light, as far as its sd is not flat, has the same vector."""
    crops = np.random.default_rng(1).uniform(0.6, 1, (2, 16, 16, 3)).astype(np.float32)
    darker = crops * np.array([0.97, 0.9, 0.95], np.float32) + np.array([0, 0.02, 0.01], np.float32)
    own, plain = (PixelEncoder((8, 16), units, rngs=nnx.Rngs(0)) for units in (True, False))
    drift, without = (np.abs(one(crops) - one(darker)).max() / np.abs(one(crops)).max() for one in (own, plain))
    assert drift < 0.01 < 0.03 < without


def test_cell_units_reach_the_encoder():
    """The same weights on grey, given the cell in its own units, see the same."""
    config = replace(CaeConfig.tiny(), pixel_channels=(8, 16), pixel_size=16, vector=("pixels",))
    crops = np.random.default_rng(2).uniform(0.6, 1, (2, 16, 16, 3)).astype(np.float32)
    crops[:, :3] = 128 / 255
    cell, grey = (Cae(replace(config, pixel_units=units), rngs=nnx.Rngs(0)) for units in ("cell", "grey"))
    seen = 128 / 255 + 64 / 255 * in_own_units(jnp.asarray(crops))
    np.testing.assert_allclose(cell.encode_pixels(crops), grey.encode_pixels(seen), atol=1e-5)
    assert np.abs(cell.encode_pixels(crops) - grey.encode_pixels(crops)).max() > 0.01
