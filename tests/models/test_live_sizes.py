"""A checkpoint brought to other image sizes, square or not, against PyTorch's resizing and Hugging Face's layers."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden import deviation

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
pytest.importorskip("transformers", reason="needs Hugging Face transformers")

from hugging_face_twin import their_pixels, twins  # noqa: E402

from dorl_jax.models import ImageEncoderConfig, MaskDecoderConfig, SamConfig  # noqa: E402
from weights_conversion import convert_sam  # noqa: E402

pytestmark = pytest.mark.slow

# Made for a grid of 5 x 5. Blocks 0 and 2 attend within windows of 3 x 3, 1 and 3 over the grid.
CONFIG = SamConfig(
    ImageEncoderConfig(40, 8, 12, 4, 3, (1, 3), 3, 16), MaskDecoderConfig(heads=2, hidden=24, epsilon=1e-6)
)


def their_embedding(model, images: np.ndarray) -> "torch.Tensor":
    """Their encoder piece by piece: as a whole it takes images of one size alone."""
    encoder = model.vision_encoder
    with torch.no_grad():
        x = encoder.patch_embed.projection(their_pixels(CONFIG, torch.from_numpy(images)))
        table = encoder.pos_embed.permute(0, 3, 1, 2)
        table = torch.nn.functional.interpolate(table, x.shape[2:], mode="bilinear", align_corners=False)
        x = (x + table).permute(0, 2, 3, 1)
        for layer in encoder.layers:  # those of the whole grid resize their tables to the grid they meet
            out = layer(x)
            x = out[0] if isinstance(out, tuple) else out
        return encoder.neck(x).permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(48, 64), (64, 24), (40, 80), (96, 96), (24, 24)], ids=str)
def test_embedding(size):
    theirs, _ = twins(CONFIG)
    ours = convert_sam(theirs.state_dict(), image_size=size, decoder_heads=2)
    assert ours.config.encoder.image_shape == size
    images = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    embedding = ours.encode_image(images)["embedding"]
    assert deviation(np.asarray(embedding), their_embedding(theirs, images).numpy()) < 1e-5


def test_positions_of_the_decoder():
    """Centres of the tokens in the unit square, whatever its sides."""
    theirs, _ = twins(CONFIG)
    prompts = convert_sam(theirs.state_dict(), image_size=(48, 64), decoder_heads=2).prompt_encoder
    rows, columns = np.meshgrid((np.arange(6) + 0.5) / 6, (np.arange(8) + 0.5) / 8, indexing="ij")
    matrix = theirs.shared_image_embedding.positional_embedding.detach().double().numpy()
    angles = 2 * np.pi * ((2 * np.stack([columns, rows], -1) - 1) @ matrix)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    np.testing.assert_allclose(prompts.dense_positions(), expected, atol=1e-5)
    # the corner of a box at the centre of a token has that token's position, and the embedding of a first corner
    sparse, _ = prompts(1, boxes=jnp.array([[27.5, 11.5, 60.0, 40.0]]))
    corner = sparse[0, 0] - prompts.point_embeddings[2][...][0]
    np.testing.assert_allclose(corner, expected[1, 3], atol=1e-5)
