"""Do the components that characters attend to divide a text into its words?

Each character belongs to the component of the last layer's attention that has the largest weight;
neighbours with the same component are a segment. Segments are compared with words in two ways: by
boundaries, and by the best pairing of segments with words (Hungarian; Kuhn 1955). Beside them stand
segments of one fixed width and segments drawn at random, as many. Source: Behjati, Fehr &
Henderson (2023), section 5.2.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.text_model import TextModel

Segments = list[tuple[int, int]]  # start and end of each, in characters; they cover the text


def segment_scores(model: TextModel, texts: Sequence[str], *, seed: int = 0) -> dict[str, float]:
    """Segments of the model, of a fixed width and at random, compared with words.

    Args:
      model: its tokens are the characters of the texts.
      texts: held-out sentences.
      seed: of the random segments.

    Returns:
      "segments_X_boundary" and "segments_X_word" for X = precision, recall, f1, 0 to 1; the same
      under "fixed_..." (the best of all widths, by the F1 of words) and "random_..." (as many
      segments in each text as the model has). "segments_per_word" is the number of the model's
      segments over the number of words, "segments_prior" the share of characters whose largest
      weight is the prior's.
    """
    owners = attended(model, texts)
    found = [runs(owner) for owner in owners]
    rng = np.random.default_rng(seed)
    longest = max(len(text) for text in texts)
    fixed = max(
        ([every(len(text), width) for text in texts] for width in range(1, longest + 1)),
        key=lambda segments: _mean(texts, segments, word_match)[2],
    )
    drawn = [at_random(len(t), len(s), rng) for t, s in zip(texts, found, strict=True)]
    scores = {}
    for name, segments in (("segments", found), ("fixed", fixed), ("random", drawn)):
        for how, compare in (("boundary", boundary_match), ("word", word_match)):
            for part, value in zip(
                ("precision", "recall", "f1"), _mean(texts, segments, compare), strict=True
            ):
                scores[f"{name}_{how}_{part}"] = value
    words = sum(len(text.split()) for text in texts)
    scores["segments_per_word"] = sum(map(len, found)) / words
    scores["segments_prior"] = float(np.mean(np.concatenate(owners) == 0))
    return scores


def attended(model: TextModel, texts: Sequence[str]) -> list[np.ndarray]:
    """For each character the component with the largest weight, 0 the prior's."""
    rows = model.tokenize(texts)
    for text, row in zip(texts, rows, strict=True):
        if len(text) != len(row):
            raise ValueError(
                f"the text {text[:40]!r} has {len(text)} characters and {len(row)} tokens; wanted "
                "a model whose tokens are characters"
            )
    owner = model.measure(_owner, texts)
    return [each[: len(row)] for each, row in zip(owner, rows, strict=True)]


def runs(owner: np.ndarray) -> Segments:
    """Neighbours of the same component: `[3, 3, 0]` is `[(0, 2), (2, 3)]`."""
    cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
    return list(itertools.pairwise(cuts))


def every(length: int, width: int) -> Segments:
    """Segments of one width; the last may be shorter."""
    return [(start, min(start + width, length)) for start in range(0, length, width)]


def at_random(length: int, count: int, rng: np.random.Generator) -> Segments:
    """So many segments, all divisions equally likely."""
    cuts = np.sort(rng.choice(np.arange(1, length), size=count - 1, replace=False)).tolist()
    return list(zip([0, *cuts], [*cuts, length], strict=True))


def word_spans(text: str) -> Segments:
    """Start and end of each word of a text whose words are divided by single spaces."""
    ends = [i for i, c in enumerate(text) if c == " "] + [len(text)]
    return list(zip([0, *(i + 1 for i in ends[:-1])], ends, strict=True))


def boundary_match(text: str, segments: Segments) -> tuple[int, int, int]:
    """(boundaries of both, of the segments, of the words).

    A space is one boundary, on whichever side of it, or both, a segment ends; any other end of a
    segment is a boundary inside a word.
    """
    cuts = [start for start, _ in segments[1:]]
    spaces = {i for i, c in enumerate(text) if c == " "}
    # A cut before character i is at the space i, or at the space i - 1.
    at = {i if i in spaces else i - 1 for i in cuts if i in spaces or i - 1 in spaces}
    inside = sum(i not in spaces and i - 1 not in spaces for i in cuts)
    return len(at), len(at) + inside, len(spaces)


def word_match(text: str, segments: Segments) -> tuple[float, int, int]:
    """(the likeness of the best pairs, summed; segments, words).

    Each segment is paired with one word at most, and the likeness of a pair is Dice's, twice the
    characters of both over the characters of each; spaces belong to neither.
    """
    from scipy.optimize import linear_sum_assignment

    words = word_spans(text)
    solid = np.array([c != " " for c in text])
    sizes = np.array([solid[a:b].sum() for a, b in segments])
    there = [segment for segment, size in zip(segments, sizes, strict=True) if size]
    like = np.zeros((len(there), len(words)))
    for i, (a, b) in enumerate(there):
        for j, (start, end) in enumerate(words):
            both = max(0, min(b, end) - max(a, start))
            like[i, j] = 2 * both / (solid[a:b].sum() + end - start)
    best = linear_sum_assignment(like, maximize=True)
    return float(like[best].sum()), len(there), len(words)


def _mean(
    texts: Sequence[str],
    segments: Sequence[Segments],
    compare: Callable[[str, Segments], tuple[Any, int, int]],
) -> tuple[float, float, float]:
    """(precision, recall, F1) of counts that are summed over texts."""
    both, found, wanted = np.sum(
        [compare(t, s) for t, s in zip(texts, segments, strict=True)], axis=0
    )
    return (
        float(both / found) if found else 0.0,
        float(both / wanted) if wanted else 0.0,
        float(2 * both / (found + wanted)) if found + wanted else 0.0,
    )


def _owner(model: Any, tokens: jax.Array, mask: jax.Array, _: jax.Array) -> jax.Array:
    """The component that each token attends to most, (B, max_length)."""
    owner = jnp.argmax(model.last_attention(tokens, mask), axis=-1)
    return jnp.pad(owner, ((0, 0), (0, model.max_length - tokens.shape[1])))
