"""Print how far outputs are from recordings of the original code, as Markdown tables.

    DORL_JAX_GOLDEN=/folder/of/recordings python scripts/parity.py

A deviation is the largest difference over the largest magnitude of the expected array. Where the weights of a recording
are such that rounding is magnified, PyTorch in float64 (Hugging Face's SamModel, a twin of LoRA-SAM) tells how far a
recording in float32 is from the exact result; that needs the `parity` extra. A last table compares bf16 arithmetic with
fp32. Takes some minutes and 8 GB of memory.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the rule that makes the weights lives with the tests

from golden import (
    as_nhwc,
    at_224_shape,
    cae_state_dict,
    conv_autoencoder_state_dict,
    deviation,
    lora_state_dict,
    rule_made,
    sam_shapes,
    sam_state_dict,
    scaled,
    standard_normal,
)

from dorl_jax.losses import segmentation_loss, ssim
from dorl_jax.models import DORL_PIXEL_MEAN, DORL_PIXEL_STD, SamConfig
from weights_conversion import convert_cae, convert_conv_autoencoder, convert_lora_sam, convert_sam
from weights_conversion.hugging_face import SHARED, TIED, from_official

Arrays = dict[str, np.ndarray]
Weights = tuple[Arrays, Arrays]  # of a SAM and of a LoRA file


def channels_first(array: Any) -> np.ndarray:
    """(B, h, w, C) -> (B, C, h, w)."""
    return np.moveaxis(np.asarray(array), -1, 1)


def sam_recorded(golden: Path) -> Arrays:
    """What the original SAM ViT-B gave at 1024 pixels."""
    recorded = np.load(golden / "sam_vit_b_1024.npz")
    return {
        "embedding": recorded["image_embedding_s8"],
        "sparse prompts": recorded["sparse"],
        "dense prompts": recorded["dense_s16"],
        "three masks": recorded["low_res_multimask_s4"],
        "their IoU": recorded["iou_multimask"],
        "one mask": recorded["low_res_single_s4"],
        "its IoU": recorded["iou_single"],
        "three masks on the image": recorded["upscaled_s8"],
    }


def sam_prompts(golden: Path) -> tuple[Arrays, np.ndarray]:
    """Points, box and mask of the recording, and its image."""
    recorded = np.load(golden / "sam_vit_b_1024.npz")
    mask = standard_normal(int(recorded["mask_input_seed"]), (1, 1, 256, 256))[:, 0]
    labels = recorded["point_labels"].astype(np.int32)
    prompts = {"points": recorded["point_coords"], "labels": labels, "boxes": recorded["box"], "masks": mask}
    return prompts, recorded["image"]


def sam_ours(golden: Path) -> Arrays:
    """What we give."""
    prompts, image = sam_prompts(golden)
    model = convert_sam(sam_state_dict(golden))
    embedding = model.encode_image(image[None])["embedding"]
    points = jnp.asarray(prompts["points"]), jnp.asarray(prompts["labels"])
    boxes, masks = jnp.asarray(prompts["boxes"]), jnp.asarray(prompts["masks"])
    sparse, dense = model.prompt_encoder(1, points, boxes, masks)
    three, one = (model.predict(embedding, points, boxes, masks, multimask) for multimask in (True, False))
    shown = model.postprocess(three["low_res_logits"], image.shape[:2], (384, 512))
    return {
        "embedding": channels_first(embedding)[0, :, ::8, ::8],
        "sparse prompts": np.asarray(sparse),
        "dense prompts": channels_first(dense)[0, :, ::16, ::16],
        "three masks": channels_first(three["low_res_logits"])[0, :, ::4, ::4],
        "their IoU": np.asarray(three["iou"]),
        "one mask": channels_first(one["low_res_logits"])[0, :, ::4, ::4],
        "its IoU": np.asarray(one["iou"]),
        "three masks on the image": channels_first(shown)[0, :, ::8, ::8],
    }


def sam_in_float64(golden: Path) -> Arrays:
    """What PyTorch gives in float64: Hugging Face's model with the epsilon of the official one."""
    import torch
    from hugging_face_twin import their_answer, their_config, their_pixels
    from transformers import SamModel

    config = SamConfig.vit_b()
    tensors = {from_official(name): torch.tensor(value) for name, value in sam_state_dict(golden).items()}
    model = SamModel(their_config(config)).eval()
    model.load_state_dict(tensors | {TIED: tensors[SHARED]})
    model = model.double()
    prompts, image = sam_prompts(golden)
    pixels = their_pixels(config, torch.tensor(image)[None].double())
    pixels = torch.nn.functional.pad(pixels, (0, 1024 - pixels.shape[3], 0, 1024 - pixels.shape[2]))
    sets = {name: value if name == "masks" else value[:, None] for name, value in prompts.items()}
    sets = {name: value if name == "labels" else value.astype(np.float64) for name, value in sets.items()}
    with torch.no_grad():
        embedding = model.vision_encoder(pixels).last_hidden_state
        three, one = (their_answer(model, embedding, sets, multimask) for multimask in (True, False))
    return {
        "embedding": embedding.numpy()[0, :, ::8, ::8],
        "three masks": channels_first(three[0][0])[0, :, ::4, ::4],
        "their IoU": three[1][0].numpy(),
        "one mask": channels_first(one[0][0])[0, :, ::4, ::4],
        "its IoU": one[1][0].numpy(),
    }


