"""All stages of a run in order, in one folder, skipping what is done."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dorl_jax import __version__, config
from dorl_jax.allocator import return_free_memory
from dorl_jax.baselines.settings import BaselineSettings
from dorl_jax.data.groups import cached_groups
from dorl_jax.data.manifest import Manifest, load_cells
from dorl_jax.dorl import DoRL
from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation.settings import EvaluateSettings, parts_in
from dorl_jax.files import write_text
from dorl_jax.parallel import done_by_main, is_main
from dorl_jax.stages.embed import EmbedSettings, embed
from dorl_jax.stages.extract import ExtractSettings, extract
from dorl_jax.stages.finetune_sam import FinetuneSettings, finetune_sam
from dorl_jax.stages.prepare import DataSettings, changes, prepare
from dorl_jax.stages.train_cae import CaeSettings, train_cae
from dorl_jax.store import differences, fingerprint
from dorl_jax.training.settings import INDIFFERENT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """Everything a run depends on; one section a stage."""

    data: DataSettings = field(default_factory=DataSettings)
    finetune_sam: FinetuneSettings = field(default_factory=FinetuneSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    train_cae: CaeSettings = field(default_factory=CaeSettings)
    embed: EmbedSettings = field(default_factory=EmbedSettings)
    baselines: BaselineSettings = field(default_factory=BaselineSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        """Refuse what the last stage would, before the first has run.

        Raises:
          InputError: a part that the vectors will not have.
        """
        wanted = {part for joined in self.evaluate.parts for part in parts_in(joined)}
        unknown = sorted(wanted.difference(self.train_cae.vector))
        if unknown:
            raise InputError(
                f"evaluate.parts: the vectors will have no part {name_some(unknown)}; "
                f"train_cae.vector is {', '.join(self.train_cae.vector)}"
            )


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      name: of the sub-command, with dashes.
      section: of the settings; None if it has none.
      folder: what it writes, in the run folder.
      about: one sentence.
      work: does it.
      everywhere: whether all processes of a run over several do it together; otherwise process 0 does, and the others
        wait.
    """

    name: str
    section: str | None
    folder: str
    about: str
    work: Callable[["Run"], Any]
    everywhere: bool = False


class Run:
    """A run folder and its settings."""

    def __init__(self, folder: Path, settings: RunSettings, *, progress: bool = True) -> None:
        self.folder, self.settings, self.progress = folder, settings, progress

    def cells(self) -> Manifest:
        """The accepted cells."""
        return load_cells(self.folder / "data" / "cells.parquet")

    def seen_cells(self) -> Manifest:
        """Those of them that trainings may see."""
        return self.cells().without(self.settings.data.unseen)

    def unseen(self) -> tuple[str, ...]:
        """The laboratories that trainings see nothing of, as the cells call them."""
        if not self.settings.data.unseen:
            return ()
        cells = self.cells()
        return tuple(cells.named(name) for name in self.settings.data.unseen)

    @property
    def labels_seen(self) -> bool:
        """Whether a training sees the classes of the cells that it may see."""
        return any("class" in one.balance for one in (self.settings.finetune_sam, self.settings.train_cae))

    def groups(self) -> dict[str, str] | None:
        """Id -> group of cells that no fold parts; None where the settings ask for none."""
        settings = self.settings.evaluate
        if not settings.grouped or settings.parity:
            return None
        return cached_groups(self.cells(), self.folder / "evaluation" / "groups.parquet", progress=self.progress)

    def mark(self, stage: Stage) -> str:
        """Fingerprint of all a stage's output depends on: its settings and those of the stages before it."""
        before = STAGES[: STAGES.index(stage) + 1]
        return fingerprint(__version__, [(one.name, self.tree(one)) for one in before])

    def tree(self, stage: Stage) -> dict[str, Any]:
        """The settings of a stage that its output depends on, as plain values."""
        tree = config.as_tree(getattr(self.settings, stage.section)) if stage.section else {}
        return {name: value for name, value in tree.items() if name not in INDIFFERENT}


def _prepare(run: Run) -> Any:
    least = run.settings.evaluate.least_laboratories
    return prepare(run.folder / "data", run.settings.data, least=least, progress=run.progress)


