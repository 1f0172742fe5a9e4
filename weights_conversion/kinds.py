"""Which model a state dict is of, by its names."""

import re
from collections.abc import Iterable

from dorl_jax.errors import InputError, name_some
from weights_conversion.hugging_face import is_hugging_face

_MARKS = {
    "lora": r"w_[ab]_\d+(\.weight)?",
    "sam": r"image_encoder\.blocks\.\d+\..*",
    "cae": r"(cae\.)?encoder\.(cls_token|transformer\..*)",
    "conv-autoencoder": r"(bcsam\.)?encoder\.\d+\.running_mean",
}


def kind_of(names: Iterable[str]) -> str:
    """ "sam", "lora" (a LoRA file), "cae" or "conv-autoencoder".

    Raises:
      InputError: none of them.
    """
    names = list(names)
    if is_hugging_face(names):
        return "sam"
    for kind, pattern in _MARKS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return kind
    raise InputError(
        "a state dict of no known model: neither a SAM, a LoRA file, DoRL's autoencoder nor BC-SAM's. Its tensors are "
        + name_some(sorted(names))
    )
