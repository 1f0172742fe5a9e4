"""Draw some of a run's methods and adaptations again: accuracy of every source and target, for a page or a paper.

    python scripts/heat_maps.py RUN --panel "as it is=this run, none" --panel "this run, co_training" --out across.png

RUN has been judged (`dorl-jax run`, `dorl-jax evaluate`). A panel is a method and an adaptation as its tables have
them, behind a title of your own if you like. The classifier is the one named, or the only one.
"""

import argparse
import sys
from pathlib import Path

from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation import plots
from dorl_jax.evaluation.classifier_names import CLASSIFIERS
from dorl_jax.evaluation.heat_maps import panels
from dorl_jax.evaluation.results import Evaluation, Summary, read_evaluation
from dorl_jax.files import replacing


def summary_of(evaluation: Evaluation, name: str, classifier: str) -> Summary:
    """The summary of a method, adaptation and classifier.

    Raises:
      InputError: there is none, several classifiers and none named, or several settings, which do not mix.
    """
    own = [one for one in evaluation.summaries if f"{one.method}, {one.adaptation}" == name]
    if not own:
        there = dict.fromkeys(f"'{one.method}, {one.adaptation}'" for one in evaluation.summaries)
        raise InputError(f"no panel {name!r}, only {name_some(there, 20)}")
    own = [one for one in own if classifier in ("", one.classifier)]
    found = dict.fromkeys(one.classifier for one in own)
    if len(found) != 1:
        raise InputError(f"{name!r} has {len(found) or 'other'} classifiers: name one with --classifier")
    if len(own) > 1:
        settings = name_some(one.setting for one in own)
        raise InputError(f"{name!r} was tested in several settings, {settings}, which no picture may mix")
    return own[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--panel", action="append", required=True, help="METHOD, ADAPTATION or TITLE=METHOD, ADAPTATION"
    )
    parser.add_argument("--classifier", default="", choices=("", *CLASSIFIERS))
    parser.add_argument("--out", type=Path, required=True, help="a PNG file")
    options = parser.parse_args()
    evaluation = read_evaluation(options.run / "evaluation")
    scores = {}
    for text in options.panel:
        title, _, name = text.rpartition("=")
        (scores[title or name],) = panels(evaluation, [summary_of(evaluation, name, options.classifier)]).values()
    drawn = plots.heat_maps(scores, list(evaluation.laboratories), evaluation.floors(), plots.LIGHT)
    with replacing(options.out) as partial:
        partial.write_bytes(plots.on_white(drawn))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
