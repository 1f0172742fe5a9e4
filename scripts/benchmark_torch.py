"""The benchmark's steps in plain PyTorch: the twins, as one writes the original."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch_cae_twin
import torch_twin
from benchmark_tasks import Task
from safetensors.numpy import load_file

from dorl_jax.models import SAM_PIXEL_MEAN, SAM_PIXEL_STD, CaeConfig

Run = Callable[[], float]


def prepare(task: Task, dtype: str, folder: Path) -> Run:
    """A function that takes one step and returns a number to compare: the loss, or the mean square of the features."""
    batch = load_file(folder / "batch.safetensors")
    low = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    if task.kind == "cae":
        return _cae(task, batch, folder, low)
    weights = load_file(folder / "weights.safetensors"), load_file(folder / "lora.safetensors")
    patch = weights[0]["image_encoder.patch_embed.proj.weight"].shape[-1]
    parameters = torch_twin.parameters(*weights, grid=task.image_size // patch)
    statistics = SAM_PIXEL_MEAN, SAM_PIXEL_STD
    if task.kind == "forward":

        def forward() -> float:
            with torch.inference_mode(), low:
                feature, _ = torch_twin.encode_image(parameters, batch["image"], *statistics)
            return (feature.float() ** 2).mean().item()

        return forward
    trained = [tensor for tensor in parameters.values() if tensor.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)
    masks = torch.tensor(batch["mask"])[:, None].float()

    def finetune() -> float:
        with low:
            out = torch_twin.lora_sam(parameters, batch["image"], *statistics)
        logits = out["low_res_logits"].float()
        labels = torch.nn.functional.interpolate(masks, logits.shape[2:], mode="nearest-exact")[:, 0].long()
        loss = torch_twin.segmentation_loss(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return finetune


def _cae(task: Task, batch: dict, folder: Path, low: torch.autocast) -> Run:
    parameters = torch_cae_twin.parameters(load_file(folder / "weights.safetensors"))
    optimiser = torch.optim.AdamW(parameters.values(), lr=1e-4, weight_decay=0.05)
    features = torch.tensor(batch["feature"]).permute(0, 3, 1, 2)
    crops, domains = torch.tensor(batch["crop"]), torch.tensor(batch["domain"])
    config = CaeConfig.preset(task.variant)
    first = [torch.tensor(batch["kept"]).long()]

    def cae() -> float:
        kept = first.pop() if first else torch.rand(task.batch, config.tokens).argsort(1)[:, : config.kept_tokens]
        with low:
            out = torch_cae_twin.cae(parameters, features, kept, config.heads)
        images = crops.permute(0, 3, 1, 2) / 255
        loss = torch_cae_twin.cae_loss({name: x.float() for name, x in out.items()}, features, images, domains)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return cae


def matmul(side: int) -> Callable[[], object]:
    """An fp32 product of two square matrices."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    return lambda: a @ b
