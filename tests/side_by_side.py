"""One training twice: by this package's compiled step, and by PyTorch's optimiser on a twin of the model."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from dorl_jax.training.optim import adamw, warmup_cosine
from dorl_jax.training.step import LossFunction, init_state, make_step

Batch = dict[str, np.ndarray]
SHOWN = (1, 10, 50, 100, 150, 200)


def our_training(
    model: nnx.Module,
    trainable: nnx.filterlib.Filter,
    loss: LossFunction,
    batches: Sequence[Batch],
    schedule: tuple[float, int],
    weight_decay: float,
    seed: int,
) -> np.ndarray:
    """The loss before each step; the model is trained in place. `schedule` is the peak and the steps of warm-up."""
    optimiser = adamw(warmup_cosine(*schedule, len(batches)), weight_decay)
    graph, trained, rest = nnx.split(model, trainable, ...)
    # Copies: what the step is given it uses up.
    state = jax.jit(partial(init_state, optimiser=optimiser, seed=seed))(jax.tree.map(jnp.copy, trained))
    step = jax.jit(make_step(graph, loss, optimiser), donate_argnums=0)
    curve = []
    for batch in batches:
        state, losses = step(state, rest, batch)
        curve.append(losses["loss"])
    nnx.update(model, state["trained"])
    return np.array(curve, np.float64)


def torch_training(
    parameters: Iterable[torch.Tensor],
    loss: Callable[[int, Batch], torch.Tensor],
    batches: Sequence[Batch],
    schedule: tuple[float, int],
    weight_decay: float,
) -> np.ndarray:
    """The loss before each step; the parameters that require a gradient are trained in place."""
    peak, warmup = schedule

    def share(step: int) -> float:
        if step < warmup:
            return step / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (len(batches) - warmup))) / 2

    trained = [tensor for tensor in parameters if tensor.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    curve = []
    for step, batch in enumerate(batches):
        value = loss(step, batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        rate.step()
        curve.append(value.item())
    return np.array(curve)


def print_curves(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Both losses at some steps, and where they differ most."""
    apart = np.abs(ours - theirs) / np.abs(theirs)
    print(f"\n{'step':>5} {'dorl_jax':>12} {'PyTorch':>12} {'relative':>9}")
    for step in SHOWN:
        print(f"{step:5d} {ours[step - 1]:12.8f} {theirs[step - 1]:12.8f} {apart[step - 1]:9.1e}")
    print(f"largest relative difference {apart.max():.1e}, at step {apart.argmax() + 1}")
    if apart.max() > 1e-3:
        print(f"first beyond 1e-3 at step {int((apart > 1e-3).argmax()) + 1}")


def print_parameters(apart: dict[str, float], most: int = 5) -> None:
    """The tensors that ended farthest apart (see `moved_apart`)."""
    print(f"difference over the way that a tensor went: median {np.median(list(apart.values())):.1e}, most of")
    for name, value in sorted(apart.items(), key=lambda item: -item[1])[:most]:
        print(f"  {name} {value:.1e}")


def moved_apart(
    before: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], theirs: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Of each tensor that got a gradient: the difference of where both ended over the way there (Euclidean norms).

    One without a gradient has to be as it was, to the last bit.
    """
    apart = {}
    for name, tensor in theirs.items():
        if tensor.grad is None:
            if name in before and before[name].shape == tensor.shape:
                np.testing.assert_array_equal(ours[name], before[name], err_msg=name)
        else:
            end = tensor.detach().numpy().astype(np.float64)
            way = float(np.linalg.norm(end - before[name]))
            difference = float(np.linalg.norm(ours[name] - end))
            apart[name] = difference / way if way else float(difference > 0)
    return apart
