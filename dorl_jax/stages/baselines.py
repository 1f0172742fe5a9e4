"""Stage `baselines`: what the method is compared with, by name: made once, kept as Parquet."""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from dorl_jax import __version__
from dorl_jax.baselines.ae_cfe import ae_cfe
from dorl_jax.baselines.bc_sam import bc_sam
from dorl_jax.baselines.cells import Cells, open_cells
from dorl_jax.baselines.colour_texture import PARTS, colour_texture
from dorl_jax.baselines.resnet import resnet
from dorl_jax.baselines.settings import BaselineSettings, check_name
from dorl_jax.baselines.tokens import mean_tokens, pooled_tokens
from dorl_jax.data.manifest import Manifest
from dorl_jax.errors import InputError
from dorl_jax.evaluation.latents import Latents, read_latents, write_latents
from dorl_jax.files import write_text
from dorl_jax.store import fingerprint, is_store

logger = logging.getLogger(__name__)

# Of baselines of more than one part.
_PARTS = {"colour_texture": PARTS}

# Sources and vectors of all cells; "" for vectors that serve every source.
_Vectors = Iterable[tuple[str, np.ndarray]]


def baselines(
    manifest: Manifest,
    store_folder: Path,
    out: Path,
    settings: BaselineSettings,
    *,
    unseen: Sequence[str] = (),
    labels_seen: bool = False,
    progress: bool = True,
) -> dict[str, tuple[Path, ...]]:
    """Make the vectors of every named baseline.

    Writes `out/<name>.parquet`, or `out/<name>/<source>.parquet` for each source where vectors belong to one, and
    `out/<name>.json`, what they were made with and which are there. What is there and was made so is not made again,
    and the store may be gone by then.

    Args:
      manifest: the cells.
      store_folder: what the stage `extract` wrote of them.
      out: folder, made where it is missing.
      settings: see there.
      unseen: laboratories whose cells do not train anything but the networks of their own labels.
      labels_seen: whether the segmenter saw the classes of the others.
      progress: show bars.

    Returns:
      Name -> its files, in the order of the names.

    Raises:
      InputError: a store of other cells, or what a baseline refuses.
    """
    manifest.without(unseen)  # a wrong name is told before anything is read
    opened = cache(lambda: open_cells(manifest, store_folder, unseen, labels_seen))
    files = {}
    for name in settings.names:
        mark = out / f"{name}.json"
        known = _known(mark)
        gone = "store" in known and not is_store(store_folder)
        store = known["store"] if gone else opened().store.signature
        made = fingerprint(_made_with(name, manifest, store, settings, unseen, labels_seen))
        if known.get("fingerprint") != made:
            known = {"fingerprint": made, "store": store, "sources": [], "whole": False}
        if known["whole"]:
            logger.info("%s: there already", name)
        else:
            cells = opened()
            write_text(mark, _told(known))
            for source, values in _makers(cells, settings, tuple(known["sources"]), progress)[name]():
                write_latents(cells.latents(values, source, _PARTS.get(name)), _file(out, name, source))
                known["sources"].append(source)
                write_text(mark, _told(known))
            known["whole"] = True
            write_text(mark, _told(known))
        files[name] = tuple(_file(out, name, source) for source in known["sources"])
    return files


def read_baseline(out: Path, name: str) -> dict[str, Latents]:
    """What `baselines` made: source -> vectors; the one key "" where they serve every source.

    Vectors of a source (see `evaluation.sources`) are for classifiers that are trained on it, and for no others.

    Raises:
      InputError: an unknown baseline, or one that was not made, or not whole.
    """
    check_name(name)
    known = _known(out / f"{name}.json")
    if not known.get("whole"):
        raise InputError(f"no baseline {name!r} in {out}: make it first")
    return {source: read_latents(_file(out, name, source)) for source in known["sources"]}


def _makers(
    cells: Cells, settings: BaselineSettings, made: Collection[str], progress: bool
) -> dict[str, Callable[[], _Vectors]]:
    """How each is made, but for the sources that are."""
    seed = settings.seed
    return {
        "majority": lambda: [("", np.zeros((len(cells), 1), np.float32))],
        "colour_texture": lambda: [("", _colour_texture(cells, progress))],
        "mean_token": lambda: [("", mean_tokens(cells))],
        "pooled_tokens": lambda: [("", pooled_tokens(cells))],
        "bc_sam": lambda: [("", bc_sam(cells, settings.bc_sam, seed, progress=progress))],
        "ae_cfe": lambda: [("", ae_cfe(cells, settings.ae_cfe, seed, progress=progress))],
        "resnet": lambda: resnet(cells, settings.resnet, seed, made=made, progress=progress),
    }


def _colour_texture(cells: Cells, progress: bool) -> np.ndarray:
    places = tqdm(range(len(cells)), desc="colour and texture", unit="cell", disable=not progress)
    return np.stack([colour_texture(cells.crops[at], cells.foreground(at), cells.area(at)) for at in places])


def _made_with(
    name: str,
    manifest: Manifest,
    store: Mapping[str, object],
    settings: BaselineSettings,
    unseen: Sequence[str],
    labels_seen: bool,
) -> dict[str, object]:
    """All that decides the vectors of a baseline; `store` is the signature of the store."""
    own = getattr(settings, name, None)
    return {
        "name": name,
        "version": __version__,
        "store": store,
        "ids": [cell.id for cell in manifest.cells],
        "unseen": list(unseen),
        "labels_seen": labels_seen,
        # Of those that learn from labels they are part of it.
        "labels": [cell.label for cell in manifest.cells],
        "groups": [cell.whole_group for cell in manifest.cells],
        "settings": asdict(own) if own is not None else {},
        # What is not trained is the same for every seed, and not made again for another.
        "seed": settings.seed if own is not None else None,
        "parts": _PARTS.get(name),
    }


def _file(out: Path, name: str, source: str) -> Path:
    return out / name / f"{source}.parquet" if source else out / f"{name}.parquet"


def _known(mark: Path) -> dict:
    if not mark.is_file():
        return {}
    try:
        known = json.loads(mark.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        logger.warning("%s is damaged; its baseline is made again", mark)
        return {}
    return known if isinstance(known, dict) and {"fingerprint", "sources", "whole"} <= known.keys() else {}


def _told(known: Mapping[str, object]) -> str:
    return json.dumps(known, indent=1) + "\n"
