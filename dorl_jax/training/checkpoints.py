"""Checkpoints of models. With `resume.py` the only file that knows Orbax."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from dorl_jax.errors import InputError, name_some
from dorl_jax.files import write_text
from dorl_jax.models import Cae, CaeConfig, ConvAutoencoder, ConvAutoencoderConfig, LoraSam, Sam, SamConfig
from dorl_jax.models.abstract import abstract_model
from dorl_jax.models.lora import is_merged
from dorl_jax.parallel import is_main

M = TypeVar("M", bound=nnx.Module)


class _Model(NamedTuple):
    config: type[Any]
    make: Callable[[Any, nnx.Rngs], nnx.Module]


def _make_lora_sam(config: SamConfig, rngs: nnx.Rngs) -> LoraSam:
    classes = config.decoder.multimask_outputs + 1
    return LoraSam(config, config.encoder.lora, classes=classes, rngs=rngs)


def _make_conv_autoencoder(config: ConvAutoencoderConfig, rngs: nnx.Rngs) -> ConvAutoencoder:
    model = ConvAutoencoder(config, rngs=rngs)
    model.eval()
    return model


MODELS = {
    "Sam": _Model(SamConfig, lambda config, rngs: Sam(config, rngs=rngs)),
    "LoraSam": _Model(SamConfig, _make_lora_sam),
    "ConvAutoencoder": _Model(ConvAutoencoderConfig, _make_conv_autoencoder),
    "Cae": _Model(CaeConfig, lambda config, rngs: Cae(config, rngs=rngs)),
}


def save_model(folder: Path, model: nnx.Module) -> None:
    """Write a model: its weights (Orbax) and `model.json`, its shape. An older model there is replaced.

    In a run of several processes process 0 calls this, and waits for no other.

    Args:
      folder: made if it is not there.
      model: one of `MODELS`, whole in this process (see `parallel.local_copy`).

    Raises:
      ValueError: its LoRA is merged, which a checkpoint has no place for; another kind of model; parameters of which
        other processes hold a part; not process 0.
    """
    if type(model).__name__ not in MODELS:
        raise ValueError(f"a {type(model).__name__} is none of the models that are saved: {', '.join(MODELS)}")
    if is_merged(model):
        raise ValueError("a merged model is not saved: call unmerge() first")
    if not is_main():
        raise ValueError("process 0 saves the model, the others do not")  # Orbax would write nothing, and say nothing
    weights = _pure(nnx.state(model))
    if not all(array.is_fully_addressable for array in jax.tree.leaves(weights) if isinstance(array, jax.Array)):
        raise ValueError("a model that several processes hold together is not saved: take a local_copy() first")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone() as checkpointer:
        # In a run of several processes Orbax refuses arrays on the device of one; on the host they are as good.
        checkpointer.save(folder.absolute() / "weights", jax.tree.map(np.asarray, weights), force=True)
    described = {"kind": type(model).__name__, "config": msgspec.to_builtins(vars(model)["config"])}
    write_text(folder / "model.json", json.dumps(described, indent=2) + "\n")


def load_model(folder: Path, kind: type[M]) -> M:
    """A model written by `save_model`.

    Args:
      folder: what it was written to.
      kind: its class.

    Raises:
      InputError: no such model, or of another kind; its weights are damaged, or do not fit, and the message lists both
        differences.
    """
    found, config = read_description(folder)
    if found != kind.__name__:
        raise InputError(f"{folder / 'model.json'} describes a {found}, expected a {kind.__name__}")
    return _load(folder, lambda rngs: MODELS[found].make(config, rngs))


def load_any_model(folder: Path) -> nnx.Module:
    """See `load_model`; of whatever kind it is."""
    found, config = read_description(folder)
    return _load(folder, lambda rngs: MODELS[found].make(config, rngs))


def read_description(folder: Path) -> tuple[str, Any]:
    """Kind and configuration of a model written by `save_model`.

    Raises:
      InputError: there is none, or none that is understood.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise InputError(f"no model at {folder}: model.json is missing")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        kind = described["kind"]
        if kind not in MODELS:
            raise InputError(f"{path} describes a {kind}, expected one of {', '.join(MODELS)}")
        return kind, msgspec.convert(described["config"], MODELS[kind].config)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise InputError(f"{path} does not describe a model: {error!r}") from error


def _load(folder: Path, make: Callable[[nnx.Rngs], Any]) -> Any:
    weights = folder.absolute() / "weights"
    if not weights.is_dir():
        raise InputError(f"no weights at {weights}")
    what, mend = f"the weights in {weights} are", "copy the model again, or make it anew"
    graph, state = nnx.split(abstract_model(make))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), _pure(state))
    with _alone() as checkpointer:
        # None where its files cannot be made sense of.
        found = checkpointer.metadata(weights).item_metadata
        if found is None:
            raise InputError(f"{what} damaged (files are missing or cut short): {mend}")
        _compare(weights, _shapes(found.tree), _shapes(expected))
        with damage_told(what, mend):
            restored = checkpointer.restore(weights, expected)
    nnx.replace_by_pure_dict(state, restored)
    return nnx.merge(graph, state)


@contextmanager
def damage_told(what: str, mend: str) -> Iterator[None]:
    """What Orbax raises of torn files becomes an `InputError`: `what`, "damaged", the reason, and how to mend it."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):  # of a device, not of the files
        raise
    except Exception as error:  # of a torn array Orbax raises nothing more special
        raise InputError(f"{what} damaged ({' '.join(str(error).split())[:300]}): {mend}") from error


def _alone() -> ocp.StandardCheckpointer:
    """Writes and reads in this process, whatever the others of the run do meanwhile."""
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _pure(state: nnx.State) -> dict[str, Any]:
    """Nested dictionaries with text keys, as every checkpoint format can hold."""
    return _text_keys(nnx.to_pure_dict(state))


def _text_keys(tree: Any) -> Any:
    return {str(key): _text_keys(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _shapes(tree: Any) -> dict[str, str]:
    """Leaf path -> shape and type, as text."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {".".join(str(part.key) for part in path): f"{tuple(x.shape)} {x.dtype}" for path, x in leaves}


def _compare(place: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    differing = [k for k in expected.keys() & found.keys() if found[k] != expected[k]]
    problems = []
    if missing:
        problems.append(f"missing {name_some(sorted(missing))}")
    if extra:
        problems.append(f"unknown {name_some(sorted(extra))}")
    if differing:
        problems.append("other shape " + name_some(f"{k}: {found[k]}, not {expected[k]}" for k in sorted(differing)))
    if problems:
        raise InputError(f"the checkpoint {place} does not fit the model: " + "; ".join(problems))
