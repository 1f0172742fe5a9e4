"""Compile a training's step, or the encoder alone, for TPUs that are not there, and print what it costs and sends.

    python scripts/scaling_study.py --variant vit_b --step finetune --topology v5e:2x4 [--topology ...] [--json]
    python scripts/scaling_study.py --variant vit_b --step forward --image-size 1024 --batch 4 --topology v5e:2x4

For TPUs (v5e:2x4, v5p:2x2x1, v6e:2x4, ..) libtpu is needed (`pip install 'dorl-jax[aot]'`), but no TPU: only the
compiler runs. `--topology cpu:8` (or `--cpu 8`) compiles for eight CPU devices instead. It is the step that
`dorl-jax` trains with; no weight is drawn. Each topology is compiled in a process of its own.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from hlo_collectives import Collective, collectives, costly_operations, estimated_cycles, holds_square
from tpu_chips import Chip, chip_of, efficiency, network_seconds, roofline

from dorl_jax.errors import InputError

SCALES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main() -> None:
    """Compile for each topology, and print."""
    options = _parser().parse_args()
    topologies = [*options.topology, *([f"cpu:{options.cpu}"] if options.cpu else [])]
    try:
        if options.one:
            print(json.dumps(study(options.one, options)))
            return
        if not topologies:
            raise InputError("give at least one --topology, such as v5e:2x4 or cpu:8")
        environments = [environment(topology) for topology in topologies]
        records = []
        for topology, variables in zip(topologies, environments, strict=True):
            again = [sys.executable, __file__, *sys.argv[1:], "--one", topology]
            ran = subprocess.run(again, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)
            if ran.returncode:
                raise InputError(f"{topology}: not compiled; the reason is above")
            records.append(json.loads(ran.stdout.splitlines()[-1]))
            if not options.json:
                print(as_text(records[-1]), flush=True)
        if options.json:
            print(json.dumps(records, indent=1))
    except InputError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="vit_b", choices=("tiny", "vit_b", "vit_l", "vit_h"))
    parser.add_argument("--step", default="finetune", choices=("finetune", "cae", "forward"))
    parser.add_argument(
        "--topology", action="append", default=[], help="v5e:2x4, v5p:2x2x1, v6e:2x4, cpu:8; repeatable"
    )
    parser.add_argument("--cpu", type=int, help="the same as --topology cpu:N")
    parser.add_argument("--batch", type=int, default=32, help="images or cells a chip")
    parser.add_argument("--image-size", type=int, default=0, help="side in pixels; 112 (tiny) or 224 if not given")
    parser.add_argument("--model", type=int, default=1, help="chips along the mesh's axis `model`")
    parser.add_argument("--remat", action="store_true", help="compute blocks again in the backward pass")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the arithmetic")
    parser.add_argument("--encoder", default="lora", choices=("lora", "lora_only", "full"), help="what trains of SAM's")
    parser.add_argument("--accumulate", type=int, default=1, help="parts in which a batch is computed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--operations", type=int, default=0, help="of TPUs: as many operations that cost most")
    parser.add_argument("--hlo", help="write the compiled program's text into this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def environment(topology: str) -> dict[str, str]:
    """Variables of the process that compiles for this topology.

    Raises:
      InputError: an unknown topology, or no libtpu.
    """
    kind, _, shape = topology.partition(":")
    sizes = [int(size) if size.isdecimal() else 0 for size in shape.split("x")]
    if min(sizes) < 1 or (kind == "cpu" and len(sizes) > 1):
        raise InputError(f"topology {topology!r}: expected numbers behind the colon, as in v5e:2x4 or cpu:8")
    if kind == "cpu":
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={sizes[0]}"
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    stem, each = chip_of(topology).accelerator
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"compiling for {topology} needs libtpu: pip install 'dorl-jax[aot]', in its own environment")
    chips = 1
    for size in sizes:
        chips *= size
    # Without these, libtpu asks a metadata server that only TPU machines have.
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{stem}-{each * chips}",
    }


def study(topology: str, options: argparse.Namespace) -> dict[str, Any]:
    """What is printed of a topology, in the process that compiles for it."""
    # Imported here, where the environment is that of the topology.
    import jax
    from benchmark_tasks import encoder_multiply_adds
    from compiled_step import StepToCompile, lower_step
    from jax.experimental import topologies

    from dorl_jax.models import SamConfig

    on_cpu = topology.startswith("cpu:")
    if on_cpu:
        # The CPU stands for an accelerator: the convolutions that are written for CPUs alone take one image after the
        # other, also those of other devices.
        setattr(jax.lax, "platform_dependent", lambda *args, default, **others: default(*args))  # noqa: B010
    devices = jax.devices() if on_cpu else topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    what = StepToCompile(
        options.variant, options.step, options.batch, options.model, options.remat, options.dtype, options.encoder,
        options.accumulate, options.image_size,
    )  # fmt: skip
    lowered = lower_step(what, devices)
    record = {
        "topology": topology,
        "devices": len(devices),
        **{name: value for name, value in vars(what).items() if name not in ("image_size", "laboratories")},
        "jax": jax.__version__,
        "libtpu": None if on_cpu else importlib.metadata.version("libtpu"),
        "trained_parameters": lowered.trained,
        "frozen_parameters": lowered.frozen,
    }
    if options.step != "finetune":
        del record["encoder"]
    if options.step != "cae":
        record["image_size"] = what.side
    try:
        compiled = lowered.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return record | {"does_not_fit": str(error).split("\n")[0][:500]}
    text, cost, memory = compiled.as_text(), compiled.cost_analysis(), compiled.memory_analysis()
    assert text is not None
    assert cost is not None
    assert memory is not None
    if options.hlo:
        with open(options.hlo, "w") as file:
            file.write(text)
    found = collectives(text, len(devices))
    reduced = sum(one.elements for one in found if one.kind == "all-reduce")
    record |= {
        # XLA counts the inside of a loop once, however often it runs.
        "flops": cost["flops"] * options.accumulate + lowered.looped_flops,
        "bytes_accessed": cost["bytes accessed"] * options.accumulate,
        "optimal_seconds": cost.get("optimal_seconds"),
        "loops": text.count(" while("),
        "collectives": [vars(one) for one in found],
        "sent_bytes": sum(one.sent() for one in found),
        "reduced_beside_gradients": reduced - lowered.trained,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
        },
    }
    if options.step == "forward":
        encoder = SamConfig.preset(what.variant, what.side).encoder
        record |= {
            "analytic_flops": 2 * what.batch * encoder_multiply_adds(encoder),
            "least_bytes": lowered.least_bytes,
            "scores_of_all_tokens": holds_square(text, encoder.grid[0] * encoder.grid[1]),
        }
    sizes = record["memory"]
    sizes["peak"] = sum(sizes.values()) - 2 * sizes["aliased"]
    if options.operations:
        record["operations"] = costly_operations(text)[: options.operations]
    return record if on_cpu else record | in_time(chip_of(topology), record, found, estimated_cycles(text))


def in_time(chip: Chip, record: dict[str, Any], found: list[Collective], cycles: int) -> dict[str, Any]:
    """What a step's figures mean in seconds, by the chip's published figures."""
    compute = roofline(chip, record["flops"], record["bytes_accessed"])
    chips, model, batch = record["devices"], record["model"], record["batch"]
    rows = []
    for of in SCALES:
        if of % model == 0:
            network = network_seconds(chip, found, chips, of, model)
            plain, hidden = efficiency(compute, network)
            rows.append(
                {
                    "chips": of,
                    "network_seconds": network,
                    "efficiency": plain,
                    "efficiency_overlapped": hidden,
                    "images_per_second": plain * of * batch / compute,
                }
            )
    return {
        "hbm": chip.hbm,
        "fits": record["memory"]["peak"] <= chip.hbm,
        "arithmetic_seconds": record["flops"] / chip.flops,
        "memory_seconds": record["bytes_accessed"] / chip.hbm_bandwidth,
        "compute_seconds": compute,
        "estimated_cycles": cycles,
        "estimated_seconds": cycles / chip.clock if chip.clock and cycles else None,
        "scaling": rows,
    }


def forward_lines(record: dict[str, Any]) -> list[str]:
    """How far the compiled encoder is from what it has to do; nothing for a training's step."""
    if record["step"] != "forward":
        return []
    lines = [
        f"| FLOPs over the analytic count | {record['flops'] / record['analytic_flops']:.3f} |",
        f"| bytes over the least that must move | {record['bytes_accessed'] / record['least_bytes']:.2f} |",
        f"| an array of all tokens by all tokens | {'yes' if record['scores_of_all_tokens'] else 'no'} |",
    ]
    if record.get("estimated_seconds"):
        share = record["estimated_seconds"] / record["arithmetic_seconds"]
        lines.append(f"| the compiler's estimate over FLOPs at the peak rate | {share:.2f} |")
    return lines


