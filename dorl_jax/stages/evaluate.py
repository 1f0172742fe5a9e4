"""Stage `evaluate`: latent vectors -> the cross-domain tables."""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

import msgspec
import numpy as np

from dorl_jax.config import expand_path
from dorl_jax.data.manifest import Manifest
from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation import plots
from dorl_jax.evaluation.few_cells import few_cells
from dorl_jax.evaluation.heat_maps import panels
from dorl_jax.evaluation.invariance import MISSING, measure_invariance
from dorl_jax.evaluation.invariance_columns import InvarianceColumns
from dorl_jax.evaluation.latents import Latents, read_latents, take_parts
from dorl_jax.evaluation.methods import Method
from dorl_jax.evaluation.of_cells import latents_of
from dorl_jax.evaluation.predictions import write_predictions
from dorl_jax.evaluation.protocol import Evaluation, Fit, judge, plan
from dorl_jax.evaluation.settings import EvaluateSettings, parts_in
from dorl_jax.evaluation.tables import write_csv, write_tables
from dorl_jax.files import replacing, write_text

logger = logging.getLogger(__name__)


def evaluate(
    latents_path: Path,
    out: Path,
    settings: EvaluateSettings,
    progress: bool = True,
    groups: Mapping[str, str] | None = None,
    baselines: Mapping[str, tuple[Latents, ...]] | None = None,
) -> Evaluation:
    """Judge latent vectors across laboratories (see `dorl_jax.evaluation.protocol.judge`).

    Writes into `out`: `summary.json` (every fold, means, intervals, comparisons), `confusion.json`, `rows.csv`,
    `means.csv`, `summaries.csv`, `laboratories.csv`, `comparisons.csv`, `table.md`, `table.tex`, `heat_maps.png`,
    `predictions.parquet` (what every fit called every cell), `invariance.json` and `.csv`, `few_cells.csv`, and
    `fits.jsonl`, the finished fits. A run that was killed goes on from there; fits of other vectors, folds, seed or
    package versions are not used.

    Args:
      latents_path: what the stage `embed` wrote.
      out: folder, made where it is missing.
      settings: see `EvaluateSettings`.
      progress: show a progress bar.
      groups: id -> group of cells that must stay together, in place of those that the file names.
      baselines: other methods of the run, to be judged beside it: name -> vectors (see `Method`).

    Raises:
      InputError: latents that cannot be read or judged, or that lack a part in `settings.parts`.
    """
    latents = _regrouped(read_latents(latents_path), groups)
    others = [Method(name, vectors) for name, vectors in (baselines or {}).items()]
    methods = [Method(settings.name, (latents,)), *others, *read_methods(settings.beside)]
    return evaluate_methods(methods, out, settings, progress)


def refuse_untestable(
    manifest: Manifest,
    settings: EvaluateSettings,
    *,
    unseen: Sequence[str] = (),
    labels_seen: bool = False,
    groups: Mapping[str, str] | None = None,
) -> None:
    """Refuse what `evaluate` would of these cells, before a training of hours makes their vectors.

    Args:
      manifest: the cells.
      settings: of `evaluate`.
      unseen, labels_seen: what the trainings will have seen (see `exposure.what_was_seen`).
      groups: as for `evaluate`.

    Raises:
      InputError: see `protocol.plan`.
    """
    stand_in = latents_of(manifest, np.zeros((len(manifest.cells), 1), np.float32), unseen, labels_seen)
    stand_in = _regrouped(stand_in, groups)
    plan([Method(settings.name, (stand_in,))], settings)


