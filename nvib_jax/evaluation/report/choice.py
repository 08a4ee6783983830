"""The report's section on which vectors are kept: what explains it, by position and by class."""

from collections.abc import Sequence

from nvib_jax import plots
from nvib_jax.evaluation.report import html
from nvib_jax.evaluation.report.runs import Setting, with_part

_MOST = 25  # word classes shown, those with the most tokens


def choice(settings: Sequence[Setting]) -> str:
    """R2 of the choice by what may explain it, and the share kept by position and word class."""
    found, without = with_part(settings, "choice")
    if not found:
        return ""
    order = [setting.label for setting in settings]
    names = list(dict.fromkeys(name for _, _, part in found for name in part["explained"]))
    rows = []
    for i, run, part in found:
        cells = []
        for name in names:
            row = part["explained"].get(name, {})
            cells.append(f"{_two(row.get('kept'))} ({_two(row.get('log_pseudo_count'))})")
        rows.append([html.label_html(run.label, i), *cells, _two(part.get("information"))])
    header = ["run", *(name.replace("_and_", " and\n") for name in names), "r with\ninformation"]
    note = html.paragraph(
        'R2 of "this token\'s vector is kept", and in brackets of its log pseudo-count: the share '
        "of the variance that each thing explains alone. A model that keeps the same places in "
        "every sentence has 1.00 under position: a stride, whatever its scores. The last column is "
        "the correlation of the number of vectors with -log p of the text, at equal length."
    )
    places = [
        (order[i], [r["position"] for r in part["by_position"]], _percent(part["by_position"]))
        for i, _, part in found
    ]
    figure = plots.curves(
        places, xlabel="position in the sentence, tokens", ylabel="kept, %", order=order,
        legend=False, log=False,
    )  # fmt: skip
    figure.axes[0].set_ylim(0, 100)
    figures = [("choice-position", "Vectors kept at each position.", figure)]
    classes = [(order[i], part["by_class"]) for i, _, part in found if part["by_class"]]
    if classes:
        tokens = {row["class"]: row["tokens"] for row in classes[0][1]}
        shown = sorted(sorted(tokens, key=lambda name: -tokens[name])[:_MOST])
        series = []
        for label, table in classes:
            share = {row["class"]: 100 * row["kept"] for row in table}
            series.append((label, [share.get(name, float("nan")) for name in shown]))
        figure = plots.forms_compared(shown, series, xlabel="kept, %", order=order, legend=False)
        figures.append(("choice-class", "Vectors kept of each word class.", figure))
    return (
        note
        + html.table(header, rows)
        + html.key(order)
        + html.gallery(figures)
        + html.missing(without)
    )


def _percent(rows: Sequence[dict]) -> list[float]:
    return [100 * row["kept"] for row in rows]


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
