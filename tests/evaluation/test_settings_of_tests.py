"""Which cells were seen, and what a figure may be called; folds by groups; runs that leave laboratories out."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dorl_jax.errors import InputError
from dorl_jax.evaluation.classifier_names import ORIGINAL
from dorl_jax.evaluation.exposure import setting_of
from dorl_jax.evaluation.few_cells import few_cells
from dorl_jax.evaluation.methods import Method, align
from dorl_jax.evaluation.protocol import as_original, judge
from dorl_jax.evaluation.settings import ProtocolSettings
from dorl_jax.evaluation.splits import split_laboratories

CELLS = {name: {"a": 25, "b": 20, "c": 15} for name in ("north", "south", "west")}
SETTINGS = ProtocolSettings(classifiers=("logistic_regression_balanced",), resamples=100, adaptations=("none",))


def seen(latents, **of_laboratory):
    marks = [of_laboratory.get(name, "unlabelled") for name in latents.laboratories.tolist()]
    return replace(latents, seen=np.array(marks))


def judged(*methods, **settings):
    return judge(methods, replace(SETTINGS, **settings), progress=False).evaluation


@pytest.mark.parametrize(
    ("marks", "adapts", "to_tested", "expected"),
    [
        (["no"] * 4, False, False, "held_out"),
        (["no"] * 4, True, False, "unlabelled_target"),
        (["no"] * 4, True, True, "transductive"),
        (["unlabelled", "unlabelled", "no", "no"], False, False, "unlabelled_target"),
        (["unlabelled", "unlabelled", "unlabelled", "no"], False, False, "transductive"),
        (["labelled", "no", "no", "no"], False, False, "labelled"),
        (None, False, False, "transductive"),
    ],
)
def test_setting_of_a_test(marks, adapts, to_tested, expected):
    """Rows 0..3 are the laboratory, 2 and 3 are tested."""
    marks = None if marks is None else np.array(marks)
    assert setting_of(marks, np.arange(4), np.array([2, 3]), adapts, to_tested) == expected


def test_training_cells_whose_class_was_seen_are_no_shame_in_their_own_laboratory():
    marks = np.array(["labelled", "labelled", "no", "no"])
    assert setting_of(marks, np.arange(4), np.array([2, 3]), False, False, in_domain=True) == "unlabelled_target"
    assert setting_of(marks, np.arange(4), np.array([1, 2]), False, False, in_domain=True) == "labelled"


def test_a_held_out_table_of_a_seen_laboratory_is_refused(make_latents):
    latents = make_latents(CELLS)
    for given, message in (
        (seen(latents, north="no", south="no"), r"m on west with adaptation 'none' .* but 'transductive'"),
        (seen(latents, north="no", south="labelled", west="no"), r"m on south .* but 'labels of the target seen'"),
        (replace(latents, seen=None), r"m on north .*does not say which cells were seen"),
    ):
        with pytest.raises(InputError, match=message):
            judged(Method("m", (given,)), require="held_out")
    with pytest.raises(InputError, match=r"adaptation 'own' is no test of .*'held-out laboratory' but 'transductive'"):
        judged(Method("m", (latents,)), require="held_out", adaptations=("own",))
    found = judged(Method("m", (latents,)), require="held_out")
    assert {row.setting for row in found.rows} == {"held_out"}
    # From the cells that are not tested: allowed where unlabelled ones may be seen.
    found = judged(Method("m", (latents,)), require="unlabelled_target", adaptations=("own",), adapt_from="others")
    assert {row.setting for row in found.rows if row.kind != "in_domain"} == {"unlabelled_target"}


def test_every_table_is_of_one_setting(make_latents):
    """One network trained without west: pairs to west are held out, the others are not."""
    found = judged(Method("m", (seen(make_latents(CELLS), west="no"),)))
    for mean in found.means:
        assert mean.setting == ("held_out" if mean.target == "west" else "transductive")
    strict, loose = found.summaries
    assert (strict.setting, strict.pairs.tests, strict.leave_one_out.tests) == ("held_out", 2, 1)
    assert (loose.setting, loose.pairs.tests, loose.leave_one_out.tests) == ("transductive", 4, 2)


def test_of_networks_trained_without_a_laboratory_each_is_tested_on_it(make_latents):
    latents = make_latents(CELLS, distance=3.0)
    files = [
        replace(seen(latents, **{name: "no"}), vectors=latents.vectors + number)
        for number, name in enumerate(CELLS)
        for _ in range(2)
    ]
    found = judged(Method("m", tuple(files)), require="held_out")
    assert {row.seed for row in found.rows} == {0, 1}
    assert len([row for row in found.rows if row.kind == "pair"]) == 6 * 2 * 5
    (summary,) = found.summaries
    assert (summary.setting, summary.pairs.tests, summary.leave_one_out.tests, summary.in_domain.tests) == (
        "held_out", 6, 3, 3,
    )  # fmt: skip
    assert summary.pairs.accuracy.sd_seeds == 0.0


def test_leaving_one_out_written_plainly(make_latents):
    latents = make_latents(CELLS, distance=2.0, shift=1.5)
    for adaptation in ("none", "own"):
        found = judged(Method("m", (latents,)), adaptations=(adaptation,))
        rows = {(row.target, row.fold): row.accuracy for row in found.rows if row.kind == "leave_one_out"}
        splits = split_laboratories(latents, 5, 1234)
        vectors = latents.vectors.astype(float)
        if adaptation == "own":
            for name in CELLS:
                own = latents.laboratories == name
                vectors[own] = (vectors[own] - vectors[own].mean(0)) / vectors[own].std(0)
        for target in CELLS:
            tested = latents.laboratories == target
            for fold in range(5):
                fitted = np.concatenate([splits[name].folds[fold][0] for name in CELLS if name != target])
                plain = make_pipeline(
                    StandardScaler(), LogisticRegression(C=0.05, class_weight="balanced", max_iter=500)
                ).fit(vectors[fitted], latents.labels[fitted])
                expected = np.mean(plain.predict(vectors[tested]) == latents.labels[tested])
                assert rows[target, fold] == pytest.approx(expected)
        assert len(rows) == 15


def test_adapting_from_others_never_sees_the_tested_cells(make_latents):
    """A tested cell that is moved far away changes nothing but its own prediction."""
    latents = make_latents(CELLS, distance=2.0)
    settings = replace(SETTINGS, adaptations=("own",), adapt_from="others", leave_one_out=False)
    row = int(np.flatnonzero(latents.laboratories == "south")[7])
    moved = latents.vectors.copy()
    moved[row] += 1000
    fits = [
        judge([Method("m", (replace(latents, vectors=vectors),))], settings, progress=False).judged[0].fits
        for vectors in (latents.vectors, moved)
    ]
    fold = next(
        number
        for number, (_, tested) in enumerate(split_laboratories(latents, 5, 1234)["south"].folds)
        if row in tested
    )
    same_part = split_laboratories(latents, 5, 1234)["south"].folds[fold][1]
    for before, after in zip(*fits, strict=True):
        if before.source != "south":
            a, b = (np.frombuffer(one.predicted, np.uint8)[same_part] for one in (before, after))
            keep = same_part != row
            np.testing.assert_array_equal(a[keep], b[keep])
    transductive = [
        judge(
            [Method("m", (replace(latents, vectors=vectors),))], replace(settings, adapt_from="all"), progress=False
        ).judged[0].fits
        for vectors in (latents.vectors, moved)
    ]  # fmt: skip
    assert any(a.predicted != b.predicted for a, b in zip(*transductive, strict=True) if a.source != "south")


def test_only_unseen_cells_are_tested_where_asked(make_latents):
    latents = make_latents(CELLS)
    marks = np.where(np.arange(len(latents)) % 3 == 0, "no", "unlabelled")
    found = judged(Method("m", (replace(latents, seen=marks),)), tested="unseen", require="unlabelled_target")
    for row in found.rows:
        if row.kind == "pair":
            assert row.cells == int((marks[latents.laboratories == row.target] == "no").sum())
    with pytest.raises(InputError, match="has seen all cells of north, so that tested = 'unseen' leaves none"):
        judged(Method("m", (seen(latents),)), tested="unseen")


def test_floors_and_ceilings_are_of_the_tested_cells(make_latents):
    """Of B's 36 x, 24 y and 3 z one method has not seen 1, 11 and 2, another none; A has no z."""
    cells = {"A": {"x": 30, "y": 30}, "B": {"x": 36, "y": 24, "z": 3}, "C": {"x": 20, "y": 20, "z": 20}}
    latents = make_latents(cells, distance=3.0)
    of_b = {name: np.flatnonzero((latents.laboratories == "B") & (latents.labels == name)) for name in "xyz"}
    marks = np.where(latents.laboratories == "B", "unlabelled", "no")
    for name, unseen in (("x", 1), ("y", 11), ("z", 2)):
        marks[of_b[name][:unseen]] = "no"
    part, whole = replace(latents, seen=marks), replace(latents, seen=np.full(len(latents), "no"))
    methods = Method("part", (part,)), Method("whole", (whole,))
    judgement = judge(methods, replace(SETTINGS, tested="unseen"), progress=False)
    found = judgement.evaluation
    means = {(one.method, one.source, one.target): one for one in found.means}
    for source, ceiling in (("A", 12 / 14), ("B", 1.0), ("C", 1.0), ("all but B", 1.0)):
        one = means["part", source, "B"]
        assert one.majority_floor == pytest.approx(11 / 14)
        assert one.majority_floor_macro_f1 == pytest.approx(2 * 11 / (11 + 14) / 3)
        assert one.ceiling == pytest.approx(ceiling)
    assert means["whole", "A", "B"].majority_floor == pytest.approx(36 / 63)
    assert means["whole", "A", "B"].ceiling == pytest.approx(60 / 63)
    assert means["part", "B", "A"].majority_floor == pytest.approx(1 / 2)
    # Of y alone are 10 cells tested.
    rows = {(row.source, row.fold): row for row in found.rows if (row.method, row.target) == ("part", "B")}
    tested = np.flatnonzero((latents.laboratories == "B") & (marks == "no"))
    for fit in judgement.judged[0].fits:
        if fit.source in "AC":
            called = np.array(["x", "y", "z"])[np.frombuffer(fit.predicted, np.uint8)[tested]]
            expected = f1_score(latents.labels[tested], called, labels=["y"], average="macro")
            assert rows[fit.source, fit.fold].macro_f1_frequent == pytest.approx(expected)
    of_laboratories = {(one.method, one.kind, one.target): one for one in found.on_laboratories}
    for kind in ("in_domain", "pair", "leave_one_out"):
        assert of_laboratories["part", kind, "B"].cells == 14
        assert of_laboratories["part", kind, "B"].part.majority_floor == pytest.approx(11 / 14)
        assert of_laboratories["whole", kind, "B"].cells == 63
    for one in found.summaries:
        tests = [m for m in found.means_of(one, ("pair",)) if m.kind == "pair"]
        assert one.pairs.above_floor == sum(m.accuracy.mean > m.majority_floor for m in tests)
        assert one.pairs.majority_floor == pytest.approx(np.mean([m.majority_floor for m in tests]))
    np.testing.assert_allclose(found.floors(), [1 / 2, 11 / 14, 1 / 3])
    assert found.laboratories["B"] == {"x": 36, "y": 24, "z": 3}


