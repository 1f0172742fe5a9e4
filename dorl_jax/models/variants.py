"""The names of the presets, the same for SAM and for the autoencoder that reads its features."""

from dorl_jax.errors import InputError, suggest

VARIANTS = ("tiny", "vit_b", "vit_l", "vit_h")


def require_variant(name: str) -> None:
    """Refuse a name that is no preset.

    Raises:
      InputError: names the nearest known one.
    """
    if name not in VARIANTS:
        raise InputError(f"unknown variant {name!r}{suggest(name, VARIANTS)}; known: {', '.join(VARIANTS)}")
