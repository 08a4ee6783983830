"""The report's sections with figures. Each function returns html, empty if it has no data.

A setting's place in the list decides its colour, in every figure and every label.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from nvib_jax import plots
from nvib_jax.evaluation.report import html
from nvib_jax.evaluation.report.runs import Setting, mean_and_deviation, runs_of, with_part

_CURVES = (  # metric, caption, axis
    ("loss", "Loss, as it was minimised", "loss"),
    ("cross_entropy", "Reconstruction", "nats per token"),
    ("kl_gaussian", "KL of the Gaussians", "nats per sentence"),
    ("kl_dirichlet", "KL of the Dirichlet", "nats per sentence"),
    ("share_kept", "Vectors kept", "share of the tokens, %"),
)
_PLANES = (  # name, caption, x score, its factor, axis; y score, its origin, axis
    (
        "nats",
        "Rate and distortion add up to the negative ELBO.",
        ("rate_token", 1, "rate: KL, nats per token"),
        ("reconstruction_token", 0, "distortion: nats per token"),
    ),
    (
        "share",
        "Vectors kept, against what BLEU lacks to 100.",
        ("kept_hard", 100, "vectors kept by pseudo-count, %"),
        ("bleu", 100, "100 − BLEU"),
    ),
)
_SCORES = (  # name in the tables of forms and thresholds, axis, caption
    ("bleu", "BLEU, 0 to 100", "BLEU of what comes back"),
    ("exact", "sentences exact, %", "Sentences that come back exactly"),
    ("nats_per_token", "nats per token", "What a token costs, given the vectors"),
)


def curves(settings: Sequence[Setting]) -> str:
    """Training curves: those on held-out sentences in front, those of training thin behind."""
    order, figures = _labels(settings), []
    ramp = max((run.ramp for _, run in runs_of(settings) if run.metrics), default=0)
    marks = [
        (order[i], float(run.scored_step))
        for i, run in runs_of(settings)
        if run.scored_step is not None and run.scored_step < run.last_step
    ]
    for metric, caption, axis in _CURVES:
        lines: dict[str, list[plots.Series]] = {"train": [], "validation": []}
        for i, run in runs_of(settings):
            for split, found in lines.items():
                records = [r for r in run.metrics if r.get("split") == split]
                if any(r.get(metric) for r in records):  # rivals' KL_D is 0 throughout: not drawn
                    steps = [r["step"] for r in records]
                    found.append((order[i], steps, _column(records, metric, axis)))
        if lines["train"] or lines["validation"]:
            figure = plots.curves(
                lines["validation"],
                faint=lines["train"],
                xlabel="step",
                ylabel=axis,
                shaded=(0, ramp) if metric == "loss" and ramp else None,
                marks=marks,
                order=order,
                legend=False,
            )
            figures.append((f"curve-{metric}", caption, figure))
    if not figures:
        return ""
    note = "With markers: held-out sentences. Thin: training."
    if ramp:
        note += (
            f" Up to step {ramp:,} (grey) training's weights of the KLs are still rising, and its "
            "loss with them; the held-out loss always has the full weights, so there the two are "
            "not the same quantity."
        )
    if marks:
        note += " Dashed: the step whose parameters the scores of this page are of."
    note = html.paragraph(note)
    without = [run.label for _, run in runs_of(settings) if not run.metrics]
    return html.key(order) + note + html.gallery(figures) + html.missing(without, "metrics.jsonl")


def rate_distortion(settings: Sequence[Setting]) -> str:
    """Rate (what the latent costs) against distortion (what is lost), a point per setting."""
    figures = []
    for name, caption, (x, factor, xlabel), (y, origin, ylabel) in _PLANES:
        points = []
        for s in settings:
            pairs = [(factor * run.score(x), origin - run.score(y)) for run in s.runs]
            if pairs := [p for p in pairs if all(map(math.isfinite, p))]:
                knob = str(s.knob[1]) if s.knob else ""
                spread = [mean_and_deviation(values) for values in zip(*pairs, strict=True)]
                points.append((s.kind or "?", knob, *spread[0], *spread[1]))
        if len(points) > 1:
            kinds, knobs, rate, rate_sd, loss, loss_sd = zip(*points, strict=True)
            figure = plots.rate_distortion(
                kinds,
                knobs,
                rate,
                loss,
                order=[s.kind or "?" for s in settings],
                rate_error=rate_sd,
                distortion_error=loss_sd,
                rate_label=xlabel,
                distortion_label=ylabel,
            )
            figures.append((f"plane-{name}", caption, figure))
    if not figures:
        return ""
    note = "Lower left is better. Beside a point: alpha_delta, or what else sets its bottleneck."
    bars = " Bars: one standard deviation over seeds." * any(len(s.runs) > 1 for s in settings)
    return html.paragraph(note + bars) + html.gallery(figures)


def lengths(settings: Sequence[Setting]) -> str:
    """The number of vectors and the quality of reconstruction against the sentence's length."""
    found, without = with_part(settings, "by_length")
    order = _labels(settings)

    def series(name: str, axis: str = "") -> list[plots.Series]:
        return [(order[i], _column(p, "length"), _column(p, name, axis)) for i, _, p in found]

    if not found:
        return ""
    figures = []
    for name, how in (("vectors", "by pseudo-count"), ("effective", "by attention")):
        figure = plots.vectors_by_length(
            series(name), ylabel=f"vectors, {how}", order=order, legend=False
        )
        figures.append((f"length-{name}", f"Vectors kept, {how}; mean over sentences.", figure))
    exact, xlabel = series("exact", "%"), "sentence length, tokens"
    if any(np.isfinite(values).any() for _, _, values in exact):
        ylabel = "sentences exact, %"
        figure = plots.curves(exact, xlabel=xlabel, ylabel=ylabel, order=order, legend=False)
        caption = "Sentences that come back exactly; the next figure says of how many."
        figures.append(("length-exact", caption, figure))
    counts = series("sentences")
    if any(np.isfinite(values).any() for _, _, values in counts):
        ylabel = "sentences"
        figure = plots.curves(
            counts, xlabel=xlabel, ylabel=ylabel, log=False, order=order, legend=False
        )
        figure.axes[0].set_ylim(bottom=0)
        figures.append(("length-sentences", "Sentences of each length.", figure))
    names = (("length", 1), ("sentences", 1), ("vectors", 1), ("effective", 1), ("exact", 100))
    rows = [
        [html.label_html(run.label, i), *(_number(row.get(n), factor) for n, factor in names)]
        for i, run, part in found
        for row in part
    ]
    header = [
        "run",
        "length\ntokens",
        "sentences",
        "vectors\ncount",
        "vectors\nattention",
        "exact\n%",
    ]
    note = html.paragraph(
        "How many vectors, not which: a model that keeps the same places in every sentence has "
        "such curves too."
    )
    numbers = html.details("The numbers", html.table(header, rows))
    return html.key(order) + note + html.gallery(figures) + numbers + html.missing(without)