def read_methods(named: Sequence[str]) -> list[Method]:
    """Methods from texts NAME=FILE (see `EvaluateSettings.beside`); texts of one name are one method.

    Raises:
      InputError: a text without a name, a file that is missing, given twice or cannot be read.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for text in named:
        name, equals, pattern = text.partition("=")
        if not equals or not name.strip() or not pattern.strip():
            raise InputError(f"{text!r}: expected NAME=FILE, as in 'frozen encoder=features/*.parquet'")
        path = expand_path(pattern.strip(), text)
        # A name may hold brackets.
        found = [path] if path.is_file() else [Path(one) for one in sorted(glob(str(path), recursive=True))]
        if not found:
            raise InputError(f"{text!r}: no such file")
        files[name.strip()] += found
    for name, paths in files.items():
        places = [path.resolve() for path in paths]
        twice = [path for number, path in enumerate(paths) if places[number] in places[:number]]
        if twice:
            raise InputError(f"{name!r} has {name_some(twice)} twice, which would pass for two seeds: give it once")
    return [Method(name, tuple(read_latents(path) for path in paths)) for name, paths in files.items()]


def evaluate_methods(
    methods: Sequence[Method], out: Path, settings: EvaluateSettings, progress: bool = True
) -> Evaluation:
    """Judge methods on the same cells and folds, and write what `evaluate` writes."""
    methods = [*methods, *(_of_parts(methods[0], text) for text in settings.parts)]
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "fits.jsonl"
    finished = _read_journal(journal)
    if finished:
        logger.info("%d finished fits in %s", sum(map(len, finished.values())), journal)
    with journal.open("ab") as file:

        def keep(mark: str, fit: Fit) -> None:
            file.write(msgspec.json.encode(_Entry(mark, fit)) + b"\n")
            file.flush()

        judgement = judge(methods, settings, progress, finished, keep)
    evaluation = judgement.evaluation
    for note in evaluation.notes:
        logger.info("%s", note)
    # What a killed run, or one of other settings, would leave beside what is written now.
    for name in ("summary.json", "invariance.json", "invariance.csv", "few_cells.csv"):
        (out / name).unlink(missing_ok=True)
    write_predictions(judgement.cells, judgement.judged, out / "predictions.parquet")
    write_text(out / "confusion.json", json.dumps(evaluation.to_confusions()) + "\n")
    for name, items in (
        ("rows", evaluation.rows),
        ("means", evaluation.means),
        ("summaries", evaluation.summaries),
        ("laboratories", evaluation.on_laboratories),
        ("comparisons", evaluation.comparisons),
    ):
        write_text(out / f"{name}.csv", write_csv(items))
    runs = [one.run for one in judgement.judged]
    columns = InvarianceColumns()
    if settings.invariance and not evaluation.alone:
        found, complete = measure_invariance(judgement.cells, runs, evaluation.settings["adaptations"], settings.seed)
        if not complete:
            logger.info("%s", MISSING)
        remark = "" if complete else MISSING
        tree = {"remark": remark, "measured": msgspec.to_builtins(found)}
        write_text(out / "invariance.json", json.dumps(tree, indent=1) + "\n")
        write_text(out / "invariance.csv", write_csv(found))
        columns = InvarianceColumns(found, remark)
    if settings.few_cells and not evaluation.alone and not settings.parity:
        curve = few_cells(
            judgement.cells, runs, evaluation.headline, settings.few_cells, settings.seed, settings.tested
        )
        write_text(out / "few_cells.csv", write_csv(curve))
    write_text(out / "table.md", write_tables(evaluation, "markdown", columns))
    write_text(out / "table.tex", write_tables(evaluation, "latex", columns))
    ranking = evaluation.ranking()
    with replacing(out / "heat_maps.png") as partial:
        laboratories = list(evaluation.laboratories)
        drawn = plots.heat_maps(panels(evaluation, ranking), laboratories, evaluation.floors(), plots.LIGHT)
        partial.write_bytes(plots.on_white(drawn))
    # Last, as it marks the stage as done.
    write_text(out / "summary.json", json.dumps(evaluation.to_summary(), indent=1, ensure_ascii=False) + "\n")
    return evaluation


def _regrouped(latents: Latents, groups: Mapping[str, str] | None) -> Latents:
    """With other groups, id -> group, in place of its own; None for these."""
    if groups is None:
        return latents
    return replace(latents, groups=np.array([groups.get(id, "") for id in latents.ids.tolist()]))


def _of_parts(method: Method, joined: str) -> Method:
    return Method(f"{method.name}: {joined}", tuple(take_parts(one, parts_in(joined)) for one in method.latents))


@dataclass(frozen=True)
class _Entry:
    mark: str
    fit: Fit


def _read_journal(path: Path) -> dict[str, list[Fit]]:
    """The finished fits by their mark. A last line torn by a kill is cut off; the next then starts afresh."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.info("%s: last line is torn, that fit is done again", path)
        with path.open("r+b") as file:
            file.truncate(whole)
    fits = defaultdict(list)
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            entry = msgspec.json.decode(line, type=_Entry)
        except msgspec.DecodeError as error:
            logger.warning("%s, line %d: not a finished fit (%s); that fit is done again", path, number, error)
            continue
        fits[entry.mark].append(entry.fit)
    return dict(fits)