def as_text(record: dict[str, Any]) -> str:
    """The record as tables in Markdown."""
    title = ", ".join(f"{name} {record[name]}" for name in ("variant", "step", "topology"))
    settings = ", ".join(
        f"{name} {record[name]}"
        for name in ("batch", "image_size", "model", "remat", "dtype", "encoder", "accumulate")
        if name in record
    )
    versions = f"jax {record['jax']}" + (f", libtpu {record['libtpu']}" if record["libtpu"] else "")
    lines = [f"## {title}", "", f"{record['devices']} devices; {settings} (batch: each device); {versions}", ""]
    trained = record["trained_parameters"]
    if "does_not_fit" in record:
        return "\n".join([*lines, f"Does not fit: {record['does_not_fit']}", ""])
    lines += [
        "| a device, a step | |",
        "|---|---:|",
        f"| parameters: trained, frozen | {trained:,}, {record['frozen_parameters']:,} |",
        f"| FLOPs | {record['flops']:.3e} |",
        *forward_lines(record),
        f"| bytes read and written, cache included | {record['bytes_accessed']:.3e} |",
        f"| bytes sent to other devices | {record['sent_bytes']:,.0f} |",
        f"| numbers summed over devices beyond the gradients | {record['reduced_beside_gradients']:,} |",
        *(f"| memory: {name}, MB | {size / 1e6:,.1f} |" for name, size in record["memory"].items()),
    ]
    if "hbm" in record:
        peak = record["memory"]["peak"]
        estimated = record["estimated_seconds"]
        lines += [
            f"| share of the {record['hbm'] / 1e9:.0f} GB of HBM | {100 * peak / record['hbm']:.1f} % |",
            f"| ms: FLOPs at the peak rate | {1e3 * record['arithmetic_seconds']:.2f} |",
            f"| ms: bytes at HBM's rate | {1e3 * record['memory_seconds']:.2f} |",
            f"| cycles, the compiler's sum over operations | {record['estimated_cycles']:,} |",
            *([f"| ms: those cycles | {1e3 * estimated:.2f} |"] if estimated else []),
            f"| images/s of a chip, roofline | {record['batch'] / record['compute_seconds']:,.0f} |",
        ]
    lines += ["", "| collective | devices in a group | count | numbers | bytes |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {one['kind']} | {one['group']} | {one['count']} | {one['elements']:,} | {one['bytes']:,} |"
        for one in record["collectives"]
    ]
    if record.get("operations"):
        total = record["estimated_cycles"]
        lines += ["", "| operation, and what it is of | times | of the cycles |", "|---|---:|---:|"]
        lines += [
            f"| {name} | {times} | {100 * cycles / total:.1f} % |" for name, times, cycles in record["operations"]
        ]
    if "scaling" in record:
        lines += [
            "",
            "A model, not a measurement: the same batch a chip, compute by roofline, all-reduce over all links.",
            "",
            "| chips | network ms | efficiency | overlapped | images/s |",
            "|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['chips']} | {1e3 * row['network_seconds']:.3f} | {row['efficiency']:.4f} | "
            f"{row['efficiency_overlapped']:.4f} | {row['images_per_second']:,.0f} |"
            for row in record["scaling"]
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
