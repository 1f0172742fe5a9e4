"""The convolutional autoencoder against outputs recorded from the original code."""

import numpy as np
import pytest
from flax import nnx
from golden import as_nhwc, conv_autoencoder_state_dict, deviation, standard_normal

from weights_conversion import convert_conv_autoencoder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs(golden, mode):
    recorded = np.load(golden / "bcsam_autoencoder.npz")
    seed = int(np.load(golden / "cae_vit_b.npz")["feats_seed"])
    model = convert_conv_autoencoder(conv_autoencoder_state_dict(golden))
    getattr(model, mode)()
    out = nnx.jit(lambda model, x: model(x))(model, as_nhwc(standard_normal(seed, (6, 768, 14, 14))))
    image = np.moveaxis(np.asarray(out["image"]), -1, 1)
    assert image.shape == tuple(recorded["image_eval_shape"])
    assert deviation(out["latent"], recorded[f"latent_{mode}"]) < 1e-5
    assert deviation(image[0, :, ::4, ::4], recorded[f"image_{mode}_s4"]) < 2e-5
