"""Stage `evaluate`: latent vectors -> the cross-domain tables."""

import csv
import hashlib
import io
import json
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import msgspec

from dorl_jax.config import setting
from dorl_jax.evaluation.classifiers import CLASSIFIERS
from dorl_jax.evaluation.latents import Latents, read_latents, standardise_by_laboratory
from dorl_jax.evaluation.protocol import Evaluation, Fit, evaluate_latents, package_versions
from dorl_jax.evaluation.results import Mean
from dorl_jax.files import write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateSettings:
    """How latent vectors are judged."""

    classifiers: tuple[str, ...] = setting(CLASSIFIERS, f"classifiers to fit, out of {', '.join(CLASSIFIERS)}")
    folds: int = setting(5, "stratified folds of each source laboratory")
    seed: int = setting(1234, "seed of the fold splits and of the classifiers")
    standardise: Literal["none", "laboratory"] = setting(
        "none",
        "'laboratory' first scales the vectors of each laboratory by their own mean and sd, which needs "
        "unlabelled cells of the target; 'none' is the method's protocol",
    )


def evaluate(latents_path: Path, out: Path, settings: EvaluateSettings, progress: bool = True) -> Evaluation:
    """Judge latent vectors across laboratories (see `dorl_jax.evaluation.protocol.evaluate_latents`).

    Writes into `out`: `summary.json` (every fold and the means), `confusion.json`, `means.csv`, `table.md`,
    and `fits.jsonl`, the finished fits. A run that was killed goes on from there; fits of other latents,
    folds, seed or package versions are not used.

    Args:
      latents_path: what the stage `embed` wrote.
      out: folder, made where it is missing.
      settings: see `EvaluateSettings`.
      progress: show a progress bar.

    Raises:
      InputError: latents that cannot be read or judged, or settings out of range.
    """
    latents = read_latents(latents_path)
    if settings.standardise == "laboratory":
        latents = standardise_by_laboratory(latents)
    out.mkdir(parents=True, exist_ok=True)
    fingerprint = _fingerprint(latents, settings)
    journal = out / "fits.jsonl"
    finished = _read_journal(journal, fingerprint)
    if finished:
        logger.info("%d finished fits taken from %s", len(finished), journal)
    with journal.open("ab") as file:

        def keep(fit: Fit) -> None:
            file.write(msgspec.json.encode(_Entry(fingerprint, fit)) + b"\n")
            file.flush()

        evaluation = evaluate_latents(
            latents, settings.classifiers, settings.folds, settings.seed, progress, finished, keep
        )
    evaluation.settings["standardise"] = settings.standardise
    for note in evaluation.notes:
        logger.info("%s", note)
    write_text(out / "confusion.json", json.dumps(evaluation.to_confusions()) + "\n")
    write_text(out / "means.csv", _csv(evaluation.means))
    write_text(out / "table.md", evaluation.markdown_table())
    # Last, as it marks the stage as done.
    write_text(out / "summary.json", json.dumps(evaluation.to_summary(), indent=1, ensure_ascii=False) + "\n")
    return evaluation


@dataclass(frozen=True)
class _Entry:
    fingerprint: str
    fit: Fit


def _fingerprint(latents: Latents, settings: EvaluateSettings) -> str:
    """Hash of all that decides a fit but its source, classifier and fold."""
    facts = {"folds": settings.folds, "seed": settings.seed, "versions": package_versions()}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for texts in (latents.ids, latents.laboratories, latents.labels):
        digest.update(json.dumps(texts.tolist()).encode())
    digest.update(str(latents.vectors.shape).encode())
    digest.update(latents.vectors.tobytes())
    return digest.hexdigest()


def _read_journal(path: Path, fingerprint: str) -> list[Fit]:
    """The fits under this fingerprint. A last line torn by a kill is cut off; the next then starts afresh."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.info("%s: last line is torn, that fit is done again", path)
        with path.open("r+b") as file:
            file.truncate(whole)
    fits = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            entry = msgspec.json.decode(line, type=_Entry)
        except msgspec.DecodeError as error:
            logger.warning("%s, line %d: not a finished fit (%s); that fit is done again", path, number, error)
            continue
        if entry.fingerprint == fingerprint:
            fits.append(entry.fit)
    return fits


def _csv(means: list[Mean]) -> str:
    """The means, one a line; per-class recall stands in `summary.json`."""
    text = io.StringIO()
    columns = [f.name for f in fields(Mean) if f.name != "recall"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(mean) for mean in means)
    return text.getvalue()