def test_groups_stay_together_and_parity_ignores_them(make_latents):
    latents = make_latents(CELLS)
    grouped = replace(latents, groups=np.array([f"patient {i // 6}" if i % 6 else "" for i in range(len(latents))]))
    for split in split_laboratories(grouped, 5, 1234).values():
        homes = {}
        for fold, (fitted, tested) in enumerate(split.folds):
            np.testing.assert_array_equal(np.sort(np.concatenate([fitted, tested])), split.rows)
            for group in set(grouped.groups[tested].tolist()) - {""}:
                homes.setdefault(group, set()).add(fold)
        assert all(len(folds) == 1 for folds in homes.values())
    plain = split_laboratories(latents, 5, 1234)
    parity = split_laboratories(grouped, 5, 1234, grouped=False)
    for name in CELLS:
        for one, other in zip(plain[name].folds, parity[name].folds, strict=True):
            np.testing.assert_array_equal(one[1], other[1])
    few = replace(latents, groups=np.array([f"slide {i % 3}" for i in range(len(latents))]))
    with pytest.raises(InputError, match="'north' has 3 groups .* for 5 folds"):
        split_laboratories(few, 5, 1234)


def test_parity_is_the_original_whatever_else_is_set():
    asked = ProtocolSettings(
        classifiers=("mlp",), folds=3, seed=5, adaptations=("own",), leave_one_out=True, tested="unseen"
    )
    found = as_original(asked)
    assert found.classifiers == ORIGINAL
    assert (found.folds, found.seed, found.adaptations, found.grouped, found.leave_one_out) == (
        5, 1234, ("none",), False, False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: replace(one, ids=np.char.add(one.ids, "x")), "180 missing|vectors of other cells"),
        (lambda one: replace(one, labels=np.roll(one.labels, 1)), "method 'other': the class of 'cell "),
        (lambda one: replace(one, laboratories=np.roll(one.laboratories, 1)), "method 'other': the laboratory of 'ce"),
    ],
)
def test_methods_of_other_cells_are_named(make_latents, change, message):
    latents = make_latents(CELLS)
    with pytest.raises(InputError, match=message):
        judged(Method("first", (latents,)), Method("other", (change(latents),)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adaptations": ("owm",)}, r"unknown adaptation 'owm' \(did you mean 'own'\?\)"),
        ({"adaptations": ("own", "own")}, "adaptation own named more than once"),
        ({"rounds": 0}, "rounds = 0"),
        ({"resamples": 10}, "resamples = 10"),
        ({"headline": "mlp"}, "headline = 'mlp' is not among the classifiers logistic_regression_balanced"),
        ({"classifiers": ("svm_poly",), "adaptations": ("self_training",)}, "svm_poly gives no probabilities"),
        ({"classifiers": ("svm_poly",), "adaptations": ("co_training",)}, "leave it or co_training out"),
    ],
)
def test_bad_settings_are_named(make_latents, settings, message):
    with pytest.raises(InputError, match=message):
        judged(Method("m", (make_latents(CELLS),)), **settings)


