"""LoRA-SAM without windows in plain PyTorch, written from the method's description, as an independent twin.

Sizes are read off the tensors. The token grid is one window, as at 224 pixels: every block attends over all of it.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

Parameters = dict[str, torch.Tensor]


def parameters(
    sam: dict[str, np.ndarray], lora: dict[str, np.ndarray], grid: int = 14, dtype: torch.dtype = torch.float32
) -> Parameters:
    """Leaf tensors by name; position tables for that grid; what DoRL trains requires a gradient."""
    named = {name: value for name, value in (sam | lora).items() if name in lora or "image_enc" in name}
    tensors = {name: torch.tensor(value, dtype=dtype) for name, value in named.items()}
    for name, tensor in tensors.items():
        if name.endswith("pos_embed"):
            table = tensor.permute(0, 3, 1, 2)
            resized = F.interpolate(table, (grid, grid), mode="bilinear", align_corners=False)
            tensors[name] = resized.permute(0, 2, 3, 1)
        elif "rel_pos" in name:  # those of a window have this length already, and stay
            size = (2 * grid - 1, tensor.shape[1])
            tensors[name] = F.interpolate(tensor[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in lora and "gaussian_matrix" not in name)
    return tensors


def linear(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def norm(p: Parameters, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)


def norm2d(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    return norm(p, name, x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)


def block(p: Parameters, index: int, x: torch.Tensor) -> torch.Tensor:
    name, (grid, width) = f"image_encoder.blocks.{index}", x.shape[2:]
    size = p[f"{name}.attn.rel_pos_h"].shape[1]
    tokens, heads = grid * grid, width // size
    y = norm(p, f"{name}.norm1", x, 1e-6).reshape(-1, tokens, width)
    q, k, v = linear(p, f"{name}.attn.qkv", y).chunk(3, dim=-1)
    q = q + y @ p[f"w_a_{2 * index:03d}"].T @ p[f"w_b_{2 * index:03d}"].T
    v = v + y @ p[f"w_a_{2 * index + 1:03d}"].T @ p[f"w_b_{2 * index + 1:03d}"].T
    q, k, v = (part.reshape(-1, tokens, heads, size).transpose(1, 2) for part in (q, k, v))
    offsets = torch.arange(grid)[:, None] - torch.arange(grid)[None] + grid - 1
    places = q.reshape(-1, heads, grid, grid, size)
    rows = torch.einsum("bnhwd,hkd->bnhwk", places, p[f"{name}.attn.rel_pos_h"][offsets])
    columns = torch.einsum("bnhwd,wkd->bnhwk", places, p[f"{name}.attn.rel_pos_w"][offsets])
    bias = (rows[..., :, None] + columns[..., None, :]).reshape(-1, heads, tokens, tokens)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(size) + bias).softmax(-1)
    x = x + linear(p, f"{name}.attn.proj", (weights @ v).transpose(1, 2).reshape(x.shape))
    hidden = F.gelu(linear(p, f"{name}.mlp.lin1", norm(p, f"{name}.norm2", x, 1e-6)))
    return x + linear(p, f"{name}.mlp.lin2", hidden)


def attention(p: Parameters, name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    name = f"mask_decoder.transformer.{name}"
    q, k, v = (
        linear(p, f"{name}.{part}_proj", x).unflatten(-1, (8, -1)).transpose(1, 2)
        for part, x in (("q", q), ("k", k), ("v", v))
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return linear(p, f"{name}.out_proj", (weights @ v).transpose(1, 2).flatten(2))


def perceptron(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    for index in range(2):
        x = F.relu(linear(p, f"{name}.layers.{index}", x))
    return linear(p, f"{name}.layers.2", x)


def encode_image(
    p: Parameters, images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, S, S, 3), 0..255, of the parameters' size -> feature and embedding behind the neck, channels first."""
    encoder = "image_encoder"
    kernel = p[f"{encoder}.patch_embed.proj.weight"]
    pixels, centre, spread = (torch.tensor(x, dtype=kernel.dtype) for x in (images, mean, std))
    x = ((pixels - centre) / spread).permute(0, 3, 1, 2)
    x = F.conv2d(x, kernel, p[f"{encoder}.patch_embed.proj.bias"], stride=kernel.shape[-1])
    x = x.permute(0, 2, 3, 1) + p[f"{encoder}.pos_embed"]
    for index in range(sum(name.endswith("attn.qkv.weight") for name in p)):
        x = block(p, index, x)
    feature = x.permute(0, 3, 1, 2)
    y = norm2d(p, f"{encoder}.neck.1", F.conv2d(feature, p[f"{encoder}.neck.0.weight"]))
    return feature, norm2d(p, f"{encoder}.neck.3", F.conv2d(y, p[f"{encoder}.neck.2.weight"], padding=1))


