"""A fitted classifier with what it was fitted on, kept in a file that holds no code."""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped
from sklearn.calibration import CalibratedClassifierCV

from dorl_jax import __version__
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation.adaptation import ROUNDS, TRAINING_ON, Adaptation, self_train
from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.experts import Experts, in_units, unfitted
from dorl_jax.evaluation.familiarity import Familiarity, Reference, fit_familiarity
from dorl_jax.files import replacing
from dorl_jax.vectors import Vectors, refuse_other_model

# How messages call unlabelled cells that name no laboratory.
UNLABELLED = "unlabelled"
# With fewer cells the mean and sd of a laboratory say more of these cells than of it.
_FEW = 100
_HEADER = "dorl_jax.json"
_FORMAT = 1
# Beside what skops itself trusts: the types that the classifiers of this package are made of.
_TRUSTED = (
    "dorl_jax.evaluation.classifiers.EarlyStoppingMlp",
    "dorl_jax.evaluation.classifiers.OrderedForest",
    "dorl_jax.evaluation.classifiers.ShrunkLda",
    "dorl_jax.evaluation.classifiers.XgboostClassifier",
    "dorl_jax.evaluation.experts.Experts",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
)
# Whose stored estimators another minor version may read wrongly, or not at all.
_BOUND = ("scikit-learn", "xgboost")


@dataclass(frozen=True)
class Header:
    """What a classifier is, told without building it.

    Attributes:
      name: out of `classifiers.CLASSIFIERS`.
      classes: in the order of its probabilities.
      cells: laboratory -> class -> training cells.
      width: components of a vector.
      adaptation: out of `adaptation.ADAPTATIONS`: all but "none" scale vectors by their own laboratory first.
      seed: of the fit.
      vectors: provenance of the training vectors.
      versions: of the packages it was fitted with.
      notes: what was special about the fit.
      parts: what the vectors are made of, in order: name -> numbers.
      adapted_to: laboratory -> unlabelled cells that it trained on, and is for.
      format: of the file.
    """

    name: str
    classes: tuple[str, ...]
    cells: dict[str, dict[str, int]]
    width: int
    adaptation: Adaptation
    seed: int
    vectors: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    parts: dict[str, int] = field(default_factory=dict)
    adapted_to: dict[str, int] = field(default_factory=dict)
    format: int = _FORMAT


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier, and the laboratories it trained on, to compare with; those adapted to are among them."""

    header: Header
    classifier: Any
    familiarity: Familiarity

    def probabilities(self, values: Float32[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Of every class of `header.classes`; of vectors that are in the units of `header.adaptation` already."""
        return np.asarray(self.classifier.predict_proba(values), np.float64)