def test_groups_in_two_laboratories_are_said(make_latents):
    latents = make_latents(CELLS)
    groups = np.full(len(latents), "", dtype="<U9")
    for name in ("north", "west"):
        groups[np.flatnonzero(latents.laboratories == name)[0]] = "one cell"
    found = judged(Method("m", (replace(latents, groups=groups),)))
    assert any("1 groups have cells in several laboratories" in note and "north, west" in note for note in found.notes)


def test_vectors_made_with_the_classes_of_a_laboratory_serve_it_alone(make_latents):
    """A file for each source: what a classifier of the source calls the others is what its own file gives."""
    latents = make_latents(CELLS)
    files = tuple(
        replace(seen(latents, **{name: "labelled"}), serves=name, vectors=np.roll(latents.vectors, place, axis=0))
        for place, name in enumerate(CELLS)
    )
    found = judged(Method("m", files), adaptations=("none", "own"), require="transductive")
    assert {row.seed for row in found.rows} == {0}
    assert not any(one.leave_one_out for one in found.summaries)
    for (name, file), target in zip(zip(CELLS, files, strict=True), ("south", "west", "north"), strict=True):
        alone = judged(Method("m", (replace(file, serves=""),)), leave_one_out=False)
        for kind, where in (("pair", target), ("in_domain", name)):
            (mean,) = (m for m in found.means if (m.source, m.target, m.adaptation) == (name, where, "none"))
            (truth,) = (m for m in alone.means if (m.source, m.target) == (name, where))
            assert mean == truth
            assert (mean.kind, mean.setting) == (kind, "transductive" if kind == "pair" else "labelled")
    curve = few_cells(latents, align([Method("m", files)])[1], "logistic_regression", (5,))
    assert curve == []
    # Of all but one, the classifier of these is tested on that one alone.
    others = replace(seen(latents, north="labelled", west="labelled"), serves="all but south")
    found = judged(Method("m", (others,)), adaptations=("none", "own"), require="transductive")
    assert {(row.source, row.target, row.kind) for row in found.means} == {("all but south", "south", "leave_one_out")}
    alone = judged(Method("m", (seen(latents),)), adaptations=("none", "own"))
    assert found.means == [mean for mean in alone.means if mean.source == "all but south"]
    with pytest.raises(
        InputError, match="classifiers trained on 'east', which is neither one of the lab.* nor all but"
    ):
        judged(Method("m", (replace(latents, serves="east"),)))


