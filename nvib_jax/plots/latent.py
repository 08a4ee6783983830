"""Figures of the latent: its dimensions, its vectors, who reads them, mixtures in the plane."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import ArrayLike

from nvib_jax.plots.style import (
    COLOURS,
    INK,
    MUTED,
    add_legend,
    finite,
    floats,
    heat_map,
    label_order,
    look,
    new_axes,
    new_row,
    styled,
)


@styled
def kl_per_dimension(
    series: Sequence[tuple[str, ArrayLike]],
    *,
    order: Sequence[str] | None = None,
    legend: bool = True,
) -> Figure:
    """The KL of each latent dimension, largest first: those at zero carry nothing.

    Args:
      series: (label, nats of D dimensions in any order).
      order: labels in order of colour.
      legend: name the labels, where there are several.

    >>> kl_per_dimension([("run", [0.1, 2.5, 0.0, 1.2])]).savefig("dimensions.png")
    """
    figure, axes = new_axes("latent dimension, largest first", "KL, nats")
    names = label_order(series, order)
    for label, kl in series:
        values = np.sort(finite(kl, kl)[0])[::-1]
        every = max(1, len(values) // 8)
        axes.plot(
            np.arange(1, len(values) + 1), values, markevery=every, **look(names.index(label))
        )
    axes.set_ylim(bottom=0)
    add_legend(axes, {name: i for i, name in enumerate(names)}, legend)
    return figure


@styled
def token_weights(
    tokens: Sequence[str],
    pseudo_counts: ArrayLike,
    attention: ArrayLike,
    *,
    rows: tuple[str, str] = ("pseudo-count", "share of attention"),
) -> Figure:
    """A heat map of what each token's vector may weigh and of how much it is read.

    Args:
      tokens: n of them.
      pseudo_counts: shape (n,).
      attention: share of attention, shape (n,); the rest is the prior's component's.
      rows: what the two are called.

    >>> token_weights(["the", "dog"], [0.0, 1.7], [0.0, 0.9]).savefig("tokens.png")
    """
    values = np.stack([floats(pseudo_counts), floats(attention)])
    peaks = np.nanmax(values, axis=1, keepdims=True, initial=1e-30)  # each row has its own scale
    figure, axes = new_axes("", "", width=1.8 + 0.42 * len(tokens), height=1.8)
    heat_map(axes, values / peaks, rows, tokens)
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value > 0.6 * peaks[row, 0] else INK
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=ink, size=7)
    return figure


@styled
def attention_map(
    attention: ArrayLike,
    queries: Sequence[str],
    components: Sequence[str],
    *,
    xlabel: str = "component",
    ylabel: str = "position of the decoder",
    label: str = "share of attention",
) -> Figure:
    """Which component each position of the decoder reads.

    Args:
      attention: shares, shape (T, S).
      queries: T labels, the token that is predicted say.
      components: S labels; the first is the prior's.
      xlabel: what the components are.
      ylabel: what the queries are.
      label: what the shares are.

    >>> shares = [[0.1, 0.7, 0.2], [0.2, 0.1, 0.7]]
    >>> attention_map(shares, ["dog", "(end)"], ["prior", "the", "dog"]).savefig("attention.png")
    """
    size = {"width": 2.2 + 0.3 * len(components), "height": 1.6 + 0.24 * len(queries)}
    figure, axes = new_axes(xlabel, ylabel, **size)
    mesh = heat_map(axes, floats(attention), queries, components)
    figure.colorbar(mesh, ax=axes, label=label, shrink=0.8)
    return figure


@styled
def words_lost(text: str, vectors: Sequence[str], written: Sequence[str]) -> Figure:
    """Which words of a text are still written without certain vectors.

    A word is found again where the longest common parts of both texts have it, so words that others
    push aside still count.

    Args:
      text: what is written with all vectors; its words are the columns.
      vectors: names of the vectors that are missing, a row each.
      written: what is written without them, a text each.

    >>> words_lost("the dog runs", ["runs"], ["the dog sleeps"]).savefig("lost.png")
    """
    words = text.split()
    found = np.array([_found_again(words, other.split()) for other in written], float)
    size = {"width": 2.0 + 0.45 * len(words), "height": 1.6 + 0.26 * len(written)}
    figure, axes = new_axes("word, pale if it is lost", "without the vector of", **size)
    heat_map(axes, found.reshape(len(written), len(words)), vectors, words)
    return figure


def _found_again(words: Sequence[str], other: Sequence[str]) -> list[bool]:
    found = [False] * len(words)
    for match in SequenceMatcher(a=words, b=other, autojunk=False).get_matching_blocks():
        found[match.a : match.a + match.size] = [True] * match.size
    return found


class Field(NamedTuple):
    """A mixture in the plane and where denoising attention moves queries, for `mixture_fields`.

    Attributes:
      title: above it; may be empty.
      mean: shape (S, 2).
      variance: broadcast to (S, 2), 0 for impulses; ellipses are one standard deviation.
      weights: shape (S,); the area of a dot, which is not quite 0 where the weight is not.
      query: shape (..., 2), where the arrows start.
      denoised: the posterior mean given each query, where they end; shape of `query`.
    """

    title: str
    mean: ArrayLike
    variance: ArrayLike
    weights: ArrayLike
    query: ArrayLike
    denoised: ArrayLike


def mixture_field(
    mean: ArrayLike,
    variance: ArrayLike,
    weights: ArrayLike,
    query: ArrayLike,
    denoised: ArrayLike,
) -> Figure:
    """One `Field`, without a title.

    >>> mean, query = [[-1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5]]
    >>> mixture_field(mean, 0.1, [0.5, 0.5], query, [[0.8, 0.1]]).savefig("field.png")
    """
    return mixture_fields([Field("", mean, variance, weights, query, denoised)])


@styled
def mixture_fields(fields: Sequence[Field]) -> Figure:
    """Mixtures in the plane side by side, at one scale.

    Args:
      fields: from left to right.

    >>> from nvib_jax.plots import Field
    >>> left = Field("two points", [[-1, 0], [1, 0]], 0.0, [0.5, 0.5], [[0.5, 0.5]], [[0.8, 0.1]])
    >>> mixture_fields([left, left._replace(title="again")]).savefig("fields.png")
    """
    figure, row = new_row(len(fields), "first dimension", "second dimension")
    for axes, field in zip(row, fields, strict=True):
        mean = floats(field.mean)
        variance = np.broadcast_to(floats(field.variance), mean.shape)
        start, end = (floats(points).reshape(-1, 2) for points in (field.query, field.denoised))
        axes.set_title(field.title, fontsize=9)
        axes.quiver(
            *start.T,
            *(end - start).T,
            angles="xy",
            scale_units="xy",
            scale=1,
            color=MUTED,
            alpha=0.8,
            width=0.004,
            headwidth=5,
        )
        for centre, sd in zip(mean, np.sqrt(variance), strict=True):
            axes.add_patch(Ellipse(centre, *(2 * sd), facecolor=COLOURS[0], alpha=0.25))
        weights = floats(field.weights)
        area = np.where(weights > 0, 8 + 172 * weights / max(weights.max(), 1e-30), 0)
        axes.scatter(mean[:, 0], mean[:, 1], s=area, color=COLOURS[1], edgecolor="white", zorder=3)
        axes.set_aspect("equal", adjustable="box")
    return figure