def fit_classifier(
    vectors: Vectors,
    name: str,
    *,
    label: str = "label",
    taxonomy: Taxonomy | None = None,
    adaptation: Adaptation = "none",
    seed: int = 1234,
    unlabelled: Vectors | None = None,
    rounds: int = ROUNDS,
    parts: Sequence[str] = (),
) -> FittedClassifier:
    """Fit one of the method's classifiers to all cells that have a label.

    Args:
      vectors: with a column of labels, and best with the column `laboratory`; without it they are one.
      name: out of `classifiers.CLASSIFIERS`. Support vector machines get probabilities by Platt's scaling, fitted to
        held-out decisions.
      label: the column of labels.
      taxonomy: maps labels to common classes; where it drops one, its cells are left out. None takes labels as they
        are.
      adaptation: see `adaptation.ADAPTATIONS`. "own" scales vectors by the mean and sd of their own laboratory first,
        here and in every prediction; "self_training" and "co_training" train on `unlabelled`, too.
      seed: of the fit.
      unlabelled: cells of the laboratories that the classifier is for; no label of theirs is looked at.
      rounds: of training on them.
      parts: of the vectors, to which the classifier is to look (see `CaeConfig.vector`); none for all.

    Raises:
      InputError: an unknown classifier, column or part, fewer than two classes, no rounds, for a support vector machine
        a class of one cell or training on unlabelled cells, unlabelled cells of another model, or none where they are
        needed.
    """
    if (unlabelled is not None) != (adaptation in TRAINING_ON):
        raise InputError(
            f"the adaptation {adaptation!r} "
            + (
                f"takes no unlabelled cells (--adapt-to): {' and '.join(TRAINING_ON)} do"
                if unlabelled is not None
                else "needs unlabelled cells to train on: name their vectors with --adapt-to"
            )
        )
    if rounds < 1:
        raise InputError(f"rounds = {rounds}: at least 1 is needed")
    if parts:
        vectors, unlabelled = vectors.only(parts), unlabelled and unlabelled.only(parts)
    if unlabelled is not None:
        refuse_other_model(vectors.provenance, unlabelled.provenance)
        if name.startswith("svm_"):
            raise InputError(f"{name} gives no probabilities to train itself by: take another classifier")
    labelled, labels, notes = _labelled(vectors, label, taxonomy)
    there = "laboratory" in labelled.columns.column_names
    laboratories = labelled.texts("laboratory") if there else np.full(len(labelled), "training")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise InputError(f"all {len(labels)} cells are of one class, {str(classes[0])!r}: a classifier needs two")

    def make() -> Any:
        return unfitted(adaptation, lambda: make_classifier(name, seed), labelled.parts)

    classifier = make()
    if name.startswith("svm_"):
        if counts.min() < 2:
            raise InputError(
                f"{name} has probabilities for classes of two cells and more only, and there is one "
                f"{name_some(classes[counts < 2])}: leave it out, or take another classifier"
            )
        classifier = CalibratedClassifierCV(classifier, cv=min(5, int(counts.min())), ensemble=False)
    values = in_laboratory_units(adaptation, labelled.values, laboratories, labelled.parts)
    classifier.fit(values, labels)
    adapted_to: dict[str, int] = {}
    on_few: list[str] = []
    compared, origins = labelled.values, laboratories
    if unlabelled is not None:
        named = "laboratory" in unlabelled.columns.column_names
        others = unlabelled.laboratories if named else np.full(len(unlabelled), UNLABELLED)
        asked = in_laboratory_units(adaptation, unlabelled.values, others, labelled.parts)
        classifier = self_train(make, values, labels, asked, rounds, classifier)
        adapted_to = dict(zip(*_counted(others), strict=True))
        on_few = notes_on_few(others)
        new = _not_among(unlabelled.ids, others, labelled.ids, laboratories)
        compared = np.concatenate([compared, unlabelled.values[new]])
        origins = np.concatenate([origins, others[new]])
    if name == "mlp":
        fitted_ones = classifier.fitted_ if isinstance(classifier, Experts) else [classifier]
        notes.extend(dict.fromkeys(note for one in fitted_ones for note in one[-1].notes_))
    familiarity, more = fit_familiarity(compared, origins, seed)
    cells = {
        laboratory: dict(zip(*_counted(labels[laboratories == laboratory]), strict=True))
        for laboratory in np.unique(laboratories).tolist()
    }
    header = Header(
        name=name,
        classes=tuple(map(str, classifier.classes_)),
        cells=cells,
        width=labelled.values.shape[1],
        adaptation=adaptation,
        seed=seed,
        vectors=labelled.provenance,
        versions=_versions(),
        notes=(*notes, *more, *on_few),
        parts=labelled.parts,
        adapted_to=adapted_to,
    )
    return FittedClassifier(header, classifier, familiarity)


def save_classifier(fitted: FittedClassifier, path: Path) -> None:
    """Write one file: what skops makes of the classifier, and `dorl_jax.json`, its header.

    The file appears whole or not at all.
    """
    import skops.io  # only here: it imports all of scikit-learn

    familiarity = {
        "mean": fitted.familiarity.mean,
        "scale": fitted.familiarity.scale,
        "names": [one.name for one in fitted.familiarity.references],
        "vectors": [one.vectors for one in fitted.familiarity.references],
        "distances": [one.distances for one in fitted.familiarity.references],
    }
    data = skops.io.dumps({"classifier": fitted.classifier, "familiarity": familiarity})
    with replacing(path) as partial:
        partial.write_bytes(data)
        with zipfile.ZipFile(partial, "a") as file:
            file.writestr(_HEADER, json.dumps(msgspec.to_builtins(fitted.header), indent=1) + "\n")


def read_header(path: Path) -> Header:
    """The header of a classifier's file; nothing else in it is looked at.

    Raises:
      InputError: no such file, or no classifier of this package.
    """
    if not path.is_file():
        raise InputError(f"no classifier at {path}: `dorl-jax train-classifier VECTORS --out {path}` writes one")
    try:
        with zipfile.ZipFile(path) as file:
            return msgspec.json.decode(file.read(_HEADER), type=Header)
    except (zipfile.BadZipFile, KeyError, msgspec.DecodeError) as error:
        raise InputError(f"{path} is no classifier that `dorl-jax train-classifier` wrote: {error}") from error