def lora_sam(
    p: Parameters, images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, torch.Tensor]:
    """Images (B, S, S, 3), 0..255, of the parameters' size -> feature, low_res_logits and iou, channels first."""
    decoder = "mask_decoder"
    feature, y = encode_image(p, images, mean, std)
    grid, dtype = feature.shape[-1], p["image_encoder.pos_embed"].dtype
    image = (y + p["prompt_encoder.no_mask_embed.weight"].reshape(1, -1, 1, 1)).flatten(2).transpose(1, 2)
    centres = (torch.arange(grid, dtype=dtype) + 0.5) / grid
    places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1) * 2 - 1
    angles = 2 * math.pi * (places @ p["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
    positions = torch.cat([angles.sin(), angles.cos()], -1).reshape(1, grid * grid, -1)
    own = torch.cat([p[f"{decoder}.iou_token.weight"], p[f"{decoder}.mask_tokens.weight"]])
    tokens = start = own.expand(len(images), -1, -1)
    for index in range(2):
        layer = f"layers.{index}"
        if index == 0:
            tokens = attention(p, f"{layer}.self_attn", tokens, tokens, tokens)
        else:
            tokens = tokens + attention(p, f"{layer}.self_attn", tokens + start, tokens + start, tokens)
        full = f"{decoder}.transformer.{layer}"
        tokens = norm(p, f"{full}.norm1", tokens, 1e-5)
        to_image = attention(p, f"{layer}.cross_attn_token_to_image", tokens + start, image + positions, image)
        tokens = norm(p, f"{full}.norm2", tokens + to_image, 1e-5)
        hidden = F.relu(linear(p, f"{full}.mlp.lin1", tokens))
        tokens = norm(p, f"{full}.norm3", tokens + linear(p, f"{full}.mlp.lin2", hidden), 1e-5)
        to_tokens = attention(p, f"{layer}.cross_attn_image_to_token", image + positions, tokens + start, tokens)
        image = norm(p, f"{full}.norm4", image + to_tokens, 1e-5)
    last = attention(p, "final_attn_token_to_image", tokens + start, image + positions, image)
    tokens = norm(p, f"{decoder}.transformer.norm_final_attn", tokens + last, 1e-5)
    up = f"{decoder}.output_upscaling"
    x = image.transpose(1, 2).unflatten(-1, (grid, grid))
    x = F.conv_transpose2d(x, p[f"{up}.0.weight"], p[f"{up}.0.bias"], stride=2)
    x = F.gelu(norm2d(p, f"{up}.1", x))
    x = F.gelu(F.conv_transpose2d(x, p[f"{up}.3.weight"], p[f"{up}.3.bias"], stride=2))
    nets = [perceptron(p, f"{decoder}.output_hypernetworks_mlps.{i}", tokens[:, 1 + i]) for i in range(2)]
    logits = (torch.stack(nets, 1) @ x.flatten(2)).unflatten(-1, (4 * grid, 4 * grid))
    iou = perceptron(p, f"{decoder}.iou_prediction_head", tokens[:, 0])
    return {"feature": feature, "low_res_logits": logits, "iou": iou}


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """0.2 * CE + 0.8 * Dice."""
    targets = F.one_hot(labels, 2).permute(0, 3, 1, 2).to(logits.dtype)
    p = logits.softmax(1)
    overlap, total = (p * targets).sum((0, 2, 3)), (p**2).sum((0, 2, 3)) + (targets**2).sum((0, 2, 3))
    dice = (1 - (2 * overlap + 1e-5) / (total + 1e-5)).mean()
    return 0.2 * F.cross_entropy(logits, labels) + 0.8 * dice
