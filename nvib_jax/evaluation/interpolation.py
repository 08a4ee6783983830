"""Writes and scores paths of texts between two texts.

For pairs of held-out sentences it writes paths of `steps` texts. The scores say how well the
half-way text keeps either end, whether it is new, and how evenly the words change. The protocol is
that of Henderson & Fehr (2023), "A VAE for Transformers with Nonparametric Variational Information
Bottleneck".
"""

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise

import jax
import jax.numpy as jnp

from nvib_jax.evaluation.reconstruction import corpus_bleu, word_edit_distance
from nvib_jax.generate import DecodingConfig, write
from nvib_jax.models.nvae import NVAE
from nvib_jax.progress import track
from nvib_jax.text.engine import ROWS
from nvib_jax.text_model import TextModel


def mirrored_pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Pair sentence i of N with sentence N - 1 - i; if N is odd, the middle one is left out.

    Raises:
      ValueError: fewer than two texts.

    >>> mirrored_pairs(["a", "b", "c", "d", "e"])
    [('a', 'e'), ('b', 'd')]
    """
    if len(texts) < 2:
        raise ValueError(f"texts has {len(texts)}; wanted at least 2, to make a pair")
    return [(texts[i], texts[-1 - i]) for i in range(len(texts) // 2)]


def interpolate_pairs(
    model: TextModel,
    pairs: Sequence[tuple[str, str]],
    *,
    steps: int = 5,
    form: str | None = None,
    decoding: DecodingConfig | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """`TextModel.interpolate` for many pairs, about `ROWS` texts at a time in one static shape.

    Args:
      model: the model.
      pairs: the two ends of each path.
      steps: points on a path, t = 0, 1 / (steps - 1), ..., 1.
      form: how a posterior is read; None is the config's `evaluation_form`. "drawn" draws each end
        once for its whole path.
      decoding: None is greedy.
      seed: for "drawn" and for sampling tokens. The draws also depend on a pair's place in `pairs`.

    Returns:
      A path for each pair, in order: `steps` texts from the first end to the second.

    Raises:
      ValueError: no pairs, `steps < 2`, or a text the model does not take.

    >>> paths = interpolate_pairs(model, [("the dog sees a cat", "a cat sees the dog")], steps=3)
    >>> len(paths), len(paths[0])
    (1, 3)
    """
    if not pairs:
        raise ValueError("pairs is empty; wanted at least one pair of texts")
    if steps < 2:
        raise ValueError(f"steps is {steps}; wanted at least 2, the two ends")
    rows = model.tokenize([text for pair in pairs for text in pair])
    count = max(ROWS // steps, 1)
    run = model.compiled(_between, steps=steps, form=form, decoding=decoding)
    paths: list[list[str]] = []
    starts = range(0, len(pairs), count)
    for start in track(starts, "interpolations", total=len(starts), unit="batches"):
        part = rows[2 * start : 2 * (start + count)]
        ends = [*part, *part[:2] * (count - len(part) // 2)]
        key = jax.random.fold_in(jax.random.key(seed), start)
        texts = model.texts(run(model.params, *model.padded(ends, model.max_length), key))
        paths += [texts[i : i + steps] for i in range(0, len(texts), steps)]
    return paths[: len(pairs)]


def _between(
    model: NVAE,
    tokens: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    form: str | None,
    decoding: DecodingConfig | None,
) -> jax.Array:
    """P pairs of sentences, the ends of each in consecutive rows, (2 P, N) -> ids of their paths,
    (P * steps, max_length).
    """
    ends, read_form = model.read(model.encode(tokens, mask), form=form, key=key)
    first, second = (
        jax.tree.map(lambda x, i=i: jnp.repeat(x[i::2], steps, axis=0), ends) for i in (0, 1)
    )
    times = jnp.tile(jnp.linspace(0.0, 1.0, steps), len(tokens) // 2)
    path = model.latent.interpolate(first, second, times)
    return write(model, path, key, form=read_form, max_length=model.max_length, config=decoding)


def interpolation_scores(
    pairs: Sequence[tuple[str, str]],
    paths: Sequence[Sequence[str]],
    *,
    known: AbstractSet[str] = frozenset(),
    perplexity: Callable[[list[str]], float] | None = None,
) -> dict[str, float]:
    """Score the paths that were written between pairs of texts.

    Published at t = 1/2 for an NVAE: "bleu_a", "bleu_b" (28.5, 33.7). Distances are
    `word_edit_distance`; a mean over no path is nan.

    Args:
      pairs: the two texts of each path.
      paths: what `interpolate_pairs` wrote: an odd number of texts, the same for all.
      known: the training sentences.
      perplexity: a function that returns the perplexity of a list of texts under a language model.

    Returns:
      "bleu_a", "bleu_b": `corpus_bleu` of the half-way texts against the first and second texts.
      "bleu_ends": the same for the first and last text of each path against their sources.
      "new": share of paths whose half-way text is a new sentence: it has a word, and is neither one
      of the two texts, nor what was written for them at t = 0 and 1, nor `known`.
      "perplexity_new": of the new sentences; nan if there are none or no `perplexity` is given.
      "constant": share of paths whose words never change.
      "largest_step": the largest distance between consecutive texts of a path over the sum of all:
      1 / (steps - 1) is even, 1 is one jump. It is the mean over paths that are not constant.
      "detour": that sum over the distance from the first to the last text: 1 is a straight path. It
      is the mean over paths whose ends differ.
      "distinct_points": number of different texts on a path, 1 to `steps`; the mean.

    Raises:
      ValueError: different numbers of pairs and paths, or none, or paths without a middle.

    >>> scores = interpolation_scores([("a b", "c d")], [["a b", "a d", "c d"]])
    >>> scores["new"], scores["largest_step"], scores["detour"]
    (1.0, 0.5, 1.0)
    """
    if len(pairs) != len(paths) or not pairs:
        raise ValueError(f"{len(paths)} paths for {len(pairs)} pairs; wanted as many, at least 1")
    sizes = sorted({len(path) for path in paths})
    if len(sizes) > 1 or sizes[0] < 3 or sizes[0] % 2 == 0:
        raise ValueError(
            f"paths have {sizes} texts; wanted one odd number of at least 3, so that t = 1/2 is one"
        )
    sources_a, sources_b = [a for a, _ in pairs], [b for _, b in pairs]
    firsts, lasts = [path[0] for path in paths], [path[-1] for path in paths]
    half_way = [path[sizes[0] // 2] for path in paths]
    new = [
        half
        for half, *ends in zip(half_way, sources_a, sources_b, firsts, lasts, strict=True)
        if half.split() and half not in ends and half not in known
    ]
    distances = [[word_edit_distance(a, b) for a, b in pairwise(path)] for path in paths]
    direct = map(word_edit_distance, firsts, lasts)
    return {
        "bleu_a": corpus_bleu(sources_a, half_way),
        "bleu_b": corpus_bleu(sources_b, half_way),
        "bleu_ends": corpus_bleu(sources_a + sources_b, firsts + lasts),
        "new": len(new) / len(paths),
        "perplexity_new": float(perplexity(new)) if perplexity and new else math.nan,
        "constant": sum(not any(d) for d in distances) / len(paths),
        "largest_step": _mean([max(d) / sum(d) for d in distances if any(d)]),
        "detour": _mean([sum(d) / ends for d, ends in zip(distances, direct, strict=True) if ends]),
        "distinct_points": _mean([len(set(path)) for path in paths]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
