"""What embeddings of sentences are worth: linear probes, retrieval, near-duplicates, STS, SentEval.

Three ways to compare sentences of a model, and words as a baseline:

    mean       cosine of `TextModel.embed`
    whitened   the same, whitened by the embeddings of other sentences
    kernel     `TextModel.similarity`: mixtures under a kernel, no single vector
    words      cosine of the counts of words; no model

    python -m nvib_jax.evaluation.embeddings RUN [RUN ...] [--out FILE.json]

prints the figures of runs of the grammar. Published data sets, which `sentence_tasks.py` reads from
the user's disk, are scored by `sentence_scores.py`.
"""

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvib_jax.data.grammar import default_grammar
from nvib_jax.evaluation.probes import linear_probe, sentence_labels
from nvib_jax.evaluation.word_noise import replaced_word, word_noise
from nvib_jax.files import write_whole
from nvib_jax.text_model import TextModel
from nvib_jax.whitening import Whitening

NOISE = (0.1, 0.2)  # shares of words that retrieval's queries have replaced, and lost
LIKE = 2000  # sentences that whitening learns from
Compare = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def comparisons(
    model: TextModel, like: Sequence[str], *, clean: bool = False
) -> dict[str, Compare]:
    """Name -> a function of two lists of texts that gives their similarities, (len a, len b).

    Args:
      model: encodes texts.
      like: sentences to learn the whitening from.
      clean: whether texts are cleaned, with warnings, as in `TextModel`.
    """
    white = Whitening.of(model.embed(like, clean=clean))
    embed = functools.partial(model.embed, clean=clean)
    return {
        "mean": lambda a, b: cosines(embed(a), embed(b)),
        "whitened": lambda a, b: cosines(white(embed(a)), white(embed(b))),
        "kernel": lambda a, b: model.similarity(a, b, clean=clean),
        "words": lambda a, b: cosines(*word_counts(a, b)),
    }


def embedding_scores(model: TextModel, *, count: int = 500, seed: int = 0) -> dict[str, Any]:
    """Probes, retrieval and near-duplicates of a model of the grammar's sentences.

    Args:
      model: a model of the grammar.
      count: sentences that are retrieved among and that have a near-duplicate; the probes are
        fitted on three times as many and measured on as many again.
      seed: names the sentences and the noise.

    Returns:
      "retrieval": by share of noise, then by comparison: the share of noisy copies whose own
      sentence is the most similar of all `count` (`word_noise`).
      "near_duplicates": by comparison, the probability that a sentence is more similar to itself
      with one word replaced by another of its class than to the sentence of the others that has
      most words in common with it (the area under the ROC curve over all such pairs).
      "probes": rows with "label", "classes", "majority", and the accuracies of "mean" and
      "whitened"; a linear map whitens, so these two differ by the probe's ridge alone.
    """
    grammar = default_grammar()
    texts = list(dict.fromkeys(grammar.sentences([seed, 1], 2 * count)))[:count]
    like = grammar.sentences([seed, 2], LIKE)
    compare = comparisons(model, like)
    rng = np.random.default_rng([seed, 3])
    retrieval = {}
    for share in NOISE:
        noisy = [word_noise(text, share, rng, sorted(grammar.words)) for text in texts]
        noisy = [" ".join(text.split()[: model.max_length]) for text in noisy]
        retrieval[f"{share:.2f}"] = {
            name: first_right(similar(noisy, texts)) for name, similar in compare.items()
        }
    near = [replaced_word(text, rng, grammar) for text in texts]
    counts, _ = word_counts(texts, texts)
    shared = np.minimum(counts[:, None], counts[None]).sum(-1)
    np.fill_diagonal(shared, -1)
    rival = [texts[i] for i in shared.argmax(axis=1)]
    duplicates = {}
    for name, similar in compare.items():
        same, other = (np.diag(similar(texts, others)) for others in (near, rival))
        duplicates[name] = area(same, other)
    return {
        "retrieval": retrieval,
        "near_duplicates": duplicates,
        "probes": _probes(model, count, seed),
    }