def vit_b(golden: Path) -> Weights:
    """LoRA-SAM ViT-B as recorded."""
    return sam_state_dict(golden), lora_state_dict(golden)


def vit_l(golden: Path) -> Weights:
    """LoRA-SAM ViT-L as recorded."""
    shapes = sam_shapes(golden, "vit_l")
    sam = {name: rule_made(f"dorl.{name}", at_224_shape(name, shape)) for name, shape in shapes.items()}
    return sam, lora_state_dict(golden, "vit_l", own_names=True)


def lora_sam_recorded(golden: Path, variant: str) -> Arrays:
    """What the original LoRA-SAM gave at 224 pixels."""
    recorded = np.load(golden / f"dorl_{variant}_224.npz")
    feature = recorded["encoder_feature0"] if variant == "vit_b" else recorded["encoder_feature_s8"]
    arrays = {"feature before the neck": feature, "masks": recorded["low_res_logits"], "IoU": recorded["iou"]}
    return arrays | ({"masks on the image": recorded["masks_s4"]} if variant == "vit_b" else {})


def lora_sam_outputs(out: dict[str, Any], variant: str) -> Arrays:
    """Outputs, channels first, as they are recorded."""
    arrays = {
        "feature before the neck": np.asarray(out["feature"])[0, :: 8 if variant == "vit_l" else 1],
        "masks": np.asarray(out["low_res_logits"]),
        "IoU": np.asarray(out["iou"]),
    }
    return arrays | ({"masks on the image": np.asarray(out["logits"])[:, :, ::4, ::4]} if "logits" in out else {})


def lora_sam_ours(golden: Path, variant: str, weights: Weights) -> Arrays:
    """What we give."""
    images = np.load(golden / f"dorl_{variant}_224.npz")["images"]
    out = {name: channels_first(value) for name, value in convert_lora_sam(*weights)(images).items()}
    if variant == "vit_l":
        del out["logits"]
    return lora_sam_outputs(out, variant)


def lora_sam_in_float64(golden: Path, weights: Weights) -> Arrays:
    """What the PyTorch twin of ViT-B gives in float64."""
    import torch
    import torch_twin

    images = np.load(golden / "dorl_vit_b_224.npz")["images"]
    torch.set_default_dtype(torch.float64)
    try:
        parameters = {name: tensor.double() for name, tensor in torch_twin.parameters(*weights).items()}
        with torch.no_grad():
            out = torch_twin.lora_sam(parameters, images, DORL_PIXEL_MEAN, DORL_PIXEL_STD)
    finally:
        torch.set_default_dtype(torch.float32)
    return lora_sam_outputs({name: value.numpy() for name, value in out.items()}, "vit_b")


