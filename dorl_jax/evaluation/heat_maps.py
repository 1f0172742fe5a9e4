"""Accuracy of every source and target, as the panels of `plots.heat_maps`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dorl_jax.evaluation.classifier_names import TITLES
from dorl_jax.evaluation.exposure import TITLES as SETTING_TITLES
from dorl_jax.evaluation.results import Evaluation, Summary


def panels(evaluation: Evaluation, summaries: Sequence[Summary]) -> dict[str, Float[np.ndarray, "s t"]]:
    """A panel for each summary, under the name of its method, or of its classifier where the method is one.

    NaN where it has no test of a pair of laboratories.
    """
    laboratories = list(evaluation.laboratories)
    of_methods = len({(one.method, one.adaptation, one.setting) for one in summaries}) > 1
    found: dict[str, Float[np.ndarray, "s t"]] = {}
    for one in summaries:
        values = np.full((len(laboratories), len(laboratories)), np.nan)
        for mean in evaluation.means_of(one):
            values[laboratories.index(mean.source), laboratories.index(mean.target)] = mean.accuracy.mean
        title = f"{one.method}, {one.adaptation}\n{SETTING_TITLES[one.setting]}"
        found[title if of_methods else TITLES.get(one.classifier, one.classifier)] = values
    return found
