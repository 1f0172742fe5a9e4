"""The figures of an evaluation as Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from dorl_jax.evaluation.bootstrap import Difference
from dorl_jax.evaluation.classifier_names import TITLES
from dorl_jax.evaluation.exposure import MEANINGS, Setting
from dorl_jax.evaluation.exposure import TITLES as SETTING_TITLES
from dorl_jax.evaluation.invariance_columns import InvarianceColumns
from dorl_jax.evaluation.results import Evaluation, Mean, Part, Score, Summary

Format = Literal["markdown", "latex"]


@dataclass(frozen=True)
class Table:
    """Texts in rows; the first column is to the left, the others to the right."""

    title: str
    header: list[str]
    lines: list[list[str]]
    remark: str = ""


def all_tables(evaluation: Evaluation, invariance: InvarianceColumns) -> list[Table]:
    """The ranking, each laboratory, the pairs and the comparisons, one of each in every setting that was met."""
    tables = []
    for setting in dict.fromkeys(one.setting for one in evaluation.summaries):
        title = SETTING_TITLES[setting]
        tables.append(_ranking(evaluation, invariance, setting, title))
        if not evaluation.alone:
            tables.append(_laboratories(evaluation, setting, title))
        for score, name in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
            tables.append(_pairs(evaluation, setting, f"{title}: {name} % of every classifier", score))
    if evaluation.comparisons:
        tables.append(_comparisons(evaluation))
    return tables


def write_tables(evaluation: Evaluation, form: Format, invariance: InvarianceColumns | None = None) -> str:
    """All tables, under the settings' meanings."""
    tables = all_tables(evaluation, invariance or InvarianceColumns())
    found = list(dict.fromkeys(one.setting for one in evaluation.summaries))
    draw: Callable[[Table], str] = _markdown if form == "markdown" else _latex
    parity = " The original's protocol to the letter." if evaluation.settings.get("parity") else ""
    folds, seeds = evaluation.settings["folds"], max(one.seeds for one in evaluation.summaries)
    lead = (
        f"Mean of {folds} folds{f' and {seeds} seeds' if seeds > 1 else ''}; in brackets 95 % of "
        f"{evaluation.settings['resamples']} bootstrap resamples of cells{' and seeds' if seeds > 1 else ''}.{parity}"
    )
    if form == "latex":
        opening = [f"% {SETTING_TITLES[one]}: {MEANINGS[one]}.\n" for one in found] + [f"% {lead}\n".replace(" %", "")]
        return "".join(opening) + "% Needs the package booktabs.\n" + "\n".join(map(draw, tables))
    opening = [f"* {SETTING_TITLES[one]}: {MEANINGS[one]}.\n" for one in found]
    return f"{lead}\n\n{''.join(opening)}\n" + "\n".join(map(draw, tables))


def write_csv(items: Sequence[Any]) -> str:
    """Dataclasses of one type, one a line; what is nested becomes columns `outer_inner`."""
    text = io.StringIO()
    lines = [dict(_flat(item)) for item in items]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def percent(score: Score, bracket: bool = False) -> str:
    """One decimal, with sd over seeds and, if asked for, the interval."""
    if score.mean is None:
        return "-"
    spread = f" ± {100 * score.sd_seeds:.1f}" if score.sd_seeds is not None else ""
    interval = ""
    if bracket and score.low is not None and score.high is not None:
        interval = f" [{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return f"{100 * score.mean:.1f}{spread}{interval}"


def short_names(laboratories: Sequence[str]) -> dict[str, str]:
    """A column's name for each laboratory: its initial, or 1, 2, 3 ... where two share one."""
    initials = [name[0].upper() for name in laboratories]
    if len(set(initials)) < len(laboratories):
        initials = [str(i + 1) for i in range(len(laboratories))]
    return dict(zip(laboratories, initials, strict=True))


