"""BC-SAM's convolutional autoencoder into `dorl_jax.models.ConvAutoencoder`, and back."""

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dorl_jax.models import ConvAutoencoder, ConvAutoencoderConfig
from weights_conversion.key_map import Rule, load, module_rules, norm_rules, unload
from weights_conversion.layouts import CONV, CONV_TRANSPOSE, COUNT, POINTWISE, Layout
from weights_conversion.report import Row
from weights_conversion.sources import StateDict, Tensors, drop_prefix, open_state_dict, shape_of

_WHAT = "BC-SAM's autoencoder"


def _layer(part: str, index: int, kernel: Layout) -> list[Rule]:
    # In the original's two Sequentials a layer is followed by its normalisation and a ReLU.
    layer, norm, target = f"{part}.{3 * index}", f"{part}.{3 * index + 1}", f"{part}.norms.{index}"
    return [
        *module_rules(layer, f"{part}.layers.{index}", kernel),
        *norm_rules(norm, target),
        Rule(f"{norm}.running_mean", f"{target}.mean"),
        Rule(f"{norm}.running_var", f"{target}.var"),
        Rule(f"{norm}.num_batches_tracked", f"{target}.batches", COUNT),
    ]


CONV_AUTOENCODER_RULES = (
    *_layer("encoder", 0, POINTWISE),
    *_layer("encoder", 1, CONV),
    *_layer("encoder", 2, POINTWISE),
    *(rule for index in range(7) for rule in _layer("decoder", index, CONV_TRANSPOSE)),
    *module_rules("decoder.21", "decoder.layers.7", CONV_TRANSPOSE),
)


def convert_conv_autoencoder(
    state_dict: StateDict,
    *,
    mesh: Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
    report: list[Row] | None = None,
) -> ConvAutoencoder:
    """BC-SAM's autoencoder as a `ConvAutoencoder` in evaluation mode; its shape is read off the tensors.

    Args:
      state_dict: path or mapping (see `open_state_dict`); a common prefix "module.", "bcsam." or "cae." is dropped. The
        original saves whole pickled modules, which are not read: save `module.state_dict()` with PyTorch first.
      mesh: devices to spread the parameters over (see `parallel.parameter_sharding`); None for the default device.
      dtype: of the model's arithmetic; its parameters are fp32.
      report: gets a row for every tensor (see `report.format_report`).

    Raises:
      InputError: not such a state dict.
    """
    source = open_state_dict(state_dict)
    for prefix in ("bcsam.", "cae."):
        source = drop_prefix(source, prefix)
    config = _read_config(source)
    model = load(
        lambda rngs: ConvAutoencoder(config, rngs=rngs, dtype=dtype),
        source,
        CONV_AUTOENCODER_RULES,
        mesh=mesh,
        report=report,
    )
    model.eval()
    return model


def export_conv_autoencoder(model: ConvAutoencoder, *, report: list[Row] | None = None) -> dict[str, np.ndarray]:
    """The state dict of a `ConvAutoencoder`, for PyTorch: `convert_conv_autoencoder` backwards, to the last bit."""
    return unload(model, CONV_AUTOENCODER_RULES, report=report)


def _read_config(source: Tensors) -> ConvAutoencoderConfig:
    def bias(name: str) -> int:
        return shape_of(source, f"{name}.bias", 1, _WHAT)[0]

    channels = [bias(f"decoder.{3 * index}") for index in range(7)]
    return ConvAutoencoderConfig(
        width=shape_of(source, "encoder.0.weight", 4, _WHAT)[1],
        hidden=bias("encoder.0"),
        latent=bias("encoder.6"),
        decoder_channels=(channels[0], channels[1], channels[2], channels[3], channels[4], channels[5], channels[6]),
    )