def forms(settings: Sequence[Setting]) -> str:
    """Scores of the same posteriors under each way to read them."""
    found, without = with_part(settings, "forms")
    if not found:
        return ""
    order, figures = _labels(settings), []
    names = list(dict.fromkeys(row["form"] for _, _, part in found for row in part))
    for score, axis, caption in _SCORES:
        series = []
        for i, _, part in found:
            by_form = {row["form"]: row for row in part}
            series.append((order[i], _column([by_form.get(n, {}) for n in names], score, axis)))
        if any(np.isfinite(values).any() for _, values in series):
            plain = [name.replace("_", " ") for name in names]
            figure = plots.forms_compared(plain, series, xlabel=axis, order=order, legend=False)
            figures.append((f"form-{score}", caption, figure))
    note = html.paragraph(
        "A posterior is a distribution over mixtures, and there are several ways to give it to the "
        "decoder. Drawn: one draw, noise and all, as in training. Average: several draws as one "
        "mixture. The others read the posterior without noise; expected logit is what reconstruct "
        "does, unless the config says otherwise. Distance: how far the attention is from the mean "
        "of draws, as a share of a draw's square."
    )
    columns = (("bleu", 1), ("exact", 100), ("nats_per_token", 1), ("distance", 1))
    rows = [
        [html.label_html(run.label, i), escape(str(row["form"]))]
        + [_number(row.get(name), factor) for name, factor in columns]
        for i, run, part in found
        for row in part
    ]
    header = ["run", "form", "BLEU\n0 to 100", "exact\n%", "nats\na token", "distance"]
    numbers = html.details("The numbers", html.table(header, rows, words=2))
    return html.key(order) + note + html.gallery(figures) + numbers + html.missing(without)


