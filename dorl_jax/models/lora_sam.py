"""DoRL's LoRA-SAM: a SAM that segments cells without a prompt (arXiv 2408.07467, section 3.1; SAMed, 2304.13785)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Real

from dorl_jax.models.layers import AnyArray
from dorl_jax.models.lora import LoraConfig, is_merged, merge_lora, unmerge_lora
from dorl_jax.models.sam import Sam, SamConfig

# Statistics of the data set DoRL fine-tuned on (RGB, 0..255).
DORL_PIXEL_MEAN = (215.03222667, 187.75924169, 200.46686915)
DORL_PIXEL_STD = (41.30474568, 56.91913001, 21.95221107)

DORL_LORA = LoraConfig()

# Without a prompt these take no part in the forward pass: they get no gradient and must not decay either.
UNPROMPTED = ("point_embeddings", "not_a_point_embed", "mask_downscaling", "iou_prediction_head")


class LoraSam(nnx.Module):
    """SAM with LoRA in the image encoder, a mask token a class and no prompts.

    The classes are background (0) and cell (1).
    """

    def __init__(
        self,
        config: SamConfig,
        lora: LoraConfig | None = DORL_LORA,
        *,
        classes: int = 2,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """A model with fresh weights.

        Args:
          config: shape; its masks and LoRA are set here.
          lora: the updates; None leaves them out, for training all weights.
          classes: the background counts as one.
          rngs: for the initial values.
          dtype: of the arithmetic.
        """
        self.config = config.with_lora(lora).with_masks(classes - 1)
        self.sam = Sam(self.config, rngs=rngs, dtype=dtype)

    def __call__(self, images: Real[AnyArray, "b h w 3"]) -> dict[str, Array]:
        """Segment cells.

        Args:
          images: (B, H, W, 3), RGB, 0..255, at most as large as the model's input.

        Returns:
          "feature" (B, h, w, C): encoder tokens before the neck; "low_res_logits" (B, 4h, 4w, 2);
          "logits" (B, H, W, 2): the same, bilinearly upsampled; "iou" (B, 2): predicted IoU. Channel 1 is the cell.
        """
        out = self.sam.encode_image(images)
        low_res, iou = self.sam.decode(out["embedding"])
        logits = self.sam.postprocess(low_res, (images.shape[1], images.shape[2]))
        return {"feature": out["tokens"], "low_res_logits": low_res, "logits": logits, "iou": iou}

    def merge(self) -> "LoraSam":
        """Add the LoRA updates to the weights, in place: the same outputs within rounding, at no cost.

        What the weights were is kept for `unmerge`. A merged model is for inference: it neither trains nor is saved.
        """
        merge_lora(self)
        return self

    def unmerge(self) -> "LoraSam":
        """Take `merge` back, to the last bit, in place."""
        unmerge_lora(self)
        return self

    def trainable(self, encoder: str = "lora") -> nnx.filterlib.Filter:
        """The parameters that train, as an NNX filter.

        Args:
          encoder: "lora" for the LoRA parameters, prompt encoder and mask decoder (the method); "lora_only" for the
            LoRA parameters alone; "full" for every weight.

        Raises:
          ValueError: no such choice; the LoRA updates are merged.
        """
        if is_merged(self):
            raise ValueError("a merged model does not train: call unmerge() first")
        if encoder not in ("lora", "lora_only", "full"):
            raise ValueError(f"encoder must be 'lora', 'lora_only' or 'full', not {encoder!r}")
        if encoder == "lora_only":
            return nnx.LoRAParam

        def in_decoder(path: tuple[Any, ...], value: Any) -> bool:
            return path[1] in ("prompt_encoder", "mask_decoder")

        def takes_part(path: tuple[Any, ...], value: Any) -> bool:
            return not set(UNPROMPTED) & set(path)

        trained = nnx.Param if encoder == "full" else nnx.All(nnx.Param, nnx.Any(nnx.LoRAParam, in_decoder))
        return nnx.All(trained, takes_part)
