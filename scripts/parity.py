"""Print the largest deviation of every output from recordings of the original code, as a Markdown table.

    DORL_JAX_GOLDEN=/folder/of/recordings python scripts/parity.py

A deviation is the largest difference over the largest magnitude of the recorded array.
"""

import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the rule that makes the weights lives with the tests

from golden import (
    as_nhwc,
    cae_state_dict,
    conv_autoencoder_state_dict,
    deviation,
    lora_state_dict,
    sam_state_dict,
    standard_normal,
)

from dorl_jax.losses import segmentation_loss, ssim
from weights_conversion import convert_cae, convert_conv_autoencoder, convert_lora_sam


def lora_sam(golden: Path) -> dict[str, float]:
    """LoRA-SAM ViT-B at 224."""
    recorded = np.load(golden / "dorl_vit_b_224.npz")
    model = convert_lora_sam(sam_state_dict(golden), lora_state_dict(golden))
    out = {name: np.moveaxis(np.asarray(value), -1, 1) for name, value in model(recorded["images"]).items()}
    return {
        "LoRA-SAM ViT-B, feature before the neck": deviation(out["feature"][0], recorded["encoder_feature0"]),
        "LoRA-SAM ViT-B, low-resolution logits": deviation(out["low_res_logits"], recorded["low_res_logits"]),
        "LoRA-SAM ViT-B, logits": deviation(out["logits"][:, :, ::4, ::4], recorded["masks_s4"]),
        "LoRA-SAM ViT-B, predicted IoU": deviation(out["iou"], recorded["iou"]),
    }


def cae(golden: Path) -> dict[str, float]:
    """The autoencoder."""
    recorded = np.load(golden / "cae_vit_b.npz")
    features = jnp.asarray(as_nhwc(standard_normal(int(recorded["feats_seed"]), (6, 768, 14, 14))))
    model = convert_cae(cae_state_dict(golden))
    out = model(features, jnp.asarray(recorded["permutations"][:, :49].astype(np.int32)))
    return {
        "CAE, latent vector": deviation(np.asarray(model.encode(features)), recorded["latent_cls"]),
        "CAE, reconstructed image (masked)": deviation(
            np.moveaxis(np.asarray(out["image"]), -1, 1)[0], recorded["masked_image0"]
        ),
        "CAE, projection (masked)": deviation(np.asarray(out["projection"]), recorded["masked_gap"]),
    }


def conv_autoencoder(golden: Path) -> dict[str, float]:
    """BC-SAM's autoencoder."""
    recorded = np.load(golden / "bcsam_autoencoder.npz")
    seed = int(np.load(golden / "cae_vit_b.npz")["feats_seed"])
    features = as_nhwc(standard_normal(seed, (6, 768, 14, 14)))
    out = convert_conv_autoencoder(conv_autoencoder_state_dict(golden))(features)
    image = np.moveaxis(np.asarray(out["image"]), -1, 1)[0, :, ::4, ::4]
    return {
        "BC-SAM's autoencoder, latent vector": deviation(np.asarray(out["latent"]), recorded["latent_eval"]),
        "BC-SAM's autoencoder, image": deviation(image, recorded["image_eval_s4"]),
    }


def losses(golden: Path) -> dict[str, float]:
    """The losses."""
    recorded = np.load(golden / "losses.npz")
    logits = as_nhwc(standard_normal(int(recorded["logits_seed"]), (3, 2, 56, 56)))
    total = segmentation_loss(logits, recorded["labels"].astype(np.int32))["loss"]
    a, noise = (
        as_nhwc(np.random.RandomState(int(recorded[f"ssim_{name}_seed"])).rand(2, 3, 128, 128).astype(np.float32))
        for name in "ab"
    )
    similarity = ssim(a, 0.5 * a + 0.5 * noise)
    return {
        "cross-entropy + Dice": abs(float(total) / float(recorded["total"]) - 1),
        "SSIM": abs(float(similarity) / float(recorded["ssim"]) - 1),
    }


def main() -> None:
    """Print the table."""
    if "DORL_JAX_GOLDEN" not in os.environ:
        sys.exit("set DORL_JAX_GOLDEN to the folder of the recordings")
    golden = Path(os.environ["DORL_JAX_GOLDEN"])
    print("| output | largest deviation |\n|---|---:|")
    for part in (lora_sam, cae, conv_autoencoder, losses):
        for name, value in part(golden).items():
            print(f"| {name} | {value:.0e} |")


if __name__ == "__main__":
    main()