def _finetune_sam(run: Run) -> Any:
    out = run.folder / "finetune_sam"
    return finetune_sam(run.seen_cells(), out, run.settings.finetune_sam, progress=run.progress)


def _extract(run: Run) -> Any:
    return extract(
        run.cells(),
        run.folder / "finetune_sam" / "model",
        run.folder / "extract",
        run.settings.extract,
        weights=run.mark(stage_named("finetune-sam")),
        progress=run.progress,
    )


def _train_cae(run: Run) -> Any:
    store = run.folder / "extract" / "store"
    return train_cae(
        run.cells(),
        store,
        run.folder / "train_cae",
        run.settings.train_cae,
        unseen=run.unseen(),
        progress=run.progress,
    )


def _embed(run: Run) -> Any:
    return embed(
        run.cells(),
        run.folder / "extract" / "store",
        run.folder / "train_cae" / "model",
        run.folder / "embed",
        run.settings.embed,
        unseen=run.unseen(),
        labels_seen=run.labels_seen,
        provenance=DoRL.load(run.folder).provenance,
        progress=run.progress,
    )


def _baselines(run: Run) -> Any:
    if not run.settings.baselines.names:
        return None
    from dorl_jax.stages.baselines import baselines  # only here: scikit-learn takes seconds to import

    return baselines(
        run.cells(),
        run.folder / "extract" / "store",
        run.folder / "baselines",
        run.settings.baselines,
        unseen=run.unseen(),
        labels_seen="class" in run.settings.finetune_sam.balance,
        progress=run.progress,
    )


def _evaluate(run: Run) -> Any:
    # only here: scikit-learn and plots take seconds to import
    from dorl_jax.stages.baselines import read_baseline
    from dorl_jax.stages.evaluate import evaluate

    settings, out = run.settings.evaluate, run.folder / "evaluation"
    # Files may have been made again with other settings meanwhile; what is right is not.
    _baselines(run)
    return evaluate(
        run.folder / "embed" / "latents.parquet",
        out,
        settings,
        progress=run.progress,
        groups=run.groups(),
        baselines={
            name: tuple(read_baseline(run.folder / "baselines", name).values()) for name in run.settings.baselines.names
        },
    )


def _refuse_untestable(run: Run) -> None:
    from dorl_jax.stages.evaluate import refuse_untestable  # only here, as in `_evaluate`

    settings = run.settings
    refuse_untestable(
        run.cells(),
        settings.evaluate,
        unseen=run.unseen(),
        labels_seen=run.labels_seen,
        groups=run.groups(),
    )


def _report(run: Run) -> Any:
    from dorl_jax.stages.report import report

    return report(run.folder)


STAGES = (
    Stage("prepare", "data", "data", "Read and check the cells of all laboratories.", _prepare),
    Stage("finetune-sam", "finetune_sam", "finetune_sam", "Teach SAM to segment cells.", _finetune_sam, True),
    Stage("extract", "extract", "extract", "Compute features, masks and crops of all cells.", _extract),
    Stage("train-cae", "train_cae", "train_cae", "Train the cross-domain autoencoder.", _train_cae, True),
    Stage("embed", "embed", "embed", "Compute one vector a cell.", _embed),
    Stage("baselines", "baselines", "baselines", "Make the vectors that the method is compared with.", _baselines),
    Stage("evaluate", "evaluate", "evaluation", "Test classifiers from every laboratory to every other.", _evaluate),
    Stage("report", None, "report", "Write the page of tables and pictures.", _report),
)


def stage_named(name: str) -> Stage:
    """The stage of that name."""
    return next(stage for stage in STAGES if stage.name == name)


def open_run(folder: Path, settings: RunSettings, *, redo: str | None = None, progress: bool = True) -> Run:
    """A run in `folder`, new or to go on with.

    Args:
      folder: of the run.
      settings: those of the run; what is there already must have been made with them.
      redo: name of a stage; what it and all behind it wrote is removed, once the stages before it are seen to fit.
      progress: show bars.

    Raises:
      InputError: other settings than those of the folder, or no stage named `redo`; nothing is removed then.
    """
    names = [stage.name for stage in STAGES]
    if redo is not None and redo not in names:
        raise InputError(f"no stage {redo!r}; there are: {', '.join(names)}")
    kept = len(STAGES) if redo is None else names.index(redo)
    run = Run(folder, settings, progress=progress and is_main())

    def prepare_folder() -> None:
        _refuse_other_settings(run, STAGES[:kept])
        _forget(folder, STAGES[kept:])
        config.save(settings, folder / config.SETTINGS_FILE)

    done_by_main(prepare_folder)
    return run


