"""`dorl-jax <stage>`: read settings, do one stage or all, say what was done."""

import argparse
import dataclasses
import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jax
from tqdm.contrib.logging import logging_redirect_tqdm

from dorl_jax import __version__, config, data_command, judge_command, neighbours_command, predict_command
from dorl_jax.embedding import command as embed_command
from dorl_jax.errors import InputError
from dorl_jax.exports import command as export_command
from dorl_jax.locks import locked
from dorl_jax.parallel import done_by_main, initialise, is_main
from dorl_jax.stages.run import STAGES, RunSettings, Stage, open_run, run_stages
from dorl_jax.training.stopping import Interrupted
from weights_conversion import command

logger = logging.getLogger("dorl_jax")
# Of a log record that is not for the screen.
_FILE_ONLY = "file_only"


def main(arguments: Sequence[str] | None = None) -> int:
    """What `dorl-jax` does.

    Returns the exit status: 0, 2 for bad input or a file that cannot be read or written, 130 or 143 where it was
    stopped.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.stage == "convert":
            command.run(options)
        elif options.stage == "data":
            data_command.run(options)
        elif options.stage == "export":
            _log_to(None, quiet=False)
            export_command.run(options)
        elif options.stage == "neighbours":
            neighbours_command.run(options)
        elif options.stage in ("train-classifier", "predict"):
            _log_to(None, quiet=False)
            predict_command.run(options)
        elif options.stage in ("embed", "extract") and options.images:
            _embed_images(options)
        elif options.stage == "judge":
            judge_command.run(options)
        else:
            _run_stages(options)
    except BrokenPipeError:
        # Whoever read, as `head` does, has read enough; Python would fail once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except InputError as error:
        print(f"dorl-jax: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # Of the system, which names the file: a full disk, a folder that cannot be written.
        print(
            f"dorl-jax: {error}: what was finished is kept; once this is mended, the same command goes on",
            file=sys.stderr,
        )
        return 2
    except Interrupted as stop:
        print(f"dorl-jax: {stop}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("dorl-jax: stopped; the same command goes on with what was finished", file=sys.stderr)
        return 130
    return 0


def _embed_images(options: argparse.Namespace) -> None:
    _log_to(None, quiet=options.quiet)
    with nullcontext() if options.quiet else logging_redirect_tqdm([logger]):
        embed_command.run(options)


def _run_stages(options: argparse.Namespace) -> None:
    _join(options)
    overrides = _overrides(options)
    source = options.config or (options.run / config.SETTINGS_FILE if options.run else None)
    if source is None:
        raise InputError("give --config FILE, --run FOLDER, or both")
    folder = options.run or Path("runs") / Path(source).stem
    settings = config.load(RunSettings, source, overrides)
    names = [stage.name for stage in STAGES]
    if options.stage != "run" and options.redo in names[: names.index(options.stage)]:
        raise InputError(
            f"--redo {options.redo} would remove what {options.stage} needs: say dorl-jax run --redo {options.redo} "
            f"or do {options.redo} first"
        )
    quiet = options.quiet or not is_main()
    with ExitStack() as stack:
        # Of several processes the first holds it for all; before it, nothing in the folder is touched.
        done_by_main(lambda: stack.enter_context(locked(folder / "writing.lock")))
        _log_to(folder / ("log.txt" if is_main() else f"log_{jax.process_index()}.txt"), quiet=quiet)
        try:
            run = open_run(folder, settings, redo=options.redo, progress=not options.quiet)
            # the redirection keeps log lines apart from bars, but forgets the level; without bars it is not needed
            with nullcontext() if quiet else logging_redirect_tqdm([logger]):
                run_stages(run, None if options.stage == "run" else [options.stage])
        except Exception as error:
            # The screen is told by `main`, or by Python.
            unforeseen = not isinstance(error, InputError | Interrupted)
            logger.error("%s", error, exc_info=unforeseen, extra={_FILE_ONLY: True})
            raise
    if not is_main():
        return
    table = run.folder / "evaluation" / "table.md"
    if options.stage in ("run", "evaluate"):
        print(table.read_text(encoding="utf-8"))
    if options.stage in ("run", "report"):
        print(f"The page of pictures: {run.folder / 'report.html'}")


def _join(options: argparse.Namespace) -> None:
    """Become one of several processes, if that is asked for; JAX must not have been used before."""
    told = (options.coordinator, options.processes, options.process)
    if options.distributed and any(value is not None for value in told):
        raise InputError("--distributed asks the cluster what --coordinator, --processes and --process say: drop one")
    if options.distributed or any(value is not None for value in told):
        initialise(*told)


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    overrides = {}
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set {item}: expected section.key=value")
        overrides[key.strip()] = value.strip()
    given = vars(options)
    section = given.get("section")
    for name, value in given.items():
        if name.startswith("setting_") and value is not None:
            overrides[f"{section}.{name.removeprefix('setting_')}"] = value
    return overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dorl-jax",
        description="Laboratory-invariant representations of blood cells: SAM + LoRA + a cross-domain autoencoder.",
    )
    parser.add_argument("--version", action="version", version=f"dorl-jax {__version__}")
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE", parser_class=_Parser)
    about = "Do all stages in order, skipping what is done: " + ", ".join(stage.name for stage in STAGES) + "."
    everything = commands.add_parser("run", help=about, description=about, epilog=_SETTINGS_HELP)
    _add_common(everything)
    for stage in STAGES:
        subparser = commands.add_parser(
            stage.name, help=stage.about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        subparser.describe = partial(_describe, stage)
        _add_common(subparser)
        _add_settings(subparser, stage)
        if stage.name in ("embed", "extract"):
            embed_command.add_arguments(subparser, stage.name)
    data_command.add_parser(commands)
    export_command.add_parser(commands)
    neighbours_command.add_parser(commands)
    predict_command.add_parser(commands)
    judge_command.add_parser(commands)
    command.add_parser(commands)
    return parser


_SETTINGS_HELP = "Every setting of a stage is explained by `dorl-jax STAGE --help` and set by --set SECTION.KEY=VALUE."


class _Parser(argparse.ArgumentParser):
    """Describes its command when it is asked to: for a stage's own words all that the stage needs is imported."""

    describe: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.describe is not None:
            self.description = self.describe()
        return super().format_help()


