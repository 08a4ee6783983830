"""Which vectors a bottleneck keeps, and what that choice depends on: the place, or what is said.

A model with good scores may have learned a stride: the same positions of every sentence, whatever
they say. So the choice is explained by one thing at a time,

    R2 = 1 - sum_groups sum_(t in group) (y_t - mean of group)^2 / sum_t (y_t - mean)^2

over all tokens t of all texts, where y is 1 for a kept vector and 0 otherwise, or its log
pseudo-count. 1 means that the group alone decides, 0 that it says nothing. Groups made at random
have R2 = (groups - 1) / (tokens - 1) on average, which is given beside it as "chance".
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.data.grammar import default_grammar
from nvib_jax.evaluation.language_model import LanguageModel
from nvib_jax.evaluation.usage import read_still, vectors_kept
from nvib_jax.models.latents import LATENTS
from nvib_jax.models.nvae import NVAE
from nvib_jax.text_model import TextModel

SURPRISAL_GROUPS = 10  # tokens are grouped by tenths of their surprisal


def choice(
    model: TextModel,
    texts: Sequence[str],
    *,
    language_model: LanguageModel | None = None,
    grammar: bool = False,
) -> dict[str, Any] | None:
    """What the choice of vectors depends on.

    Args:
      model: the model.
      texts: held-out sentences.
      language_model: groups tokens by surprisal, and gives the information of a sentence unless the
        grammar does.
      grammar: whether the texts are sentences of the embedded grammar, whose word classes and
        exact log-probabilities are known.

    Returns:
      None for a latent that pools, because its vectors do not belong to tokens. Otherwise
      "explained": name of a grouping ("position", "position_and_length", "word", "class",
      "surprisal") -> R2 of "kept" and of "log_pseudo_count" (over the vectors that have one), and
      the "chance" and number of "groups"; R2 is nan if all tokens are alike.
      "information": the correlation of the number of kept vectors with -log p(text), among
      sentences of the same length; nan if one of both does not vary, None if p is not known.
      "by_position" and "by_class": rows with "tokens", "kept" (a share) and "position" (from 1) or
      "class".

    >>> found = choice(model, texts, grammar=True)
    >>> sorted(found["explained"])
    ['class', 'position', 'position_and_length', 'word']
    """
    if LATENTS[model.architecture.kind].pools:
        return None
    rows = model.tokenize(texts)
    kept, log_alpha = model.measure(_chosen, texts)
    lengths = np.array([len(row) for row in rows])
    place = np.concatenate([np.arange(n) for n in lengths])
    words = np.concatenate([np.asarray(row) for row in rows])
    chosen = np.concatenate([k[:n] for k, n in zip(kept, lengths, strict=True)]).astype(np.float64)
    weight = np.concatenate([a[:n] for a, n in zip(log_alpha, lengths, strict=True)])
    names = np.array([model.tokenizer.decode([int(i)]) for i in words])

    groupings: dict[str, np.ndarray] = {
        "position": place,
        "position_and_length": place * (lengths.max() + 1) + np.repeat(lengths, lengths),
        "word": words,
    }
    if grammar:
        groupings["class"] = np.array([default_grammar().class_of(name) for name in names])
    if language_model is not None:
        surprise = -np.concatenate(language_model.token_log_probs(texts, ends=False))
        edges = np.quantile(surprise, np.linspace(0, 1, SURPRISAL_GROUPS + 1)[1:-1])
        groupings["surprisal"] = np.searchsorted(edges, surprise)
    counts = np.array([k[:n].sum() for k, n in zip(kept, lengths, strict=True)])
    information = _information(texts, language_model, grammar)
    return {
        "explained": {name: _explained(group, chosen, weight) for name, group in groupings.items()},
        "information": (
            None if information is None else correlation_at_fixed(lengths, counts, information)
        ),
        "by_position": _shares(place + 1, chosen, "position", int),
        "by_class": _shares(groupings["class"], chosen, "class", str) if grammar else [],
    }


def choice_scores(found: dict[str, Any]) -> dict[str, float]:
    """The figures of `choice` that a table compares runs by."""
    scores = {f"choice_{name}": row["kept"] for name, row in found["explained"].items()}
    if found["information"] is not None:
        scores["choice_information"] = found["information"]
    return scores


def explained(groups: np.ndarray, values: np.ndarray) -> float:
    """R2: the share of the variance of `values` that the mean of each group explains.

    Args:
      groups: what each value belongs to, shape (n,).
      values: shape (n,).

    Returns:
      0 to 1; nan if all values are equal, or there are none.

    >>> explained(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 0.0, 0.0]))
    1.0
    """
    if len(values) == 0 or np.ptp(values) == 0:
        return float("nan")
    _, index = np.unique(groups, return_inverse=True)
    means = np.bincount(index, weights=values) / np.bincount(index)
    return float(1 - np.sum((values - means[index]) ** 2) / np.sum((values - values.mean()) ** 2))


def correlation_at_fixed(groups: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of a and b after the mean of each group is taken off both.

    >>> length, a = np.array([4, 4, 9, 9]), np.array([1.0, 2.0, 7.0, 8.0])
    >>> correlation_at_fixed(length, a, np.array([3.0, 5.0, 1.0, 3.0]))
    1.0
    """
    _, index = np.unique(groups, return_inverse=True)

    def left(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64)
        return x - (np.bincount(index, weights=x) / np.bincount(index))[index]

    a, b = left(a), left(b)
    # Where a is a function of the group, rounding leaves differences that mean nothing.
    if min(np.abs(a).max(initial=0), np.abs(b).max(initial=0)) < 1e-9:
        return float("nan")
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _explained(groups: np.ndarray, chosen: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    there = np.isfinite(weight)
    count = len(np.unique(groups))
    return {
        "kept": explained(groups, chosen),
        "log_pseudo_count": explained(groups[there], weight[there].astype(np.float64)),
        "chance": (count - 1) / max(len(chosen) - 1, 1),
        "groups": count,
    }


def _shares(
    groups: np.ndarray, chosen: np.ndarray, name: str, kind: Callable[[Any], Any]
) -> list[dict[str, Any]]:
    """A row for each group: its name, its tokens and the share of them whose vector is kept."""
    members = {kind(group): groups == group for group in np.unique(groups)}
    return [
        {name: group, "tokens": int(own.sum()), "kept": float(chosen[own].mean())}
        for group, own in members.items()
    ]


def _information(
    texts: Sequence[str], language_model: LanguageModel | None, grammar: bool
) -> np.ndarray | None:
    """-log p of each text in nats, under the grammar or else the language model."""
    if grammar:
        return -np.array([default_grammar().log_prob(text) for text in texts])
    return None if language_model is None else -language_model.log_prob(texts)


def _chosen(
    model: NVAE, tokens: jax.Array, mask: jax.Array, _: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which tokens' vectors are kept and given to the decoder, and their log pseudo-counts.

    Each is (B, max_length).
    """
    posterior = model.encode(tokens, mask)
    mixture, _form = read_still(model, posterior)
    found = vectors_kept(model, posterior, mixture), posterior.log_alpha[:, 1:]
    missing = model.max_length - tokens.shape[1]
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, missing))), found)