def cae_arrays(golden: Path) -> tuple[Arrays, Arrays]:
    """Ours and recorded of DoRL's and BC-SAM's autoencoder."""
    recorded, theirs = np.load(golden / "cae_vit_b.npz"), np.load(golden / "bcsam_autoencoder.npz")
    features = as_nhwc(standard_normal(int(recorded["feats_seed"]), (6, 768, 14, 14)))
    model = convert_cae(cae_state_dict(golden))
    whole, masked = model(features), model(features, jnp.asarray(recorded["permutations"][:, :49].astype(np.int32)))
    other = convert_conv_autoencoder(conv_autoencoder_state_dict(golden))(features)
    ours = {
        "CAE: latent vector": np.asarray(model.encode(features)),
        "CAE: image": channels_first(whole["image"])[0],
        "CAE: projection": np.asarray(whole["projection"]),
        "CAE: image (masked)": channels_first(masked["image"])[0],
        "CAE: projection (masked)": np.asarray(masked["projection"]),
        "CAE: feature (masked)": channels_first(masked["feature"])[0, ::8],
        "BC-SAM's autoencoder: latent vector": np.asarray(other["latent"]),
        "BC-SAM's autoencoder: image": channels_first(other["image"])[0, :, ::4, ::4],
    }
    names = ("latent_cls", "image_unmasked0", "gap_unmasked", "masked_image0", "masked_gap", "masked_feature0_s8")
    expected = [*(recorded[name] for name in names), theirs["latent_eval"], theirs["image_eval_s4"]]
    return ours, dict(zip(ours, expected, strict=True))


def losses(golden: Path) -> tuple[Arrays, Arrays]:
    """Ours and recorded."""
    recorded = np.load(golden / "losses.npz")
    logits = as_nhwc(standard_normal(int(recorded["logits_seed"]), (3, 2, 56, 56)))
    total = segmentation_loss(logits, recorded["labels"].astype(np.int32))["loss"]
    a, noise = (
        as_nhwc(np.random.RandomState(int(recorded[f"ssim_{name}_seed"])).rand(2, 3, 128, 128).astype(np.float32))
        for name in "ab"
    )
    ours = {"cross-entropy + Dice": np.asarray(total), "SSIM": np.asarray(ssim(a, 0.5 * a + 0.5 * noise))}
    return ours, {"cross-entropy + Dice": recorded["total"], "SSIM": recorded["ssim"]}


def rows(golden: Path) -> Iterator[tuple[str, Arrays, Arrays, Arrays]]:
    """Heading, ours, recorded and in float64 (as far as there is such a computation)."""
    yield "SAM ViT-B, 1024: ", sam_ours(golden), sam_recorded(golden), sam_in_float64(golden)
    weights = vit_b(golden)
    exact = lora_sam_in_float64(golden, weights)
    yield "LoRA-SAM ViT-B: ", lora_sam_ours(golden, "vit_b", weights), lora_sam_recorded(golden, "vit_b"), exact
    weights = vit_l(golden)
    yield "LoRA-SAM ViT-L: ", lora_sam_ours(golden, "vit_l", weights), lora_sam_recorded(golden, "vit_l"), {}
    yield "", *cae_arrays(golden), {}
    yield "", *losses(golden), {}


def in_bf16(golden: Path) -> Iterator[tuple[str, float]]:
    """How far bf16 arithmetic is from fp32, on weights that do not magnify rounding."""
    sam, lora = vit_b(golden)
    images = np.load(golden / "dorl_vit_b_224.npz")["images"]
    exact, rough = (convert_lora_sam(sam, scaled(lora), dtype=dtype)(images) for dtype in (jnp.float32, jnp.bfloat16))
    for name, value in exact.items():
        yield f"LoRA-SAM ViT-B: {name}", deviation(np.asarray(rough[name], np.float32), np.asarray(value))
    source = cae_state_dict(golden)
    vectors = [convert_cae(source, dtype=dtype).encode(exact["feature"]) for dtype in (jnp.float32, jnp.bfloat16)]
    yield "CAE: latent vector", deviation(np.asarray(vectors[1], np.float32), np.asarray(vectors[0]))


def main() -> None:
    """Print the tables."""
    if "DORL_JAX_GOLDEN" not in os.environ:
        sys.exit("set DORL_JAX_GOLDEN to the folder of the recordings")
    golden = Path(os.environ["DORL_JAX_GOLDEN"])
    print("| output | ours from the recording | float64 from the recording | ours from float64 |\n|---|---:|---:|---:|")
    for heading, ours, recorded, exact in rows(golden):
        for name, expected in recorded.items():
            figures = [deviation(ours[name], expected)]
            if name in exact:
                figures += [deviation(exact[name], expected), deviation(ours[name], exact[name])]
            cells = [f"{figure:.0e}" for figure in figures] + [""] * (3 - len(figures))
            print(f"| {heading}{name} | {' | '.join(cells)} |", flush=True)
    print("\n| output | bf16 from fp32 |\n|---|---:|")
    for name, figure in in_bf16(golden):
        print(f"| {name} | {figure:.0e} |", flush=True)


if __name__ == "__main__":
    main()