def test_trainings_that_have_seen_other_halves_are_seeds_of_their_own(make_latents):
    latents = make_latents(CELLS)
    halves = [np.where(np.arange(len(latents)) % 2 == half, "no", "unlabelled") for half in (0, 1)]
    files = tuple(replace(latents, seen=half, vectors=latents.vectors + place) for place, half in enumerate(halves))
    found = judged(Method("m", files), tested="unseen")
    assert len({(row.source, row.target, row.seed, row.fold) for row in found.rows}) == len(found.rows)
    assert {mean.seeds for mean in found.means} == {2}
    assert found.notes == []


def test_a_seed_without_vectors_for_a_laboratory_is_said(make_latents):
    latents = make_latents(CELLS, distance=3.0)
    left_out = [("north",), ("north",), ("south",), ("south", "west")]
    files = tuple(
        replace(seen(latents, **dict.fromkeys(names, "no")), vectors=latents.vectors + place)
        for place, names in enumerate(left_out)
    )
    runs = align([Method("m", files)])[1]
    assert [(run.seed, run.targets) for run in runs] == [
        (0, ("north",)), (1, ("north",)), (0, ("south",)), (1, ("south", "west")),
    ]  # fmt: skip
    found = judged(Method("m", files), require="held_out")
    (note,) = found.notes
    assert note.startswith("m, held-out laboratory: seed 0 has no vectors to test west with, so that means over")
    (summary,) = found.summaries
    assert summary.seeds == 1
    # of seed 1 alone
    rows = [row for row in found.rows if row.kind == "leave_one_out" and row.seed == 1]
    of_targets = [np.mean([row.accuracy for row in rows if row.target == name]) for name in CELLS]
    assert summary.leave_one_out.accuracy.mean == pytest.approx(np.mean(of_targets))


