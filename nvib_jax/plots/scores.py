"""Figures of runs: training curves, rate and distortion, ways to read a posterior."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from nvib_jax.plots.style import (
    GRID,
    MUTED,
    PERCENTS,
    add_legend,
    finite,
    floats,
    label_order,
    label_points,
    look,
    new_axes,
    start_at_zero,
    styled,
    thin,
    whole_percents,
)

Series = tuple[str, ArrayLike, ArrayLike]


@styled
def curves(
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    faint: Sequence[Series] = (),
    shaded: tuple[float, float] | None = None,
    marks: Sequence[tuple[str, float]] = (),
    log: bool | None = None,
    order: Sequence[str] | None = None,
    legend: bool = True,
) -> Figure:
    """Lines with markers: training curves, scores against a threshold or a length.

    An axis whose label ends with "%" or "0 to 100" shows all of that, because a line between 49
    and 50 would otherwise look as if it moved.

    Args:
      series: held-out values against steps, say.
      xlabel: with its unit.
      ylabel: with its unit.
      faint: series drawn thin and without markers beneath them, say those of training.
      shaded: from where to where on the horizontal axis the ground is grey, say because there the
        loss is another one.
      marks: (label, x), a dashed vertical line in the label's colour, say at the step whose
        parameters were scored.
      log: a logarithmic vertical axis; None takes one where values are positive, no percents, and
        span more than a factor of 30.
      order: labels in order of colour; by default as they come.
      legend: name the labels, where there are several.

    >>> loss = [("seed 0", [0, 100, 200], [9.1, 3.2, 2.9]), ("seed 1", [0, 100, 200], [9, 4, 3])]
    >>> curves(loss, xlabel="step", ylabel="nats per token").savefig("curves.png")
    """
    figure, axes = new_axes(xlabel, ylabel)
    names = label_order([*series, *faint], order)
    if shaded is not None:
        axes.axvspan(*shaded, color=GRID, alpha=0.45, linewidth=0, zorder=0)
    for label, place in marks:
        axes.axvline(place, color=look(names.index(label))["color"], linestyle="--", linewidth=1)
    for label, x, y in faint:
        axes.plot(*finite(x, y), **thin(names.index(label)))
    for label, x, y in series:
        x, y = finite(x, y)
        axes.plot(x, y, markevery=1 if len(x) <= 30 else len(x) // 10, **look(names.index(label)))
    heights = [finite(x, y)[1] for _, x, y in [*series, *faint]]
    values = np.concatenate([np.zeros(0), *heights])
    axes.xaxis.set_major_locator(_ticks(whole=_whole(series)))
    if log is None:
        spans = len(values) > 0 and values.min() > 0 and values.max() > 30 * values.min()
        log = spans and not ylabel.endswith(PERCENTS)
    whole_percents(axes)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    behind = {label for label, *_ in faint} - {label for label, *_ in series}
    add_legend(axes, {name: i for i, name in enumerate(names)}, legend, faint=sorted(behind))
    return figure


@styled
def vectors_by_length(
    series: Sequence[Series],
    *,
    ylabel: str = "vectors kept",
    order: Sequence[str] | None = None,
    legend: bool = True,
) -> Figure:
    """Number of vectors against tokens; below the dashed line y = x the bottleneck is at work.

    Args:
      series: (label, tokens, mean number of vectors).
      ylabel: how vectors are counted.
      order: labels in order of colour.
      legend: name the labels, where there are several.

    >>> vectors_by_length([("alpha_delta 0.3", [6, 10, 20], [2.5, 4, 6.5])]).savefig("length.png")
    """
    xlabel = "sentence length, tokens"
    figure = curves(series, xlabel=xlabel, ylabel=ylabel, order=order, legend=legend)
    (axes,) = figure.axes
    axes.set_yscale("linear")
    axes.yaxis.set_major_locator(_ticks(whole=True))
    end = max((finite(x, y)[0].max(initial=1) for _, x, y in series), default=1)
    axes.plot([0, end], [0, end], color=MUTED, linestyle="--", linewidth=1, zorder=1.5)
    axes.text(0.58 * end, 0.65 * end, "one a token", color=MUTED, ha="right", size=8)
    axes.set_xlim(0)
    axes.set_ylim(0)
    return figure


@styled
def rate_distortion(
    kinds: Sequence[str],
    labels: Sequence[str],
    rate: ArrayLike,
    distortion: ArrayLike,
    *,
    rate_error: ArrayLike | None = None,
    distortion_error: ArrayLike | None = None,
    order: Sequence[str] | None = None,
    rate_label: str = "rate: KL, nats per token",
    distortion_label: str = "distortion: nats per token",
) -> Figure:
    """What a bottleneck lets through against what is lost: towards the lower left is better.

    Args:
      kinds: of each of n points, "NVAE" say; a line joins the points of a kind by their rate.
      labels: beside each point, its alpha_delta say; may be empty.
      rate: shape (n,).
      distortion: shape (n,).
      rate_error: half length of the bars, standard deviations over seeds say; NaN draws none.
      distortion_error: likewise.
      order: kinds in order of colour; one that comes twice has the first place.
      rate_label: axis label with its unit.
      distortion_label: likewise.

    >>> kinds, deltas = ["NVAE", "NVAE", "VTV"], ["0.1", "0.5", ""]
    >>> rate_distortion(kinds, deltas, [4.0, 6.0, 9.0], [3.0, 1.0, 0.1]).savefig("plane.png")
    """
    figure, axes = new_axes(rate_label, distortion_label)
    x, y = floats(rate), floats(distortion)
    errors = (rate_error, distortion_error)
    bars = [np.zeros(len(x)) if error is None else np.nan_to_num(floats(error)) for error in errors]
    here, order = np.isfinite(x) & np.isfinite(y), list(order or dict.fromkeys(kinds))
    places = {kind: order.index(kind) for kind in kinds}
    for kind, index in places.items():
        mine = np.flatnonzero(here & (np.array(kinds) == kind))
        mine = mine[np.argsort(x[mine], kind="stable")]
        xerr, yerr = (bar[mine] for bar in bars)
        shown = axes.errorbar(
            x[mine], y[mine], yerr, xerr, capsize=2, elinewidth=0.9, clip_on=False, **look(index)
        )
        shown[0].set_zorder(3)
    axes.margins(0.15)
    start_at_zero(axes, x[here], y[here])
    whole_percents(axes)
    add_legend(axes, places, True)
    label_points(axes, x[here], y[here], np.array(labels)[here])
    return figure


@styled
def forms_compared(
    forms: Sequence[str],
    series: Sequence[tuple[str, ArrayLike]],
    *,
    xlabel: str,
    order: Sequence[str] | None = None,
    legend: bool = True,
) -> Figure:
    """A row of dots for each way to read a posterior, a dot for each run.

    Args:
      forms: n names, from top to bottom.
      series: (label, n scores).
      xlabel: the score, with its unit.
      order: labels in order of colour.
      legend: name the labels, where there are several.

    >>> forms = ["exact", "expected_logit"]
    >>> forms_compared(forms, [("seed 0", [71.0, 99.5])], xlabel="BLEU").savefig("forms.png")
    """
    figure, axes = new_axes(xlabel, "", height=1 + 0.36 * len(forms))
    names = label_order(series, order)
    rows = list(dict.fromkeys(label for label, _ in series))
    shift = np.linspace(-0.3, 0.3, len(rows) + 2)[1:-1]  # so that none hides another
    for label, scores in series:
        x, y = finite(scores, np.arange(len(forms)) + shift[rows.index(label)])
        axes.plot(x, y, **look(names.index(label)) | {"linestyle": "none"})
    axes.set_yticks(range(len(forms)), labels=list(forms))
    axes.set_ylim(len(forms) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    whole_percents(axes)
    for edge in range(len(forms) - 1):
        axes.axhline(edge + 0.5, color=GRID, linewidth=0.6, zorder=0)
    add_legend(axes, {name: i for i, name in enumerate(names)}, legend)
    return figure


def _whole(series: Sequence[Series]) -> bool:
    """Whether x counts something."""
    return all(np.all(x % 1 == 0) for _, x, y in series for x, _ in [finite(x, y)])


def _ticks(*, whole: bool) -> MaxNLocator:
    return MaxNLocator(7, steps=[1, 2, 5, 10], integer=whole)