def _describe(stage: Stage) -> str:
    name = stage.work.__name__.removeprefix("_")
    document = getattr(import_module(f"dorl_jax.stages.{name}"), name).__doc__ or ""
    # Arguments and errors are for those who call it from Python, which since 3.13 takes the indentation off by itself.
    document = inspect.cleandoc(document).partition("\nArgs:\n")[0].partition("\nRaises:\n")[0].rstrip()
    return f"{stage.about}\n\n{document}"


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, help="settings (TOML); default: those of the run folder")
    command.add_argument("--run", type=Path, help="folder of the run; default: runs/<name of the settings file>")
    command.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting; may be repeated"
    )
    command.add_argument("--redo", metavar="STAGE", help="remove what this stage and those behind it wrote, first")
    command.add_argument("--quiet", action="store_true", help="no progress bars, warnings only")
    hosts = command.add_argument_group("several processes", "the same command on every host (see docs/hosts.md)")
    hosts.add_argument(
        "--distributed", action="store_true", help="the cluster tells: TPU, GKE, Slurm, Open MPI, JobSet"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="without a cluster: process 0, and a free port there")
    hosts.add_argument("--processes", type=int, metavar="N", help="how many there are")
    hosts.add_argument("--process", type=int, metavar="I", help="number of this one, 0 to N - 1")


def _add_settings(command: argparse.ArgumentParser, stage: Stage) -> None:
    if stage.section is None:
        return
    command.set_defaults(section=stage.section)
    group = command.add_argument_group("settings", "override those of the settings file")
    for name, field in _settings_of(RunSettings.__dataclass_fields__[stage.section].type):
        about = f"{field.metadata['help']}{_choices(field.type)} (default: {_shown(field.default)})"
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=f"setting_{name}",
            metavar="VALUE",
            help=about.replace("%", "%%"),
        )


def _choices(kind: Any) -> str:
    """What a setting of few values may be."""
    return f"; one of {', '.join(map(_shown, get_args(kind)))}" if get_origin(kind) is Literal else ""


def _shown(value: Any) -> str:
    """A value as it would be typed: lists and truth values as TOML writes them."""
    return value if isinstance(value, str) and value else json.dumps(value)


def _settings_of(settings_type: Any, before: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Dotted name and field of every setting."""
    for field in dataclasses.fields(settings_type):
        if dataclasses.is_dataclass(field.type):
            yield from _settings_of(field.type, f"{before}{field.name}.")
        else:
            yield before + field.name, field


def _log_to(path: Path | None, *, quiet: bool) -> None:
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    to_screen = logging.StreamHandler()
    to_screen.setLevel(logging.WARNING if quiet else logging.INFO)
    to_screen.setFormatter(logging.Formatter("%(message)s"))
    to_screen.addFilter(lambda record: not hasattr(record, _FILE_ONLY))
    logger.addHandler(to_screen)
    if path is not None:
        to_file = logging.FileHandler(path)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(to_file)
