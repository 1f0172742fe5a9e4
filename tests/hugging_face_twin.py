"""`transformers.SamModel` on random weights, and `Sam` on the same ones.

Their attribute, ours: hidden_size, width; num_hidden_layers, depth; num_attention_heads, heads; mlp_dim, mlp_hidden or
hidden; output_channels, out_channels; window_size, window; global_attn_indexes, global_blocks; num_pos_feats, half of
out_channels; mask_input_channels, mask_prompt_hidden; num_multimask_outputs, multimask_outputs; iou_head_depth,
iou_depth; iou_head_hidden_dim, iou_hidden; layer_norm_eps of the mask decoder, epsilon. attention_downsample_rate can
only be 2: it reaches the last attention alone, while those inside the two-way blocks are always halved.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import pytest

from dorl_jax.models import Sam, SamConfig
from weights_conversion.hugging_face import as_official
from weights_conversion.key_map import load
from weights_conversion.sam_rules import SAM_RULES
from weights_conversion.sources import open_state_dict

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
transformers = pytest.importorskip("transformers", reason="needs Hugging Face transformers")

Prompts = Mapping[str, np.ndarray]  # points (B, P, N, 2), labels (B, P, N), boxes (B, P, 4), masks (B, 4h, 4w)


def their_config(config: SamConfig) -> "transformers.SamConfig":
    """The configuration of a `SamModel` of our shape, which must be square as theirs are."""
    encoder, decoder = config.encoder, config.decoder
    channels = encoder.out_channels
    assert decoder.downsample == 2
    return transformers.SamConfig(
        vision_config={
            "image_size": encoder.side,
            "patch_size": encoder.patch_size,
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.heads,
            "global_attn_indexes": list(encoder.global_blocks),
            "window_size": encoder.window,
            "output_channels": channels,
            "mlp_dim": encoder.mlp_hidden or 4 * encoder.width,
            "num_pos_feats": channels // 2,
        },
        prompt_encoder_config={
            "image_size": encoder.side,
            "patch_size": encoder.patch_size,
            "hidden_size": channels,
            "mask_input_channels": config.mask_prompt_hidden,
        },
        mask_decoder_config={
            "hidden_size": channels,
            "mlp_dim": decoder.hidden,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads,
            "num_multimask_outputs": decoder.multimask_outputs,
            "iou_head_depth": decoder.iou_depth,
            "iou_head_hidden_dim": decoder.iou_hidden or channels,
            "layer_norm_eps": decoder.epsilon,
        },
        attn_implementation="eager",
    )


def mean_and_deviation(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Of a random tensor of that name, so that none is constant and activations and scores are of order 1."""
    if "positional_embedding" in name:
        return 0, 1
    if name.endswith("bias"):
        return 0, 0.1
    if len(shape) == 1:
        return 1, 0.1
    if "rel_pos" in name:
        return 0, 0.3
    if "point_embed." in name or name.endswith(
        ("_token.weight", "_tokens.weight", "pos_embed", "no_mask_embed.weight")
    ):
        return 0, 0.5
    return 0, math.prod(shape[1:]) ** -0.5


def twins(config: SamConfig, seed: int = 0) -> "tuple[transformers.SamModel, Sam]":
    """Theirs and ours."""
    with torch.device("meta"):  # their own random values are not needed
        theirs = transformers.SamModel(their_config(config))
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.tie_weights()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            mean, deviation = mean_and_deviation(name, tuple(parameter.shape))
            parameter.normal_(mean, deviation, generator=random)
    return theirs, as_sam(config, theirs.state_dict())


def as_sam(config: SamConfig, tensors: "Mapping[str, torch.Tensor]") -> Sam:
    """Tensors under their names in our layout: weights, or gradients, which are laid out as the weights are."""
    source, _ = as_official(open_state_dict({name: tensor.detach().numpy() for name, tensor in tensors.items()}))
    return load(lambda rngs: Sam(config, rngs=rngs), source, SAM_RULES)


def their_pixels(config: SamConfig, images: "torch.Tensor") -> "torch.Tensor":
    """Images (B, H, W, 3) of 0..255, normalised, channels first."""
    mean, std = torch.tensor(config.pixel_mean), torch.tensor(config.pixel_std)
    return ((images - mean) / std).permute(0, 3, 1, 2)


def their_answer(
    model: "transformers.SamModel", embedding: "torch.Tensor", prompts: Prompts, multimask: bool
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Logits (B, P, 4h, 4w, M) and predicted IoU (B, P, M)."""
    tensors = {name: torch.from_numpy(prompt) for name, prompt in prompts.items()}
    out = model(
        image_embeddings=embedding,
        input_points=tensors.get("points"),
        input_labels=tensors.get("labels"),
        input_boxes=tensors.get("boxes"),
        input_masks=tensors["masks"][:, None] if "masks" in tensors else None,
        multimask_output=multimask,
    )
    return out.pred_masks.permute(0, 1, 3, 4, 2), out.iou_scores


def our_answer(
    model: Sam, embedding: jnp.ndarray, prompts: Prompts, multimask: bool
) -> tuple[jnp.ndarray, jnp.ndarray]:
    """The same of ours."""
    given = dict(prompts)
    if not given:
        out = model.predict(embedding, multimask=multimask)
        return out["low_res_logits"][:, None], out["iou"][:, None]
    if "masks" in given:  # theirs is one an image, whatever the number of other prompts
        masks = given["masks"]
        sets = next((prompt.shape[1] for name, prompt in given.items() if name != "masks"), 1)
        given["masks"] = jnp.broadcast_to(masks[:, None], (len(masks), sets, *masks.shape[1:]))
    points = (given["points"], given["labels"]) if "points" in given else None
    out = model.predict(embedding, points, given.get("boxes"), given.get("masks"), multimask)
    return out["low_res_logits"], out["iou"]
