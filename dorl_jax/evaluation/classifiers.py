"""The classifiers that judge latent vectors, with the settings of DoRL's protocol (arXiv 2408.07467)."""

import math
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelEncoder, StandardScaler
from sklearn.svm import SVC

from dorl_jax.errors import InputError, suggest
from dorl_jax.evaluation.classifier_names import CLASSIFIERS


def make_classifier(name: str, seed: int) -> Any:
    """An unfitted scikit-learn classifier.

    All but trees scale each dimension to mean 0 and deviation 1
    over the cells they are fitted on. Labels may be numbers or strings.

    Args:
      name: one of `CLASSIFIERS`.
      seed: for forests, boosting and the MLP; the same seed on the same rows gives the same classifier.

    Returns:
      An estimator with `fit(vectors, labels)` and `predict(vectors)`.

    Raises:
      InputError: an unknown name, or `xgboost` where the package is not installed.
    """
    match name:
        case "random_forest":
            return OrderedForest(n_estimators=200, max_depth=16, random_state=seed, n_jobs=-1)
        case "xgboost":
            return XgboostClassifier(seed=seed)
        case "svm_poly" | "svm_linear":
            # cache_size (megabytes) changes the time alone.
            return _scaled(SVC(kernel=name.removeprefix("svm_"), cache_size=1000))
        case "logistic_regression":
            return _scaled(LogisticRegression(max_iter=500, random_state=seed))
        case "logistic_regression_balanced":
            # Classes count alike whatever their size, and few cells do not fit many dimensions exactly.
            return _scaled(LogisticRegression(C=0.05, class_weight="balanced", max_iter=500, random_state=seed))
        case "lda_logistic":
            both = [("lda", ShrunkLda()), ("logistic", make_classifier("logistic_regression_balanced", seed)[-1])]
            return _scaled(VotingClassifier(both, voting="soft"))
        case "mlp":
            return _scaled(EarlyStoppingMlp(seed=seed))
    raise InputError(
        f"unknown classifier {name!r}{suggest(name, CLASSIFIERS)}; the classifiers are {', '.join(CLASSIFIERS)}"
    )


def _scaled(classifier: Any) -> Pipeline:
    return Pipeline([("scale", StandardScaler()), ("classifier", classifier)])


class ShrunkLda(LinearDiscriminantAnalysis):
    """Linear discriminant analysis, covariances shrunk by Ledoit and Wolf's rule (2004), for classes of any size.

    Without shrinking, hundreds of dimensions leave no covariance of hundreds of cells to be inverted.
    """

    def __init__(self) -> None:
        super().__init__(solver="lsqr", shrinkage="auto")

    def fit(self, vectors: Float[np.ndarray, "n d"], labels: Shaped[np.ndarray, " n"]) -> "ShrunkLda":
        with warnings.catch_warnings():
            # Of a class of one cell: the covariance is that of the others, as is meant.
            warnings.filterwarnings("ignore", "Only one sample available", UserWarning)
            return super().fit(vectors, labels)


class OrderedForest(RandomForestClassifier):
    """A random forest, grown on all cores, whose trees vote in order.

    scikit-learn adds the votes of `n_jobs` threads as they come; the last bit of such a sum can turn a tie.
    """

    def predict_proba(self, vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        return sum(tree.predict_proba(vectors) for tree in self.estimators_) / len(self.estimators_)


class XgboostClassifier(ClassifierMixin, BaseEstimator):
    """XGBoost at its defaults with histogram trees, for any labels.

    XGBoost wants the labels 0..k-1 with none missing, which a fold without a rare class does not give.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._booster_type()  # fail now, not after the first hour of fits

    def fit(self, vectors: Float[np.ndarray, "n d"], labels: Shaped[np.ndarray, " n"]) -> "XgboostClassifier":
        self.encoder_ = LabelEncoder().fit(labels)
        self.classes_ = self.encoder_.classes_
        # Small fits on one thread: on a busy machine xgboost's threads wait for each other a hundred times
        # longer than they work. The trees do not depend on the number of threads.
        threads = 1 if vectors.size < 1_000_000 else None
        self.booster_ = self._booster_type()(tree_method="hist", random_state=self.seed, n_jobs=threads)
        self.booster_.fit(vectors, self.encoder_.transform(labels))
        return self

    def predict(self, vectors: Float[np.ndarray, "n d"]) -> Shaped[np.ndarray, " n"]:
        return self.encoder_.inverse_transform(self.booster_.predict(vectors))

    def predict_proba(self, vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        return self.booster_.predict_proba(vectors)

    @staticmethod
    def _booster_type() -> Any:
        try:
            from xgboost import XGBClassifier
        except ImportError as error:
            raise InputError(
                "the classifier 'xgboost' needs a package that is not installed: "
                "pip install 'dorl-jax[xgboost-cpu]', or leave 'xgboost' out of the setting `classifiers`"
            ) from error
        return XGBClassifier


class EarlyStoppingMlp(ClassifierMixin, BaseEstimator):
    """scikit-learn's MLP with early stopping, for classes of any size.

    Early stopping holds a stratified tenth of the rows back, which scikit-learn refuses when a class has one
    row or when the tenth has fewer rows than there are classes. So a class with one row is left out of the
    fit (it is never predicted), and the part held back grows until it has one row for every class. Both are
    said in `notes_`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, vectors: Float[np.ndarray, "n d"], labels: Shaped[np.ndarray, " n"]) -> "EarlyStoppingMlp":
        self.notes_: list[str] = []
        names, counts = np.unique(labels, return_counts=True)
        single = names[counts < 2]
        if len(single):
            self.notes_.append(
                f"fitted without {', '.join(map(str, single))}: one training cell, none left to hold back"
            )
            kept = ~np.isin(labels, single)
            vectors, labels, names = vectors[kept], labels[kept], names[counts >= 2]
        if len(names) < 2:
            raise InputError("the MLP needs two classes with at least two training cells each")
        fraction = 0.1
        if math.ceil(fraction * len(labels)) < len(names):
            fraction = len(names) / len(labels)
            self.notes_.append(
                f"early stopping holds {fraction:.0%} of the training cells back, to see all {len(names)} classes"
            )
        self.mlp_ = MLPClassifier(
            early_stopping=True, max_iter=1000, validation_fraction=fraction, random_state=self.seed
        ).fit(vectors, labels)
        self.classes_ = self.mlp_.classes_
        return self

    def predict(self, vectors: Float[np.ndarray, "n d"]) -> Shaped[np.ndarray, " n"]:
        return self.mlp_.predict(vectors)

    def predict_proba(self, vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        return self.mlp_.predict_proba(vectors)
