"""Scores of embeddings on published data sets: STS, and the classification tasks of SentEval.

from nvib_jax.evaluation.sentence_tasks import read_sts, read_trec

rows = sts_scores(model, read_sts("STS16/test"))
found = classification_scores(model, read_trec("train_5500.label", "TREC_10.label"))
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nvib_jax.evaluation.embeddings import comparisons, spearman
from nvib_jax.evaluation.probes import linear_probe
from nvib_jax.evaluation.sentence_tasks import Classification, Similarity
from nvib_jax.text_model import TextModel
from nvib_jax.whitening import Whitening


def sts_scores(
    model: TextModel, sets: Sequence[Similarity], *, clean: bool = True
) -> list[dict[str, Any]]:
    """Spearman's correlation of similarities with people's scores, for each set and for all.

    Args:
      model: encodes texts; pairs with a sentence that it cannot take are left out.
      sets: from `sentence_tasks.read_sts_benchmark` or `read_sts`.
      clean: whether texts are cleaned as the training text was.

    Returns:
      Rows with "name", "pairs", "left_out" and the correlation of each comparison, -1 to 1. "all"
      ranks the pairs of all sets together. Whitening is learned from the set's own sentences, as
      is common, and without their scores.
    """
    rows: list[dict[str, Any]] = []
    gathered: dict[str, list[np.ndarray]] = {}
    wanted: list[np.ndarray] = []
    for each in sets:
        fits = [_takes(model, a) and _takes(model, b) for a, b in zip(each.a, each.b, strict=True)]
        a, b = ([t for t, fit in zip(s, fits, strict=True) if fit] for s in (each.a, each.b))
        scores = np.array(each.scores)[np.array(fits, bool)]
        if len(a) < 2:
            raise ValueError(f"{each.name} has {len(a)} pairs that the model takes; wanted 2")
        found = paired(model, a, b, clean=clean)
        row = {"name": each.name, "pairs": len(a), "left_out": len(fits) - len(a)}
        rows.append(row | {name: spearman(x, scores) for name, x in found.items()})
        wanted.append(scores)
        for name, x in found.items():
            gathered.setdefault(name, []).append(x)
    if len(rows) > 1:
        whole: dict[str, Any] = {"name": "all", "pairs": sum(row["pairs"] for row in rows)}
        whole["left_out"] = sum(row["left_out"] for row in rows)
        for name, parts in gathered.items():
            whole[name] = spearman(np.concatenate(parts), np.concatenate(wanted))
        rows.append(whole)
    return rows


def paired(
    model: TextModel, a: Sequence[str], b: Sequence[str], *, clean: bool = True
) -> dict[str, np.ndarray]:
    """The similarity of each text of `a` to the text of `b` in its place, by comparison, (n,)."""
    compare = comparisons(model, [*a, *b], clean=clean)
    step = 64  # all pairs of a block are compared, and its diagonal is what is wanted
    return {
        name: np.concatenate(
            [np.diag(similar(a[i : i + step], b[i : i + step])) for i in range(0, len(a), step)]
        )
        for name, similar in compare.items()
    }


def classification_scores(
    model: TextModel, task: Classification, *, how: str = "mean", clean: bool = True
) -> dict[str, float]:
    """The accuracy of softmax regression on embeddings (the protocol of SentEval, one ridge).

    Args:
      model: encodes texts; texts that it cannot take are left out.
      task: from `nvib_jax.evaluation.sentence_tasks`. Without a test part the texts are shuffled
        with a fixed seed and divided in ten, and the mean over the tenths is given.
      how: as in `TextModel.embed`; whitening is learned from the training part.
      clean: whether texts are cleaned as the training text was.

    Returns:
      "accuracy" and "majority" (of the commonest class of the training part), 0 to 1, "classes",
      "texts" that were measured, and "left_out".
    """
    train, test = ([p for p in part if _takes(model, p[1])] for part in (task.train, task.test))
    folds = 1 if task.test else 10
    texts = train + test
    names, y = np.unique([label for label, _ in texts], return_inverse=True)
    x = model.embed([text for _, text in texts], clean=clean)
    order = np.arange(len(texts)) if test else np.random.default_rng(0).permutation(len(texts))
    right, common, measured = 0, 0, 0
    for fold in range(folds):
        out = order[len(train) :] if task.test else order[fold::folds]
        kept = np.setdiff1d(order, out)
        inputs, others = x[kept], x[out]
        if how == "whitened":
            white = Whitening.of(inputs)
            inputs, others = white(inputs), white(others)
        guess = linear_probe(inputs, y[kept], others, len(names))
        right += int(np.sum(guess == y[out]))
        common += int(np.sum(y[out] == np.bincount(y[kept]).argmax()))
        measured += len(out)
    return {
        "accuracy": right / measured,
        "majority": common / measured,
        "classes": len(names),
        "texts": measured,
        "left_out": len(task.train) + len(task.test) - len(texts),
    }


def _takes(model: TextModel, text: str) -> bool:
    """Whether a text has words, and no more tokens than the model has positions for."""
    return 1 <= len(model.tokenizer.encode(text)) <= model.max_length
