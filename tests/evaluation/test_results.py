from itertools import permutations

import pytest

from dorl_jax.evaluation.results import Evaluation, Part, Score, Summary


def part(value):
    score = Score(value)
    return Part(1, score, score, score, score, 0.5, 0.3, 1.0, 1)


def ranked(summaries):
    found = Evaluation([], [], summaries, [], [], {}, [], "mlp", [], {})
    return [(one.setting, one.method) for one in found.ranking()]


def of(method, pairs, leave_one_out, setting="held_out", classifier="mlp"):
    parts = (None if value is None else part(value) for value in (None, pairs, leave_one_out))
    return Summary(method, "none", setting, classifier, 1, *parts)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # Training on all others helps: a has the better pairs, b the better leave-one-out.
        ({"a": (0.6, 0.8), "b": (0.5, 0.9)}, "ba"),
        # Of c there are pairs alone, and they are the best ones; by whatever each has it would be the last.
        ({"a": (0.6, 0.8), "b": (0.5, 0.9), "c": (0.7, None)}, "cab"),
        ({"a": (0.6, 0.8), "b": (0.5, 0.9), "c": (0.55, None)}, "acb"),
        ({"a": (0.6, None), "b": (0.5, None)}, "ab"),
        ({"a": (None, 0.9), "b": (0.5, 0.6), "c": (0.4, None)}, "bca"),
        ({"a": (None, 0.7), "b": (0.9, 0.8)}, "ba"),
    ],
)
def test_methods_are_ranked_by_one_kind_of_test(scores, expected):
    for order in permutations(scores):
        assert ranked([of(name, *scores[name]) for name in order]) == [("held_out", name) for name in expected]


def test_each_setting_is_ranked_by_its_own_kind_and_by_the_headline_classifier():
    summaries = [
        of("a", 0.6, 0.8),
        of("b", 0.5, 0.9),
        of("a", 0.6, 0.8, "transductive"),
        of("b", 0.5, 0.9, "transductive"),
        of("c", 0.1, None, "transductive"),
        of("a", 0.9, None, classifier="svm_linear"),
    ]
    assert ranked(summaries) == [
        ("held_out", "b"),
        ("held_out", "a"),
        ("transductive", "a"),
        ("transductive", "b"),
        ("transductive", "c"),
    ]
