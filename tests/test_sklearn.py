"""DoRL inside scikit-learn."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data
from small_run import write_small_run

from dorl_jax.dorl import DoRL
from dorl_jax.errors import InputError
from dorl_jax.sklearn import DoRLEmbedder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], np.ndarray]:
    """Paths of dark and of bright pictures, and which is which."""
    folder, rng = tmp_path_factory.mktemp("cells"), np.random.default_rng(0)
    labels = np.array(["dark", "bright"] * 8)
    paths = []
    for place, label in enumerate(labels):
        low = 0 if label == "dark" else 150
        path = folder / f"{place:02d}.png"
        Image.fromarray(rng.integers(low, low + 100, (20 + place, 30, 3)).astype(np.uint8)).save(path)
        paths.append(str(path))
    return paths, labels


def pixels(paths: list[str]) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in paths]


def test_the_vectors_are_those_of_the_run(run: Path, cells) -> None:
    paths, _ = cells
    expected = DoRL.load(run).embed(paths)
    embedder = DoRLEmbedder(run)
    np.testing.assert_array_equal(embedder.fit_transform(paths), expected)
    pandas = pytest.importorskip("pandas", reason="needs pandas, for tables")
    for given in (
        np.array(paths),
        np.array(paths, object)[:, None],
        [Path(path) for path in paths],
        pixels(paths),
        pandas.Series(paths),
        pandas.DataFrame({"path": paths}),
    ):
        np.testing.assert_array_equal(embedder.transform(given), expected)
    alike = np.stack([image[:20] for image in pixels(paths)])
    np.testing.assert_array_equal(embedder.transform(alike), embedder.transform(list(alike)))


def test_names_and_tables(run: Path, cells) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas, for tables")
    embedder = DoRLEmbedder(run).set_output(transform="pandas")
    table = embedder.fit_transform(cells[0])
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == [f"dorl{number}" for number in range(24)] == embedder.get_feature_names_out().tolist()


def test_in_a_pipeline(run: Path, cells, tmp_path: Path) -> None:
    paths, labels = cells
    model = make_pipeline(DoRLEmbedder(run), LogisticRegression())
    scores = cross_val_score(model, paths, labels, cv=2)
    vectors = DoRL.load(run).embed(paths)
    np.testing.assert_array_equal(scores, cross_val_score(LogisticRegression(), vectors, labels, cv=2))
    assert (scores == 1).all()
    kept = Pipeline([("embed", DoRLEmbedder(run)), ("classify", LogisticRegression())], memory=str(tmp_path))
    np.testing.assert_array_equal(
        kept.fit(paths, labels).predict_proba(paths), model.fit(paths, labels).predict_proba(paths)
    )
    named = clone(model).set_params(dorlembedder__batch_size=4)
    assert named.get_params()["dorlembedder__batch_size"] == 4
    np.testing.assert_allclose(named.fit(paths, labels).predict_proba(paths), model.predict_proba(paths), atol=1e-5)


def test_kept_vectors_are_those_of_the_models_there_are(cells, tmp_path: Path) -> None:
    """A run that is trained again under its old name."""
    paths, labels = cells
    run = write_small_run(tmp_path / "run")
    kept = Pipeline([("embed", DoRLEmbedder(run)), ("classify", LogisticRegression())], memory=str(tmp_path / "kept"))
    first = kept.fit(paths, labels)["classify"].coef_
    shutil.rmtree(run)
    write_small_run(run, seed=5)
    again = kept.fit(paths, labels)["classify"].coef_
    assert not np.array_equal(first, again)
    fresh = make_pipeline(DoRLEmbedder(run), LogisticRegression()).fit(paths, labels)
    np.testing.assert_array_equal(again, fresh[-1].coef_)


def test_it_travels_without_the_models(run: Path, cells) -> None:
    embedder = DoRLEmbedder(str(run)).fit(cells[0])
    packed = pickle.dumps(embedder)
    assert len(packed) < 2000
    again = pickle.loads(packed)  # noqa: S301
    np.testing.assert_array_equal(again.transform(cells[0]), embedder.transform(cells[0]))
    fresh = clone(embedder)
    with pytest.raises(NotFittedError):
        fresh.transform(cells[0])


def test_bad_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs the folder of a run"):
        DoRLEmbedder().fit(["a.png"])
    with pytest.raises(InputError, match="no run at"):
        DoRLEmbedder(tmp_path).fit(["a.png"])
    embedder = DoRLEmbedder(run).fit([])
    for images, message in (
        ([], "no images"),
        ("a.png", r"take \['a.png'\] for one"),
        (np.zeros((3, 5)), r"not an array of shape \(3, 5\)"),
        ([np.zeros((4, 4, 3))], "image 0 is float64"),
        ([str(tmp_path / "none.png")], "nothing at"),
    ):
        with pytest.raises(InputError, match=message):
            embedder.transform(images)


class OnRows(DoRLEmbedder):
    """The embedder on what scikit-learn's checks feed it, rows of numbers: each is a picture of one row."""

    def fit(self, X, y=None):
        validate_data(self, X)
        return super().fit(X, y)

    def transform(self, X):
        check_is_fitted(self)
        grey = np.clip(validate_data(self, X, reset=False) * 20 + 128, 0, 255).astype(np.uint8)
        return super().transform([np.tile(row[None, :, None], (1, 1, 3)) for row in grey])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.string = False
        tags.no_validation = False
        return tags


def test_the_checks_of_scikit_learn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them; where the input is no row of numbers, as with images, scikit-learn itself runs none."""
    # They ask that any value may be given, and is refused by `fit`, not before.
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)
    checked = check_estimator(OnRows(str(run)), on_skip=None)
    assert len(checked) >= 40
    skipped = {result["check_name"] for result in checked if result["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}  # asks for an environment variable