def run_stages(run: Run, names: list[str] | None = None) -> None:
    """Do the named stages, or all, in order; a stage that is done is skipped.

    With several processes all of them call this. What to do is for process 0 to tell, so that none goes by a file that
    it sees earlier or later than the others.

    Raises:
      InputError: a stage that must come first is not done, or what a stage itself refuses; of `evaluate`, where it is
        among them, before anything trains; on the other processes, that process 0 failed.
    """
    chosen = [stage for stage in STAGES if names is None or stage.name in names]
    for stage in chosen:
        if not done_by_main(partial(_begin, run, stage)):
            continue
        if stage.everywhere and stage_named("evaluate") in chosen:
            done_by_main(partial(_refuse_untestable, run))
        start = time.perf_counter()
        if stage.everywhere:
            stage.work(run)
        done_by_main(partial(_end, run, stage, start))
        return_free_memory()  # what a training worked in


def _begin(run: Run, stage: Stage) -> bool:
    """Whether there is anything to do."""
    for earlier in STAGES[: STAGES.index(stage)]:
        if not _is_done(run, earlier):
            raise InputError(
                f"{stage.name} needs what {earlier.name} writes: dorl-jax {earlier.name} --run {run.folder}"
            )
    if _is_done(run, stage):
        logger.info("%s: done already", stage.name)
        if stage.name == "prepare" and (changed := changes(run.folder / stage.folder, run.settings.data)):
            logger.warning(
                "the laboratories are not as prepare found them, and the run goes on with what it found: %s; "
                "--redo prepare takes up what changed",
                changed,
            )
        return False
    logger.info("%s: %s", stage.name, stage.about)
    # What stands behind it was made of something else: a folder of a version that did not have this stage.
    for later in STAGES[STAGES.index(stage) + 1 :]:
        _state_file(run.folder, later).unlink(missing_ok=True)
    _write_state(run, stage, done=False)
    return True


def _end(run: Run, stage: Stage, start: float) -> None:
    if not stage.everywhere:
        stage.work(run)
    _write_state(run, stage, done=True)
    logger.info("%s: %.0f s", stage.name, time.perf_counter() - start)


def _forget(folder: Path, stages: Sequence[Stage]) -> None:
    # the marks first: a kill between may leave files of a stage that is not done, never a done stage without files
    for stage in stages:
        _state_file(folder, stage).unlink(missing_ok=True)
    for stage in stages:
        # What cannot be removed would be gone on with, and taken for what was asked for anew.
        if (folder / stage.folder).exists():
            shutil.rmtree(folder / stage.folder)


def _refuse_other_settings(run: Run, stages: Sequence[Stage]) -> None:
    for stage in stages:
        state = _read_state(run.folder, stage)
        # A stage that was refused before it wrote anything, for a wrong path say, has made nothing with any settings.
        if state is None or not (state["done"] or _has_written(run.folder / stage.folder)):
            continue
        changed = differences(state["settings"], run.tree(stage))
        if state["version"] != __version__:
            changed.append(f"the version of dorl_jax ({state['version']}, now {__version__})")
        if changed:
            raise InputError(
                f"{run.folder} was made with other settings of {stage.name}: {name_some(changed)}. "
                f"Choose another --run folder, or do {stage.name} and what follows again with --redo {stage.name}"
            )


def _has_written(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _state_file(folder: Path, stage: Stage) -> Path:
    return folder / "stages" / f"{stage.name}.json"


def _read_state(folder: Path, stage: Stage) -> dict[str, Any] | None:
    path = _state_file(folder, stage)
    return json.loads(path.read_text()) if path.is_file() else None


def _is_done(run: Run, stage: Stage) -> bool:
    state = _read_state(run.folder, stage)
    return state is not None and state["done"]


def _write_state(run: Run, stage: Stage, *, done: bool) -> None:
    state = {"done": done, "version": __version__, "settings": run.tree(stage)}
    write_text(_state_file(run.folder, stage), json.dumps(state, indent=1) + "\n")
