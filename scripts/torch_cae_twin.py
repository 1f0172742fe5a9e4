"""DoRL's cross-domain autoencoder in plain PyTorch, written from the method's description, as an independent twin.

Sizes are read off the tensors, but for the number of heads, which no tensor shows.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch_twin import Parameters, norm

# (stride, padding) of the image head's transposed convolutions; their kernels say the rest.
HEAD = ((2, 1), (2, 1), (1, 1), (1, 1), (2, 1))


def parameters(state_dict: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Parameters:
    """Leaf tensors by name, all of which train."""
    return {name: torch.tensor(x, dtype=dtype, requires_grad=True) for name, x in state_dict.items()}


def block(p: Parameters, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in F.linear(norm(p, f"{name}.norm1", x, 1e-5), p[f"{name}.attn.qkv.weight"]).chunk(3, dim=-1)
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    x = x + F.linear(mixed, p[f"{name}.attn.proj.weight"], p[f"{name}.attn.proj.bias"])
    hidden = norm(p, f"{name}.norm2", x, 1e-5)
    hidden = F.gelu(F.linear(hidden, p[f"{name}.mlp.fc1.weight"], p[f"{name}.mlp.fc1.bias"]))
    return x + F.linear(hidden, p[f"{name}.mlp.fc2.weight"], p[f"{name}.mlp.fc2.bias"])


def blocks(p: Parameters, part: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    depth = sum(name.startswith(f"{part}.transformer.") and name.endswith("norm1.weight") for name in p)
    for index in range(depth):
        x = block(p, f"{part}.transformer.{index}", x, heads)
    return x


def encode(p: Parameters, features: torch.Tensor, kept: torch.Tensor | None, heads: int) -> torch.Tensor:
    """Features (B, C, h, w) -> cls token and the tokens that are kept, or all of them, in their order."""
    x = features.flatten(2).transpose(1, 2) + p["encoder.pos_embedding"].transpose(0, 1)
    if kept is not None:
        x = torch.stack([tokens[places] for tokens, places in zip(x, kept, strict=True)])
    x = torch.cat([p["encoder.cls_token"].expand(len(x), -1, -1), x], 1)
    return norm(p, "encoder.layer_norm", blocks(p, "encoder", x, heads), 1e-5)


def cae(
    p: Parameters, features: torch.Tensor, kept: torch.Tensor | None = None, heads: int = 12
) -> dict[str, torch.Tensor]:
    """Features (B, C, h, w) -> cls, feature, image and projection, channels first."""
    encoded = encode(p, features, kept, heads)
    cls, seen = encoded[:, :1], encoded[:, 1:]
    if kept is not None:
        places = kept[:, :, None].expand_as(seen)
        seen = p["decoder.mask_token"].expand(len(features), features[0, 0].numel(), -1).scatter(1, places, seen)
    x = torch.cat([cls, seen], 1) + p["decoder.pos_embedding"].transpose(0, 1)
    tokens = blocks(p, "decoder", x, heads)[:, 1:]
    feature = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
    image = feature
    for index, (stride, padding) in enumerate(HEAD):
        image = image if index == 0 else F.relu(image)
        name = f"decoder.head.{2 * index}"
        image = F.conv_transpose2d(image, p[f"{name}.weight"], p[f"{name}.bias"], stride, padding)
    pooled = feature.mean((2, 3))
    projection = F.linear(pooled, p["decoder.Linear.weight"], p["decoder.Linear.bias"])
    return {"cls": cls[:, 0], "feature": feature, "image": image, "projection": projection}


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of images (B, C, H, W): a window of 11 x 11 that sees zeros past the edge."""
    line = torch.exp(-((torch.arange(11, dtype=a.dtype) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()
    channels = a.shape[1]
    window = torch.outer(line, line).expand(channels, 1, 11, 11)

    def local_mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window, padding=5, groups=channels)

    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (similarity * (2 * covariance + c2) / (var_a + var_b + c2)).mean()


def discrepancy(projections: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
    """Of the mean of every other domain in the batch from that of domain 0."""
    # A batch without a pair of domains has gradients of 0. With none at all AdamW would pass the projector over.
    total = 0 * projections.sum()
    if bool((domains == 0).any()):
        for domain in sorted(set(domains.tolist()) - {0}):
            apart = projections[domains == 0].mean(0) - projections[domains == domain].mean(0)
            total = total + (apart**2).mean()
    return total


def cae_loss(
    out: dict[str, torch.Tensor], features: torch.Tensor, images: torch.Tensor, domains: torch.Tensor
) -> dict[str, torch.Tensor]:
    """(1 - SSIM) + 2 * (discrepancy + 0.5 * MSE), and its parts."""
    parts = {
        "ssim": ssim(out["image"], images),
        "mse": F.mse_loss(out["feature"], features),
        "discrepancy": discrepancy(out["projection"], domains),
    }
    return {"loss": (1 - parts["ssim"]) + 2 * (parts["discrepancy"] + 0.5 * parts["mse"])} | parts