def thresholds(settings: Sequence[Setting]) -> str:
    """Scores against the threshold below which vectors are dropped."""
    note = (
        "A vector with a pseudo-count at most the threshold is dropped; it rises leftwards in the "
        "figures."
    )
    return _by_share_kept(settings, "thresholds", "threshold", note)


def budgets(settings: Sequence[Setting]) -> str:
    """Scores against the share of each sentence's vectors that the decoder is given."""
    note = (
        "The decoder is given the vectors with the largest pseudo-counts, as many as the budget "
        "allows (nvib reconstruct --keep); the model was trained without it."
    )
    return _by_share_kept(settings, "budgets", "budget", note)


def _by_share_kept(settings: Sequence[Setting], name: str, column: str, note: str) -> str:
    """Curves and a table of the scores that are left when vectors are dropped."""
    found, without = with_part(settings, name)
    if not found:
        return ""
    order, figures, xlabel = _labels(settings), [], "vectors kept, %"
    for score, axis, caption in _SCORES[:2]:
        series = [(order[i], _column(p, "kept", "%"), _column(p, score, axis)) for i, _, p in found]
        figure = plots.curves(series, xlabel=xlabel, ylabel=axis, order=order, legend=False)
        figures.append((f"{column}-{score}", caption, figure))
    names = ((column, 1), ("kept", 100), ("bleu", 1), ("exact", 100))
    rows = [
        [html.label_html(run.label, i), *(_number(row.get(n), factor) for n, factor in names)]
        for i, run, part in found
        for row in part
    ]
    numbers = html.table(["run", column, "kept\n%", "BLEU", "exact\n%"], rows)
    return (
        html.key(order)
        + html.paragraph(note)
        + html.gallery(figures)
        + html.details("The numbers", numbers)
        + html.missing(without)
    )


def dimensions(settings: Sequence[Setting]) -> str:
    """The KL of each latent dimension, which shows how many carry information."""
    found, without = with_part(settings, "dimensions")
    if not found:
        return ""
    order = _labels(settings)
    rows = [
        [
            html.label_html(run.label, i),
            *(escape(str(part.get(k, "–"))) for k in ("active", "passive")),
        ]
        for i, run, part in found
    ]
    shown = html.table(["run", "active", "passive"], rows)
    series = [(order[i], part["kl"]) for i, _, part in found if part.get("kl")]
    if series:
        figure = plots.kl_per_dimension(series, order=order, legend=False)
        caption = "KL of each dimension to the prior, mean over vectors."
        shown = html.gallery([("dimensions-kl", caption, figure)], beside=shown)
    return html.key(order) + shown + html.missing(without)


def _labels(settings: Sequence[Setting]) -> list[str]:
    return [setting.label for setting in settings]


def _column(rows: Sequence[dict[str, Any]], name: str, axis: str = "") -> np.ndarray:
    """One value of each row, NaN if it is missing; times 100 if the axis label ends with "%"."""
    return np.array([row.get(name) for row in rows], float) * (100 if axis.endswith("%") else 1)


def _number(value: float | None, factor: float) -> str:
    return "–" if value is None else f"{factor * value:.3g}"
