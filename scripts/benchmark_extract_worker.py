"""One contestant of `benchmark_extract.py`, in a process of its own: asleep until it is told to make a pass.

python benchmark_extract_worker.py {jax,torch} WAY BATCH DTYPE VARIANT FOLDER
python benchmark_extract_worker.py inputs VARIANT FOLDER DATA COUNT
"""

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_worker import forget_peak, status

# What a pass gives: vectors, and how much of its time the device waited.
Pass = Callable[[], tuple[np.ndarray, float]]


def main() -> None:
    """Do what the first argument says."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order, *rest = sys.argv[1:]
    if order == "inputs":
        write_inputs(rest[0], Path(rest[1]), rest[2], int(rest[3]))
        return
    way, batch, dtype, variant, folder = rest
    images = sorted((Path(folder) / "images").iterdir())
    if order == "jax":
        run, facts = prepare_jax(way, int(batch), dtype, Path(folder), images)
    else:
        run, facts = prepare_torch(int(batch), dtype, variant, Path(folder), images)
    vectors, _ = run()
    print(json.dumps({**facts, "vectors": vectors.tolist()}), file=answers, flush=True)
    for _ in sys.stdin:
        forget_peak()
        start = time.perf_counter()
        _, idle = run()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "peak_bytes": status("VmHWM"), "idle_share": idle}
        print(json.dumps(answer), file=answers, flush=True)


def prepare_jax(way: str, batch: int, dtype: Any, folder: Path, images: list[Path]) -> tuple[Pass, dict[str, Any]]:
    """This package, from files or from arrays."""
    import jax
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dorl_jax import DoRL
    from dorl_jax.data.image_lists import open_images
    from dorl_jax.data.loader import picture_batches
    from dorl_jax.data.pictures import FilePictures
    from dorl_jax.embedding.job import EmbedJob, embed_images

    dorl = DoRL.load(folder / "run", only=dtype)
    facts = {"version": f"jax {jax.__version__}", "img_size": dorl.side}
    listed = open_images([str(path) for path in images])
    engine = dorl.engine(batch, dtype, -1)

    def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
        return np.array(column.to_pylist(), np.float32)

    if way.startswith("files"):
        job = EmbedJob(batch_size=batch, dtype=dtype, shard_size=256)

        def from_files() -> tuple[np.ndarray, float]:
            out = folder / f"{way}.parquet"
            out.unlink(missing_ok=True)
            done = embed_images(dorl, listed, out, job, progress=False)
            return vectors_of(pq.read_table(out, columns=["vector"])["vector"]), done.idle_share

        return from_files, facts
    pictures = FilePictures(listed)
    config = dorl.lora_sam.config
    batches = list(
        picture_batches(
            pictures,
            dorl.side,
            batch,
            range(len(listed)),
            resize=config.resize,
            light=config.light,
            originals=False,
        )
    )

    def bare() -> tuple[np.ndarray, float]:
        found = [rows.arrays["vector"] for rows in engine.run(iter(batches))]
        return np.concatenate(found), engine.occupancy.idle_share

    return bare, facts


def prepare_torch(
    batch: int, dtype: str, variant: str, folder: Path, images: list[Path]
) -> tuple[Pass, dict[str, Any]]:
    """PyTorch, from files: Pillow decodes, and everything is kept in a dictionary, as the released code does."""
    import torch
    import torch_cae_twin
    import torch_twin
    from PIL import Image
    from safetensors.numpy import load_file

    from dorl_jax.data.resize import resize_image
    from dorl_jax.models import SAM_PIXEL_MEAN, SAM_PIXEL_STD, CaeConfig, SamConfig

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    side = image_side(variant)
    heads, grid = CaeConfig.preset(variant).heads, SamConfig.preset(variant, side).encoder.grid[0]
    sam, lora = (load_file(folder / f"{name}.safetensors") for name in ("weights", "lora"))
    parameters = torch_twin.parameters(sam, lora, grid=grid)
    cae = torch_cae_twin.parameters(load_file(folder / "cae.safetensors"))
    for tensor in (*parameters.values(), *cae.values()):
        tensor.requires_grad_(False)
    low = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def run() -> tuple[np.ndarray, float]:
        found: dict[str, Any] = {}
        for first in range(0, len(images), batch):
            paths = images[first : first + batch]
            pixels = []
            for path in paths:
                with Image.open(path) as file:
                    pixels.append(resize_image(np.asarray(file.convert("RGB")), side))
            with torch.inference_mode(), low:
                out = torch_twin.lora_sam(parameters, np.stack(pixels), SAM_PIXEL_MEAN, SAM_PIXEL_STD)
                vectors = torch_cae_twin.encode(cae, out["feature"], None, heads)[:, 0]
                masks = out["low_res_logits"].argmax(1)
            for path, feature, mask, vector in zip(paths, out["feature"], masks, vectors, strict=True):
                found[path.name] = (feature, mask, vector.float().numpy())
        return np.stack([vector for _, _, vector in found.values()]), 0.0

    return run, {"version": f"torch {torch.__version__}", "img_size": side}


def image_side(variant: str) -> int:
    """Of the images in pixels."""
    return 112 if variant == "tiny" else 224


def write_inputs(variant: str, folder: Path, data: str, count: int) -> None:
    """A run with drawn weights, the same weights under the original's names, and images from all laboratories.

    No weight is zero, or the contestants could not be told apart by what they give. The whole image is encoded, as in
    the original.
    """
    import jax.numpy as jnp
    from flax import nnx
    from safetensors.numpy import save_file

    from dorl_jax import config
    from dorl_jax.data.laboratory import open_laboratories
    from dorl_jax.data.manifest import make_manifest
    from dorl_jax.data.synthetic import write_laboratories
    from dorl_jax.data.taxonomy import load_taxonomy
    from dorl_jax.models import Cae, CaeConfig, LoraSam, SamConfig
    from dorl_jax.models.sam import SAM_PIXEL_MEAN, SAM_PIXEL_STD
    from dorl_jax.stages.extract import ExtractSettings
    from dorl_jax.stages.run import RunSettings
    from dorl_jax.training.checkpoints import save_model
    from weights_conversion import export_cae, export_lora_sam

    folder.mkdir(parents=True, exist_ok=True)
    shape = SamConfig.preset(variant, image_side(variant))
    assert (shape.pixel_mean, shape.pixel_std) == (SAM_PIXEL_MEAN, SAM_PIXEL_STD)
    model = LoraSam(shape, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, leaf in nnx.to_flat_state(nnx.state(model)):
        if not np.asarray(leaf[...]).any():
            leaf.set_value(jnp.asarray(0.02 * rng.standard_normal(leaf.shape), jnp.float32))
    cae = Cae(CaeConfig.preset(variant), rngs=nnx.Rngs(1))
    files = export_lora_sam(model)
    save_file(files.sam, folder / "weights.safetensors")
    save_file(files.lora, folder / "lora.safetensors")
    save_file(export_cae(cae), folder / "cae.safetensors")
    run = folder / "run"
    save_model(run / "finetune_sam" / "model", model)
    save_model(run / "train_cae" / "model", cae)
    config.save(RunSettings(extract=ExtractSettings(zoom=0.0)), run / config.SETTINGS_FILE)
    root = Path(data) if data else write_laboratories(folder / "drawn", cells_per_class=2)
    manifest = make_manifest(open_laboratories(root), load_taxonomy("five_classes"))
    (folder / "images").mkdir()
    for place, cell in enumerate(in_turn([manifest.of(name) for name in manifest.laboratories], count)):
        shutil.copy(str(cell.image), folder / "images" / f"{place:05d}{Path(str(cell.image)).suffix}")


def in_turn(of_each: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """So many cells, of one laboratory after the other; they come again where there are fewer.

    Rates are of `count` images, so that fewer would pass for faster.
    """
    cells = [cell for cell in itertools.chain(*itertools.zip_longest(*of_each)) if cell is not None]
    return list(itertools.islice(itertools.cycle(cells), count))


if __name__ == "__main__":
    main()