def test_files_without_a_seed_in_common_have_no_summary(make_latents):
    latents = make_latents(CELLS, distance=3.0)
    left_out = [("south",), ("south", "west"), ("north",)]
    files = tuple(
        replace(seen(latents, **dict.fromkeys(names, "no")), vectors=latents.vectors + place)
        for place, names in enumerate(left_out)
    )
    runs = align([Method("m", files)])[1]
    assert [run.seed for run in runs] == [0, 1, 0]
    found = judged(Method("m", files), Method("n", (latents,)))
    lacking = [note for note in found.notes if "has no vectors" in note]
    assert len(lacking) == 2
    of_m = [one for one in found.summaries if one.method == "m"]
    assert [(one.seeds, one.pairs, one.leave_one_out) for one in of_m] == [(0, None, None)]
    assert found.comparisons == []


def test_vectors_that_serve_no_classifier_are_refused(make_latents):
    latents = replace(make_latents(CELLS), serves="all but south")
    with pytest.raises(InputError, match=r"trained on 'all but south', which none is: .* leave_one_out = true"):
        judged(Method("m", (latents,)), leave_one_out=False)


def test_parity_and_a_required_setting_are_not_one():
    with pytest.raises(InputError, match="require = 'held_out' is none of the original's protocol"):
        ProtocolSettings(parity=True, require="held_out")


def test_a_laboratory_of_one_group_has_no_interval(make_latents):
    """Of one group nothing can be drawn again: a width of 0 would pass for certainty."""
    latents = make_latents(CELLS, distance=2.0)
    groups = np.where(latents.laboratories == "north", "one", latents.ids)
    latents = replace(latents, groups=groups)
    noisy = replace(latents, vectors=np.roll(latents.vectors, 1, axis=1))
    found = judged(Method("m", (latents,)), Method("n", (noisy,)), grouped=False)
    assert any(note.startswith("north: all cells are one group") for note in found.notes)
    for mean in found.means:
        assert (mean.accuracy.low is None) == (mean.target == "north")
    assert all(one.pairs.accuracy.low is None and one.pairs.accuracy.mean for one in found.summaries)
    assert found.comparisons == []