def _flat(item: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for one in fields(item):
        value = getattr(item, one.name)
        if is_dataclass(value):
            yield from _flat(value, f"{prefix}{one.name}_")
        elif isinstance(value, tuple):
            yield f"{prefix}{one.name}", " / ".join(map(str, value))
        elif isinstance(value, dict):
            yield from ((f"{prefix}{one.name}_{key}", inner) for key, inner in value.items())
        else:
            yield f"{prefix}{one.name}", value


def _of(evaluation: Evaluation, setting: Setting) -> list[Summary]:
    """Ranked by the headline classifier; the others after it, as judged."""
    ranked = [one for one in evaluation.ranking() if one.setting == setting]
    place = {(one.method, one.adaptation): number for number, one in enumerate(ranked)}
    own = [one for one in evaluation.summaries if one.setting == setting]
    return sorted(own, key=lambda one: place.get((one.method, one.adaptation), len(place)))


def _ranking(evaluation: Evaluation, invariance: InvarianceColumns, setting: Setting, title: str) -> Table:
    own = [one for one in _of(evaluation, setting) if one.classifier == evaluation.headline]
    lines = []
    for one in own:
        parts = [one.in_domain, one.pairs, one.leave_one_out]
        scores = [_cell(part, score) for part in parts for score in ("accuracy", "macro_f1", "macro_f1_frequent")]
        above = [f"{part.above_floor} of {part.tests}" if part else "-" for part in parts[1:]]
        kept = [invariance.of(one, measure) for measure in invariance.measures]
        lines.append([f"{one.method}, {one.adaptation}", *scores, *above, *kept])
    for part_of, name in (("majority_floor", "majority floor"), ("ceiling", "ceiling")):
        cells = []
        for kind in ("in_domain", "pairs", "leave_one_out"):
            there: list[Part] = [part for one in own if (part := getattr(one, kind)) is not None]
            of_f1 = [part.majority_floor_macro_f1 for part in there if part_of == "majority_floor"]
            cells += [_range([getattr(part, part_of) for part in there]), _range(of_f1), "-"]
        lines.append([name, *cells, "", "", *("" for _ in invariance.measures)])
    header = [
        f"{where} {what}"
        for where in ("in-domain", "pairs", "others→one")
        for what in ("accuracy", "macro-F1", "macro-F1, 10 cells")
    ]
    header += ["pairs above floor", "others→one above floor", *(measure.title for measure in invariance.measures)]
    remark = (
        f"Classifier: {TITLES[evaluation.headline]}, named before anything was tested. Pairs: trained on one "
        "laboratory, tested on another; others→one: trained on all but the tested one. Ranked by others→one where "
        "every method has such tests, else by pairs. '10 cells': over the classes of which at least 10 are tested."
    )
    if invariance.measures:
        about = "; ".join(f"{measure.title}: {measure.about}" for measure in invariance.measures)
        remark += f" {about}. {invariance.remark}"
    return Table(f"{title}: methods", ["method, adaptation", *header], lines, remark)


def _range(values: Sequence[float]) -> str:
    """In percent, from the lowest to the highest: methods may be tested on different cells."""
    return "–".join(dict.fromkeys(f"{100 * value:.1f}" for value in (min(values), max(values)))) if values else "-"


def _cell(part: Part | None, score: str) -> str:
    if part is None:
        return "-"
    value: Score = getattr(part, score)
    return percent(value, bracket=score != "macro_f1_frequent")


def _laboratories(evaluation: Evaluation, setting: Setting, title: str) -> Table:
    kinds = {"pair": "pairs", "leave_one_out": "others→one"}
    lines = []
    for one in _of(evaluation, setting):
        if one.classifier != evaluation.headline:
            continue
        for found in evaluation.on_laboratories:
            if (found.method, found.adaptation, found.setting, found.classifier) != (
                one.method, one.adaptation, one.setting, one.classifier,
            ) or found.kind == "in_domain":  # fmt: skip
                continue
            part = found.part
            scores = [percent(score, bracket=True) for score in (part.accuracy, part.macro_f1, part.macro_f1_frequent)]
            floors = [f"{100 * part.majority_floor:.1f}", f"{100 * part.majority_floor_macro_f1:.1f}"]
            name = f"{one.method}, {one.adaptation}"
            lines.append([name, kinds[found.kind], found.target, str(found.cells), *scores, *floors])
    header = ["method, adaptation", "trained on", "tested on", "cells", "accuracy", "macro-F1", "macro-F1, 10 cells"]
    return Table(f"{title}: each laboratory", [*header, "floor, accuracy", "floor, macro-F1"], lines)


def _pairs(evaluation: Evaluation, setting: Setting, title: str, score: str) -> Table:
    names = short_names(list(evaluation.laboratories))
    own = _of(evaluation, setting)
    listed = {id(one): evaluation.means_of(one, ("in_domain", "pair", "leave_one_out")) for one in own}
    columns = list(dict.fromkeys(_column(mean) for means in listed.values() for mean in means))
    order = list(names)
    columns.sort(key=lambda c: (c[0] == "leave_one_out", order.index(c[1]) if c[1] in order else 0, order.index(c[2])))
    header = [f"{names[source]}→{names[target]}" if kind != "leave_one_out" else f"→{names[target]}"
              for kind, source, target in columns]  # fmt: skip
    lines = []
    for one in own:
        means = {_column(mean): mean for mean in listed[id(one)]}
        line = [f"{one.method}, {one.adaptation}, {one.classifier}"]
        lines.append([*line, *(percent(getattr(means[c], score)) if c in means else "-" for c in columns)])
    references = {"majority floor": "majority_floor" if score == "accuracy" else "majority_floor_macro_f1"}
    if score == "accuracy":
        references["ceiling"] = "ceiling"
    every = [mean for means in listed.values() for mean in means]
    for name, reference in references.items():
        lines.append([name, *(_range([getattr(m, reference) for m in every if _column(m) == c]) for c in columns)])
    legend = ", ".join(f"{name} = {laboratory}" for laboratory, name in names.items())
    return Table(title, ["", *header], lines, f"Trained on → tested on; {legend}; →X: all others to X.")


def _column(mean: Mean) -> tuple[str, str, str]:
    return mean.kind if mean.kind == "leave_one_out" else "pair", mean.source, mean.target


def _comparisons(evaluation: Evaluation) -> Table:
    kinds = {"in_domain": "in-domain", "pair": "pairs", "leave_one_out": "others→one"}
    lines = []
    for one in evaluation.comparisons:
        apart = [text for found in (one.accuracy, one.macro_f1) for text in _apart(found)]
        where = f"{SETTING_TITLES[one.setting]}, {kinds[one.kind]}"
        lines.append([", ".join(one.first), ", ".join(one.second), where, *apart])
    header = ["first", "second", "where", "accuracy, first − second", "p", "macro-F1, first − second", "p"]
    remark = (
        "Paired bootstrap: the same resampled cells for both, each method's seeds drawn anew. p is two-sided and not "
        "corrected for the number of comparisons."
    )
    return Table("Differences between methods, in points", header, lines, remark)


def _apart(found: Difference) -> tuple[str, str]:
    mean = f"{100 * found.mean:+.1f}"
    if math.isnan(found.p):
        return mean, ""
    return f"{mean} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]", f"{found.p:.3f}"


def _markdown(table: Table) -> str:
    lines = [table.header, *table.lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    rule = ["-" * max(widths[0], 3), *("-" * (max(width, 3) - 1) + ":" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in (lines[0], rule, *lines[1:])
    ]
    body = "".join("| " + " | ".join(cells) + " |\n" for cells in padded)
    return f"## {table.title}\n\n{table.remark}{2 * chr(10) if table.remark else ''}{body}"


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\to$", "±": r"$\pm$", "−": r"$-$",
}  # fmt: skip


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(_SPECIAL.get(letter, letter) for letter in cell) for cell in cells) + r" \\"

    caption = "".join(_SPECIAL.get(letter, letter) for letter in f"{table.title}. {table.remark}".strip())
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *map(line, table.lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