def _probes(model: TextModel, count: int, seed: int) -> list[dict[str, Any]]:
    texts = default_grammar().sentences([seed, 4], 4 * count)
    fitted = 3 * count
    known = [sentence_labels(text) for text in texts]
    found = {
        how: model.embed(
            texts, clean=False, how=how, like=texts[:fitted] if how != "mean" else None
        )
        for how in ("mean", "whitened")
    }
    rows = []
    for label in known[0]:
        names, y = np.unique([each[label] for each in known], return_inverse=True)
        common = np.bincount(y[:fitted]).argmax()
        row = {"label": label, "classes": len(names)}
        row["majority"] = float(np.mean(y[fitted:] == common))
        for how, x in found.items():
            guess = linear_probe(x[:fitted], y[:fitted], x[fitted:], len(names))
            row[how] = float(np.mean(guess == y[fitted:]))
        rows.append(row)
    return rows


# ---- arithmetic


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of all rows of a (n, D) with all of b (m, D), (n, m); 0 for a row of zeros."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    norms = [np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (a, b)]
    return (a / norms[0]) @ (b / norms[1]).T


def word_counts(a: Sequence[str], b: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """How often each word of all texts is in each text: (len a, V), (len b, V)."""
    place = {w: i for i, w in enumerate(dict.fromkeys(w for t in [*a, *b] for w in t.split()))}
    counts = [
        np.array([np.bincount([place[w] for w in t.split()], minlength=len(place)) for t in texts])
        for texts in (a, b)
    ]
    return counts[0], counts[1]


def first_right(similar: np.ndarray) -> float:
    """The share of rows whose largest entry is the diagonal's; ties are shared out."""
    own = np.diag(similar)[:, None]
    best = (similar > own).sum(axis=1) == 0
    return float(np.mean(best / (similar == own).sum(axis=1)))


def area(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(a positive is above a negative) + P(equal) / 2: the area under the ROC curve.

    >>> area(np.array([1.0, 3.0]), np.array([0.0, 1.0]))
    0.875
    """
    difference = np.asarray(positive)[:, None] - np.asarray(negative)[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties with their mean rank; nan if either is constant.

    >>> round(spearman(np.array([1.0, 2.0, 2.0, 9.0]), np.array([0.1, 0.4, 0.3, 0.5])), 4)
    0.9487
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a has {len(a)} values and b {len(b)}; wanted as many, at least 2")

    def ranks(x: np.ndarray) -> np.ndarray:
        _, index, counts = np.unique(x, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        return (last - (counts - 1) / 2)[index]

    left, right = (r - r.mean() for r in (ranks(a), ranks(b)))
    scale = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / scale) if scale > 0 else float("nan")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print `embedding_scores` of several runs, means over seeds, a line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m nvib_jax.evaluation.embeddings")
    parser.add_argument("run", nargs="+", help="folder of a run of the grammar")
    parser.add_argument("--count", type=int, default=500, help="sentences to retrieve among")
    parser.add_argument("--seeds", type=int, default=3, help="sets of sentences")
    parser.add_argument("--out", type=Path, help="JSON with everything")
    given = parser.parse_args(arguments)
    found = {}
    for run in given.run:
        model, name = TextModel.load(run), Path(run).name
        scores = (embedding_scores(model, count=given.count, seed=s) for s in range(given.seeds))
        found[name] = list(scores)
        if given.out:
            write_whole(given.out, json.dumps(found, indent=1))
        for figure, values in _figures(found[name]).items():
            shown = "  ".join(f"{how} {100 * value:.1f}" for how, value in values.items())
            print(f"{name}  {figure}: {shown}", flush=True)


def _figures(seeds: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figure -> comparison -> its mean over seeds."""

    def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    figures = {
        f"found, {share} noise": mean([each["retrieval"][share] for each in seeds])
        for share in seeds[0]["retrieval"]
    }
    figures["near-duplicates"] = mean([each["near_duplicates"] for each in seeds])
    for place, row in enumerate(seeds[0]["probes"]):
        kept = ("majority", "mean", "whitened")
        rows = [{name: each["probes"][place][name] for name in kept} for each in seeds]
        figures[f"probe of {row['label']}"] = mean(rows)
    return figures


if __name__ == "__main__":
    main()
