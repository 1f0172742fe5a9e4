"""BC-SAM's convolutional autoencoder into `dorl_jax.models.ConvAutoencoder`."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dorl_jax.errors import InputError
from dorl_jax.models import ConvAutoencoder, ConvAutoencoderConfig
from weights_conversion.key_map import Rule, Transform, conv, conv_transpose, linear, load, module_rules, norm_rules
from weights_conversion.sources import StateDict, drop_prefix, read_state_dict


def _layer_rules(part: str, index: int, kernel: Transform) -> list[Rule]:
    # In the original's two Sequentials a layer is followed by its normalisation and a ReLU.
    layer, norm = rf"{part}\.{3 * index}", rf"{part}\.{3 * index + 1}"
    running = [Rule(rf"{norm}\.running_{name}", f"{part}.norms.{index}.{name}") for name in ("mean", "var")]
    return [
        *module_rules(layer, f"{part}.layers.{index}", kernel),
        *norm_rules(norm, f"{part}.norms.{index}"),
        *running,
    ]


CONV_AUTOENCODER_RULES = (
    *_layer_rules("encoder", 0, linear),
    *_layer_rules("encoder", 1, conv),
    *_layer_rules("encoder", 2, linear),
    *(rule for index in range(7) for rule in _layer_rules("decoder", index, conv_transpose)),
    *module_rules(r"decoder\.21", "decoder.layers.7", conv_transpose),
)

# PyTorch counts batches for another kind of running average, which the original does not use.
_IGNORED = (r"(encoder|decoder)\.\d+\.num_batches_tracked",)


def convert_conv_autoencoder(state_dict: StateDict, *, dtype: DTypeLike = jnp.float32) -> ConvAutoencoder:
    """BC-SAM's autoencoder as a `ConvAutoencoder` in evaluation mode; its shape is read off the tensors.

    Args:
      state_dict: path or mapping (see `read_state_dict`); a common prefix "module.", "bcsam." or "cae." is dropped. The
        original saves whole pickled modules, which are not read: save `module.state_dict()` with PyTorch first.
      dtype: of the model's arithmetic; its parameters are fp32.

    Raises:
      InputError: not such a state dict.
    """
    source = read_state_dict(state_dict)
    for prefix in ("bcsam.", "cae."):
        source = drop_prefix(source, prefix)
    config = _read_config(source)
    model = load(
        lambda: ConvAutoencoder(config, rngs=nnx.Rngs(0), dtype=dtype), source, CONV_AUTOENCODER_RULES, _IGNORED
    )
    model.eval()
    return model


def _read_config(source: dict[str, np.ndarray]) -> ConvAutoencoderConfig:
    def bias(name: str) -> int:
        return _shape(source, f"{name}.bias", 1)[0]

    channels = [bias(f"decoder.{3 * index}") for index in range(7)]
    return ConvAutoencoderConfig(
        width=_shape(source, "encoder.0.weight", 4)[1],
        hidden=bias("encoder.0"),
        latent=bias("encoder.6"),
        decoder_channels=(channels[0], channels[1], channels[2], channels[3], channels[4], channels[5], channels[6]),
    )


def _shape(source: dict[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    if name not in source:
        raise InputError(f"not a convolutional autoencoder's state dict: no tensor {name!r}")
    if source[name].ndim != axes:
        raise InputError(f"{name} has the shape {source[name].shape}, expected {axes} axes")
    return source[name].shape
