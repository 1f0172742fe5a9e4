"""Measure the memory that converting a SAM checkpoint takes, against the size of the checkpoint.

    python scripts/convert_memory.py [--variant vit_h] [--folder /tmp]

Writes a checkpoint of that variant with random values, as .safetensors and as .pth. Each is converted in a process of
its own: at 1024 pixels (as stored), at 224 (position tables resized), and with the model then written to a folder, as
`dorl-jax convert` does. Prints the peak of the resident memory of that process as the kernel counts it, Python, JAX and
PyTorch included. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dorl_jax.models import Sam, SamConfig
from dorl_jax.training.checkpoints import save_model
from weights_conversion import convert_sam
from weights_conversion.files import write_state_dict
from weights_conversion.key_map import shapes_in_torch
from weights_conversion.sam_rules import SAM_RULES


def write_checkpoints(variant: str, folder: Path) -> list[Path]:
    """A checkpoint of the variant at 1024 pixels, in both formats."""
    config = SamConfig.preset(variant)
    shapes = shapes_in_torch(lambda rngs: Sam(config, rngs=rngs), SAM_RULES)
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    paths = [folder / f"sam_{variant}{suffix}" for suffix in (".safetensors", ".pth")]
    for path in paths:
        write_state_dict(tensors, path)
    return paths


def peak_bytes() -> int:
    """Highest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    """Measure, each conversion in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="vit_h")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written for the while")
    parser.add_argument("--one", nargs=3, metavar=("FILE", "SIZE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_checkpoints(options.variant, options.write)
        return
    if options.one:
        start = time.perf_counter()
        file, size, out = options.one
        model = convert_sam(file, options.variant, int(size))
        if out:
            save_model(Path(out), model)
        print(peak_bytes(), time.perf_counter() - start)
        return
    print("| checkpoint | at | GB | peak memory, GB | times the checkpoint | seconds |\n|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        again = [sys.executable, __file__, "--variant", options.variant]
        subprocess.run([*again, "--write", folder], check=True)
        for path in sorted(Path(folder).glob("sam_*")):
            for size, out in ((1024, ""), (224, ""), (1024, f"{path}.model")):
                one = [*again, "--one", path, str(size), out]
                ran = subprocess.run(one, check=True, capture_output=True, text=True)
                peak, seconds = map(float, ran.stdout.split())
                stored = path.stat().st_size
                cells = (
                    path.name,
                    f"{size}, written" if out else size,
                    f"{stored / 1e9:.2f}",
                    f"{peak / 1e9:.2f}",
                    f"{peak / stored:.2f}",
                )
                print(f"| {' | '.join(map(str, cells))} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
