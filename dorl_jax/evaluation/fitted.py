"""A fitted classifier with what it was fitted on, kept in a file that holds no code."""

import json
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float, Float32, Shaped
from sklearn.calibration import CalibratedClassifierCV

from dorl_jax import __version__
from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.familiarity import Familiarity, Reference, fit_familiarity
from dorl_jax.files import replacing
from dorl_jax.vectors import Vectors

Adaptation = Literal["none", "own"]

_HEADER = "dorl_jax.json"
_FORMAT = 1
# Beside what skops itself trusts: the types that the classifiers of this package are made of.
_TRUSTED = (
    "dorl_jax.evaluation.classifiers.EarlyStoppingMlp",
    "dorl_jax.evaluation.classifiers.OrderedForest",
    "dorl_jax.evaluation.classifiers.XgboostClassifier",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.tree._tree.Tree",
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
      adaptation: "own" where vectors were first scaled by the mean and sd of their own laboratory.
      seed: of the fit.
      vectors: provenance of the training vectors.
      versions: of the packages it was fitted with.
      notes: what was special about the fit.
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
    format: int = _FORMAT


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier, and the training laboratories to compare with."""

    header: Header
    classifier: Any
    familiarity: Familiarity

    def probabilities(self, values: Float32[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Of every class of `header.classes`; where `header.adaptation` is "own", of vectors scaled already."""
        return np.asarray(self.classifier.predict_proba(values), np.float64)


def fit_classifier(
    vectors: Vectors, name: str, *, label: str = "label", adaptation: Adaptation = "none", seed: int = 1234
) -> FittedClassifier:
    """Fit one of the method's classifiers to all cells that have a label.

    Args:
      vectors: with a column of labels, and best with the column `laboratory`; without it they are one.
      name: out of `classifiers.CLASSIFIERS`. Support vector machines get probabilities by Platt's scaling, fitted to
        held-out decisions.
      label: the column of labels.
      adaptation: "own" scales vectors by the mean and sd of their own laboratory first, here and in every prediction.
      seed: of the fit.

    Raises:
      InputError: an unknown classifier or column, fewer than two classes, or for a support vector machine a class of
        one cell.
    """
    labelled, notes = _labelled(vectors, label)
    labels = labelled.texts(label)
    there = "laboratory" in labelled.columns.column_names
    laboratories = labelled.texts("laboratory") if there else np.full(len(labelled), "training")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise InputError(f"all {len(labels)} cells are of one class, {str(classes[0])!r}: a classifier needs two")
    classifier = make_classifier(name, seed)
    if name.startswith("svm_"):
        if counts.min() < 2:
            raise InputError(
                f"{name} has probabilities for classes of two cells and more only, and there is one "
                f"{name_some(classes[counts < 2])}: leave it out, or take another classifier"
            )
        classifier = CalibratedClassifierCV(classifier, cv=min(5, int(counts.min())), ensemble=False)
    values = labelled.values if adaptation == "none" else in_own_units(labelled.values, laboratories)
    classifier.fit(values, labels)
    if name == "mlp":
        notes.extend(classifier[-1].notes_)
    familiarity, more = fit_familiarity(labelled.values, laboratories, seed)
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
        notes=(*notes, *more),
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
      InputError: no such file, or none of a classifier; other versions of scikit-learn or XGBoost than it was
        fitted with; a type in it that none of the classifiers has.
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
    kept = content["familiarity"]
    references = [Reference(*parts) for parts in zip(kept["names"], kept["vectors"], kept["distances"], strict=True)]
    return FittedClassifier(header, content["classifier"], Familiarity(kept["mean"], kept["scale"], tuple(references)))


def in_own_units(
    values: Float32[np.ndarray, "n d"], laboratories: Shaped[np.ndarray, " n"]
) -> Float32[np.ndarray, "n d"]:
    """Every component by its mean and sd over the cells of the same laboratory; one that does not vary becomes 0."""
    scaled = np.empty_like(values)
    for laboratory in np.unique(laboratories):
        own = laboratories == laboratory
        wide = values[own].astype(np.float64)
        mean, spread = wide.mean(axis=0), wide.std(axis=0)
        # Of equal numbers the computed mean, and so the spread, may be off by a rounding.
        varies = spread > 1e-9 * np.abs(mean)
        scaled[own] = np.where(varies, (wide - mean) / np.where(varies, spread, 1), 0)
    return scaled


def _labelled(vectors: Vectors, label: str) -> tuple[Vectors, list[str]]:
    """The cells with a label, and a note where some have none."""
    if label not in vectors.columns.column_names:
        raise InputError(
            f"the vectors have no column {label!r}, only {name_some(vectors.columns.column_names, 10)}: embed a table "
            "of images that has the labels, or name their column with --label"
        )
    there = np.array([bool(value) or value == 0 for value in vectors.columns.column(label).to_pylist()])
    if not there.any():
        raise InputError(f"no cell has a value in column {label!r}")
    if there.all():
        return vectors, []
    return vectors.take(there), [f"{(~there).sum()} cells without a {label} are left out"]


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
