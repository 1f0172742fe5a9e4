"""LoRA-SAM at 224 pixels in plain PyTorch, written from the method's description, as an independent twin."""

import math

import numpy as np
import torch
import torch.nn.functional as F

Parameters = dict[str, torch.Tensor]
DEPTH, WIDTH, HEADS, GRID, GLOBAL_BLOCKS = 12, 768, 12, 14, (2, 5, 8, 11)


def parameters(sam: dict[str, np.ndarray], lora: dict[str, np.ndarray]) -> Parameters:
    """Leaf tensors by name; position tables at 224 pixels; what DoRL trains requires a gradient."""
    tensors = {name: torch.tensor(value) for name, value in (sam | lora).items() if name in lora or "image_enc" in name}
    table = tensors["image_encoder.pos_embed"].permute(0, 3, 1, 2)
    resized = F.interpolate(table, (GRID, GRID), mode="bilinear", align_corners=False)
    tensors["image_encoder.pos_embed"] = resized.permute(0, 2, 3, 1)
    for block in GLOBAL_BLOCKS:
        for axis in "hw":
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            size = (2 * GRID - 1, WIDTH // HEADS)
            tensors[name] = F.interpolate(tensors[name][None, None], size, mode="bilinear", align_corners=False)[0, 0]
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
    name, tokens, size = f"image_encoder.blocks.{index}", GRID * GRID, WIDTH // HEADS
    y = norm(p, f"{name}.norm1", x, 1e-6).reshape(-1, tokens, WIDTH)
    q, k, v = linear(p, f"{name}.attn.qkv", y).chunk(3, dim=-1)
    q = q + y @ p[f"w_a_{2 * index:03d}"].T @ p[f"w_b_{2 * index:03d}"].T
    v = v + y @ p[f"w_a_{2 * index + 1:03d}"].T @ p[f"w_b_{2 * index + 1:03d}"].T
    q, k, v = (part.reshape(-1, tokens, HEADS, size).transpose(1, 2) for part in (q, k, v))
    offsets = torch.arange(GRID)[:, None] - torch.arange(GRID)[None] + GRID - 1
    grid = q.reshape(-1, HEADS, GRID, GRID, size)
    rows = torch.einsum("bnhwd,hkd->bnhwk", grid, p[f"{name}.attn.rel_pos_h"][offsets])
    columns = torch.einsum("bnhwd,wkd->bnhwk", grid, p[f"{name}.attn.rel_pos_w"][offsets])
    bias = (rows[..., :, None] + columns[..., None, :]).reshape(-1, HEADS, tokens, tokens)
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


def lora_sam(
    p: Parameters, images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, torch.Tensor]:
    """Images (B, 224, 224, 3) -> feature, low_res_logits and iou, channels first."""
    pixels = torch.tensor(images).to(torch.get_default_dtype())
    x = ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    encoder, decoder = "image_encoder", "mask_decoder"
    x = F.conv2d(x, p[f"{encoder}.patch_embed.proj.weight"], p[f"{encoder}.patch_embed.proj.bias"], stride=16)
    x = x.permute(0, 2, 3, 1) + p[f"{encoder}.pos_embed"]
    for index in range(DEPTH):
        x = block(p, index, x)
    feature = x.permute(0, 3, 1, 2)
    y = norm2d(p, f"{encoder}.neck.1", F.conv2d(feature, p[f"{encoder}.neck.0.weight"]))
    y = norm2d(p, f"{encoder}.neck.3", F.conv2d(y, p[f"{encoder}.neck.2.weight"], padding=1))
    image = (y + p["prompt_encoder.no_mask_embed.weight"].reshape(1, -1, 1, 1)).flatten(2).transpose(1, 2)
    centres = (torch.arange(GRID) + 0.5) / GRID
    places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1) * 2 - 1
    angles = 2 * math.pi * (places @ p["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
    positions = torch.cat([angles.sin(), angles.cos()], -1).reshape(1, GRID * GRID, -1)
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
    x = image.transpose(1, 2).unflatten(-1, (GRID, GRID))
    x = F.conv_transpose2d(x, p[f"{up}.0.weight"], p[f"{up}.0.bias"], stride=2)
    x = F.gelu(norm2d(p, f"{up}.1", x))
    x = F.gelu(F.conv_transpose2d(x, p[f"{up}.3.weight"], p[f"{up}.3.bias"], stride=2))
    nets = [perceptron(p, f"{decoder}.output_hypernetworks_mlps.{i}", tokens[:, 1 + i]) for i in range(2)]
    logits = (torch.stack(nets, 1) @ x.flatten(2)).unflatten(-1, (4 * GRID, 4 * GRID))
    iou = perceptron(p, f"{decoder}.iou_prediction_head", tokens[:, 0])
    return {"feature": feature, "low_res_logits": logits, "iou": iou}


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """0.2 * CE + 0.8 * Dice."""
    targets = F.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    p = logits.softmax(1)
    overlap, total = (p * targets).sum((0, 2, 3)), (p**2).sum((0, 2, 3)) + (targets**2).sum((0, 2, 3))
    dice = (1 - (2 * overlap + 1e-5) / (total + 1e-5)).mean()
    return 0.2 * F.cross_entropy(logits, labels) + 0.8 * dice