def load_classifier(path: Path) -> FittedClassifier:
    """Read what `save_classifier` wrote. Nothing is unpickled; parts of this package's classifiers alone are built.

    Raises:
      InputError: no such file, a damaged one, or none of a classifier; other versions of scikit-learn or XGBoost than
        it was fitted with; a type in it that none of the classifiers has.
    """
    header = read_header(path)
    if header.format != _FORMAT:
        raise InputError(f"{path} has format {header.format}, this version of dorl_jax reads {_FORMAT}")
    _check_versions(header, path)
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    data = path.read_bytes()
    try:
        content = skops.io.loads(data, trusted=list(_TRUSTED))
    except UntrustedTypesFoundException as error:
        raise InputError(f"{path} holds what no classifier of this package has, and is not loaded: {error}") from error
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged: copy or fit it again ({error})") from error
    kept = content["familiarity"]
    references = [Reference(*parts) for parts in zip(kept["names"], kept["vectors"], kept["distances"], strict=True)]
    return FittedClassifier(header, content["classifier"], Familiarity(kept["mean"], kept["scale"], tuple(references)))


def in_laboratory_units(
    adaptation: Adaptation,
    values: Float32[np.ndarray, "n d"],
    laboratories: Shaped[np.ndarray, " n"],
    parts: Mapping[str, int],
) -> Float32[np.ndarray, "n d"]:
    """Vectors as a classifier with this adaptation takes them (see `experts.in_units`), by their own laboratory."""
    scaled = np.empty_like(values)
    for laboratory in np.unique(laboratories):
        own = laboratories == laboratory
        scaled[own] = in_units(adaptation, values[own], values[own], parts)
    return scaled


def notes_on_few(laboratories: Shaped[np.ndarray, " n"]) -> list[str]:
    """What to keep in mind where cells are scaled by a laboratory of which few are there."""
    return [
        f"{name}: mean and sd are those of {count} cells only; below {_FEW}, or where the classes are in other shares "
        "than usual, they may do more harm than good"
        for name, count in zip(*_counted(laboratories), strict=True)
        if count < _FEW
    ]


def _labelled(
    vectors: Vectors, label: str, taxonomy: Taxonomy | None
) -> tuple[Vectors, Shaped[np.ndarray, " n"], list[str]]:
    """The cells with a label, their classes, and notes where some have none."""
    if label not in vectors.columns.column_names:
        raise InputError(
            f"the vectors have no column {label!r}, only {name_some(vectors.columns.column_names, 10)}: embed a table "
            "of images that has the labels, or a laboratory (a folder for each class is one if a laboratory.toml, even "
            "an empty one, lies in it), or name their column with --label"
        )
    given = [
        None if value is None or value == "" else str(value) for value in vectors.columns.column(label).to_pylist()
    ]
    words = sorted(filter(None, set(given)))
    common = {word: word if taxonomy is None else taxonomy.resolve(word) for word in words}
    labels = np.array([common[value] or "" if value else "" for value in given], np.str_)
    notes = []
    without, dropped = given.count(None), sum(value is not None and not common[value] for value in given)
    if without:
        notes.append(f"{without} cells without a {label} are left out")
    if dropped:
        some = name_some(sorted(value for value, name in common.items() if not name))
        notes.append(f"{dropped} cells that the taxonomy drops are left out: {some}")
    there = labels != ""
    if not there.any():
        raise InputError(f"no cell has a class in column {label!r}")
    return vectors.take(there), labels[there], notes


def _not_among(
    ids: Shaped[np.ndarray, " m"],
    laboratories: Shaped[np.ndarray, " m"],
    known_ids: Shaped[np.ndarray, " n"],
    known_laboratories: Shaped[np.ndarray, " n"],
) -> Bool[np.ndarray, " m"]:
    """Which cells are not among the known ones: kept twice, each would be its own neighbour."""
    known = set(zip(known_laboratories.tolist(), known_ids.tolist(), strict=True))
    return np.array([cell not in known for cell in zip(laboratories.tolist(), ids.tolist(), strict=True)], bool)


def _counted(labels: np.ndarray) -> tuple[list[str], list[int]]:
    names, counts = np.unique(labels, return_counts=True)
    return names.tolist(), counts.tolist()


def _versions() -> dict[str, str]:
    found = {"dorl_jax": __version__}
    for name in ("numpy", "scikit-learn", "skops", "xgboost", "xgboost-cpu"):
        try:
            # xgboost comes under either name
            found[name.removesuffix("-cpu")] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _check_versions(header: Header, path: Path) -> None:
    needed = [name for name in _BOUND if name != "xgboost" or header.name == "xgboost"]
    here = _versions()
    for name in needed:
        fitted, own = header.versions.get(name, "none"), here.get(name, "none")
        if fitted.split(".")[:2] != own.split(".")[:2]:
            raise InputError(
                f"{path} was fitted with {name} {fitted}, here is {own}, which may read it wrongly: install {name} "
                f"{'.'.join(fitted.split('.')[:2])}, or train the classifier again"
            )
