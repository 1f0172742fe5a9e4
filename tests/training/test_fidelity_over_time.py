"""Two hundred steps of each training beside the same steps of a PyTorch twin: same weights, same batches, fp32.

The twins are held against recordings of the original code in `weights_conversion/test_torch_twin.py` and
`test_torch_cae_twin.py`. `pytest -m slow -s tests/training/test_fidelity_over_time.py` prints the curves.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dorl_jax.data.augment import Augmentation
from dorl_jax.data.crops import cell_crop
from dorl_jax.data.images import resize_image
from dorl_jax.data.loader import array_batches, balance_groups, segmentation_batches
from dorl_jax.data.manifest import Manifest, read_cell, read_laboratories
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.losses import cae_loss, segmentation_loss
from dorl_jax.models import (
    DORL_PIXEL_MEAN,
    DORL_PIXEL_STD,
    Cae,
    CaeConfig,
    ImageEncoderConfig,
    LoraSam,
    MaskDecoderConfig,
    SamConfig,
)
from dorl_jax.models.cae import random_kept
from weights_conversion import export_cae, export_lora_sam

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")

pytestmark = pytest.mark.slow

STEPS, SEED = 200, 5
GRID, WIDTH = 6, 96
ENCODER = ImageEncoderConfig(
    image_size=96, patch_size=16, width=WIDTH, depth=3, heads=6, global_blocks=(1,), window=GRID, out_channels=64
)
SAM = SamConfig(ENCODER, MaskDecoderConfig(hidden=256), pixel_mean=DORL_PIXEL_MEAN, pixel_std=DORL_PIXEL_STD)
CAE = CaeConfig(
    width=WIDTH, grid=GRID, encoder_depth=3, decoder_depth=2, heads=6, projection=50, head_channels=(48, 32, 24, 16)
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Operators this small lose more than they win by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = write_laboratories(tmp_path_factory.mktemp("cells") / "root", cells_per_class=4, laboratories=3)
    return read_laboratories(root, (), load_taxonomy("five_classes"))


def fresh_sam() -> LoraSam:
    """As from a checkpoint: no position table is zero, and B is."""
    model = LoraSam(SAM, rngs=nnx.Rngs(SEED))
    rng = np.random.RandomState(SEED)
    for path, leaf in nnx.to_flat_state(nnx.state(model.sam.image_encoder, nnx.Param)):
        if path[-1] in ("pos_embed", "rel_pos_h", "rel_pos_w"):
            leaf.set_value(jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32))
    return model


def test_fine_tuning(cells: Manifest) -> None:
    import torch_twin
    from side_by_side import moved_apart, our_training, print_curves, print_parameters, torch_training

    stream = segmentation_batches(cells.cells, 96, 8, SEED, augmentation=Augmentation("parity"), balance="laboratory")
    with closing(stream):
        batches = list(islice(stream, STEPS))
    model = fresh_sam()
    files = export_lora_sam(model)
    parameters = torch_twin.parameters(*files, grid=GRID)
    logits_size = 4 * GRID

    def loss(model: LoraSam, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        behind_centres = ((jnp.arange(logits_size) + 0.5) * batch["mask"].shape[1] / logits_size).astype(jnp.int32)
        labels = batch["mask"][:, behind_centres[:, None], behind_centres[None, :]].astype(jnp.int32)
        return segmentation_loss(model(batch["image"])["low_res_logits"], labels)

    def twin_loss(step: int, batch: Mapping[str, np.ndarray]) -> torch.Tensor:
        masks = torch.tensor(batch["mask"])[:, None].float()
        labels = torch.nn.functional.interpolate(masks, logits_size, mode="nearest-exact")[:, 0].long()
        out = torch_twin.lora_sam(parameters, batch["image"], DORL_PIXEL_MEAN, DORL_PIXEL_STD)
        return torch_twin.segmentation_loss(out["low_res_logits"], labels)

    schedule, weight_decay = (2e-4, 20), 0.1
    ours = our_training(model, model.trainable("lora"), loss, batches, schedule, weight_decay, SEED)
    theirs = torch_training(parameters.values(), twin_loss, batches, schedule, weight_decay)
    tuned = export_lora_sam(model)
    print_curves(ours, theirs)
    apart = moved_apart(files.sam | files.lora, tuned.sam | tuned.lora, parameters)
    print_parameters(apart)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert ours[-20:].mean() < 0.5 * ours[:20].mean()
    # The softmax is blind to the biases of keys: their gradients, and so their steps, are rounding alone. Adam makes
    # steps of full size of the smallest gradients, such as those of ReLUs that are hardly ever on: these part most.
    seen = [value for name, value in apart.items() if not name.endswith("k_proj.bias")]
    assert np.median(seen) < 0.02
    assert max(seen) < 0.3


def test_autoencoder(cells: Manifest) -> None:
    import torch_cae_twin
    from side_by_side import moved_apart, our_training, print_curves, print_parameters, torch_training

    pictures = [read_cell(cell) for cell in cells.cells]
    images = np.stack([resize_image(image, 96) for image, _ in pictures])
    number = {laboratory: index for index, laboratory in enumerate(cells.laboratories)}
    arrays = {
        "feature": np.asarray(fresh_sam()(images)["feature"]),
        "crop": np.stack([cell_crop(image, mask, CAE.image_size) for image, mask in pictures]),
        "domain": np.array([number[cell.laboratory] for cell in cells.cells], np.int32),
    }
    stream = array_batches(arrays, 8, SEED, balance_groups(cells.cells, "none"))
    with closing(stream):
        batches = list(islice(stream, STEPS))
    model = Cae(CAE, rngs=nnx.Rngs(SEED))
    before = export_cae(model)
    parameters = torch_cae_twin.parameters(before)

    def loss(model: Cae, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        features = batch["feature"].astype(jnp.float32)
        out = model(features, random_kept(key, features.shape[0], CAE))
        return cae_loss(out, features, batch["crop"].astype(jnp.float32) / 255, batch["domain"], len(number))

    draw = jax.jit(lambda step: random_kept(jax.random.fold_in(jax.random.key(SEED), step), 8, CAE))

    def twin_loss(step: int, batch: Mapping[str, np.ndarray]) -> torch.Tensor:
        kept = torch.tensor(np.array(draw(step))).long()
        features = torch.tensor(batch["feature"]).permute(0, 3, 1, 2)
        images = torch.tensor(batch["crop"]).permute(0, 3, 1, 2) / 255
        out = torch_cae_twin.cae(parameters, features, kept, CAE.heads)
        return torch_cae_twin.cae_loss(out, features, images, torch.tensor(batch["domain"]))["loss"]

    schedule, weight_decay = (1e-4, 20), 0.05
    ours = our_training(model, nnx.Param, loss, batches, schedule, weight_decay, SEED)
    theirs = torch_training(parameters.values(), twin_loss, batches, schedule, weight_decay)
    print_curves(ours, theirs)
    apart = moved_apart(before, export_cae(model), parameters)
    print_parameters(apart)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert ours[-20:].mean() < 0.65 * ours[:20].mean()
    # A difference of means is blind to the projector's bias: its steps are rounding alone.
    seen = [value for name, value in apart.items() if name != "decoder.Linear.bias"]
    assert np.median(seen) < 2e-3
    assert max(seen) < 0.1
    # Some batches have no pair of laboratories: nothing may come of them but what momentum and decay do.
    assert any(len(set(batch["domain"].tolist())) == 1 or 0 not in batch["domain"] for batch in batches)
