"""What the method is compared with, and how those baselines are made; nothing heavy is imported to read it."""

from dataclasses import dataclass, field
from typing import Literal

from dorl_jax.config import Settings, setting
from dorl_jax.errors import InputError, name_some, suggest

BASELINES = {
    "majority": "one and the same number for every cell: what class frequencies alone give",
    "colour_texture": "colour, texture, shape and size of the masked cell, its nucleus and its cytoplasm",
    "mean_token": "mean of the frozen encoder's tokens",
    "pooled_tokens": "mean and sd of the tokens over the cell",
    "bc_sam": "BC-SAM's convolutional autoencoder",
    "ae_cfe": "an autoencoder with AE-CFE's mean and covariance loss",
    "resnet": "a residual network trained on the labels of the source; vectors of each source of their own",
}


@dataclass(frozen=True)
class BcSamSettings(Settings):
    """BC-SAM's autoencoder; what is not the original's says so."""

    steps: int = setting(300, "optimiser steps (the original: 10 epochs)", least=1)
    batch_size: int = setting(32, "cells a step (the original: 128)", least=1)
    learning_rate: float = setting(5e-4, "of AdamW, falling to 0 with a cosine (the original: constant)", least=0)
    weight_decay: float = setting(0.05, "of AdamW", least=0)
    discrepancy: float = setting(5.0, "weight of the distance between the means of laboratories", least=0)
    latent: int = setting(50, "size of the vector", least=1)
    image_size: Literal[64, 128] = setting(64, "side of the image that is drawn, in pixels (the original: 128)")


@dataclass(frozen=True)
class AeCfeSettings(Settings):
    """AE-CFE's autoencoder; what is not the original's says so."""

    steps: int = setting(900, "optimiser steps (the original: 150 epochs)", least=1)
    batch_size: int = setting(32, "cells a step (the original: 500)", least=1)
    learning_rate: float = setting(4e-3, "of Adam, falling to 0 with a cosine (the original: constant)", least=0)
    discrepancy: float = setting(5.0, "weight of the distance between means and covariances of laboratories", least=0)
    latent: int = setting(50, "size of the vector", least=1)
    image_size: Literal[64, 128] = setting(64, "side of the image that is drawn, in pixels (the original: 128)")
    image_channels: int = setting(32, "channels of the image decoder (the original: 200 to 128)", least=1)


@dataclass(frozen=True)
class ResNetSettings(Settings):
    """A residual network for each source and fold."""

    sources: Literal["one", "others", "both"] = setting(
        "both",
        "what networks are trained on: one laboratory, for pairs; all but the tested one; or both. Of all but one "
        "those alone are made that leave out a laboratory of data.unseen, where there is any",
    )

    steps: int = setting(1000, "optimiser steps of each network", least=1)
    batch_size: int = setting(32, "cells a step, of all classes alike often", least=1)
    learning_rate: float = setting(2e-3, "of AdamW, falling to 0 with a cosine", least=0)
    weight_decay: float = setting(0.05, "of AdamW", least=0)
    smoothing: float = setting(0.1, "share of the labels spread over all classes", least=0, most=1)
    size: int = setting(64, "side of the crops in pixels, a multiple of 16", least=16)
    width: int = setting(16, "channels of the first stage; they double in each of the three that follow", least=1)
    folds: int = setting(5, "networks of each source, each without one fold of it", least=2)
    stain: float = setting(1.0, "strength of the random change of the dyes", least=0)
    white_balance: float = setting(1.0, "strength of the random change of the light", least=0)

    def __post_init__(self) -> None:
        """Refuse what cannot be halved four times, too.

        Raises:
          InputError: names the setting.
        """
        super().__post_init__()
        if self.size % 16:
            raise InputError(f"resnet.size = {self.size}: take a multiple of 16")


@dataclass(frozen=True)
class BaselineSettings(Settings):
    """What the method is compared with."""

    names: tuple[str, ...] = setting(
        (), f"baselines to make and to judge beside the run, out of {', '.join(BASELINES)}"
    )
    seed: int = setting(0, "seed of those that are trained", least=0, most=2**32 - 1)
    bc_sam: BcSamSettings = field(default_factory=BcSamSettings)
    ae_cfe: AeCfeSettings = field(default_factory=AeCfeSettings)
    resnet: ResNetSettings = field(default_factory=ResNetSettings)

    def __post_init__(self) -> None:
        """Refuse unknown names, before a run has trained for hours.

        Raises:
          InputError: an unknown or repeated name, or a number outside of its bounds.
        """
        super().__post_init__()
        for name in self.names:
            check_name(name)
        if len(set(self.names)) < len(self.names):
            raise InputError(f"a baseline is named twice: {', '.join(self.names)}")


def check_name(name: str) -> None:
    """Refuse what no baseline is called.

    Raises:
      InputError: names those there are.
    """
    if name not in BASELINES:
        raise InputError(f"no baseline {name!r}{suggest(name, BASELINES)}; there are: {name_some(BASELINES, 20)}")
