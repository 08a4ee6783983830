"""Compares all ways to read a posterior: which of them reconstructs texts best?

A model is trained on drawn mixtures. What its decoder reads afterwards is a choice that makes a
difference of tens of BLEU: the mean mixture with one of the forms of attention, one draw, or the
average of several; and which components are dropped.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.attention import Memory
from nvib_jax.evaluation.likelihood import ratio, token_counts
from nvib_jax.evaluation.reconstruction import reconstruction_scores
from nvib_jax.generate import generate
from nvib_jax.mixture import READS, expected
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.objective import log_likelihood
from nvib_jax.text.engine import ROWS
from nvib_jax.text_model import TextModel
from nvib_jax.types import Mixture

THRESHOLDS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
BUDGETS = (0.15, 0.25, 0.35, 0.5, 0.75, 1.0)  # shares of the vectors


def compare_forms(
    model: TextModel, texts: Sequence[str], *, forms: Sequence[str] = READS, seed: int = 0
) -> list[dict[str, Any]]:
    """Reconstruction and likelihood under each form.

    Args:
      model: the model.
      texts: held-out sentences.
      forms: of `nvib_jax.mixture.READS`.
      seed: of draws.

    Returns:
      For each form "form", "exact", "bleu" of greedy decoding, "nats_per_token", the
      cross-entropy under teacher forcing, and "distance" of `attention_distances`.

    >>> [row["form"] for row in compare_forms(model, texts, forms=["exact", "drawn"])]
    ['exact', 'drawn']
    """
    tokens, found = token_counts(model, texts), []
    distances = attention_distances(model, texts[:ROWS], forms=forms, seed=seed)
    for form in forms:
        ids, log_p = model.measure(read_to_decode, texts, seed, then=_write, form=form)
        scores = reconstruction_scores(texts, model.texts(ids))
        found.append(
            {
                "form": form,
                "exact": scores["exact"],
                "bleu": scores["bleu"],
                "nats_per_token": -ratio(log_p, tokens)[0],
                "distance": distances[form],
            }
        )
    return found


def attention_distances(
    model: TextModel,
    texts: Sequence[str],
    *,
    forms: Sequence[str] = READS,
    draws: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """How far attention under a form is from attention to draws, which the decoder is trained on.

        sum |out_form - mean_j out_j|^2 / mean_j sum |out_j|^2

    over the outputs of the first layer's latent attention at all positions. A form with 0 is the
    best prediction of a draw in squared error. For "drawn" it is the variance of the draws.

    Args:
      model: the model.
      texts: held-out sentences.
      forms: of `nvib_jax.mixture.READS`.
      draws: number of draws in the mean.
      seed: of the draws.
    """
    names = [form for form in forms if form != "drawn"]
    off, spread, size = (
        x.astype(np.float64).sum(axis=0)
        for x in model.measure(_attention, texts, seed, forms=tuple(names), draws=draws)
    )
    found = {name: float(value / size) for name, value in zip(names, off, strict=True)}
    return found | {"drawn": float(spread / size)}


def _attention(
    model: NVAE,
    tokens: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    forms: tuple[str, ...],
    draws: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Squared (distances of the forms (B, F), spread of draws (B,), size of draws (B,))."""
    posterior, layer = model.encode(tokens, mask), model.decoder.layers[0]
    inputs, _, counted = decoder_io(tokens, mask, model.special)
    query = layer.latent_query(model.decoder_input(inputs))
    first, *keys = jax.random.split(key, draws + 1)

    def out(mixture: Mixture, form: str) -> jax.Array:
        attended = layer.latent_attention(query, layer.latent_attention.memory(mixture, form))
        return jnp.where(counted[..., None], attended.astype(jnp.float32), 0.0)

    # These draws are made as in training, without a threshold, because the decoder was trained on
    # such draws.
    drawn = jax.lax.map(lambda k: out(model.draw(posterior, k), "exact"), jnp.stack(keys))
    mean = jnp.mean(drawn, axis=0)

    def squared(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x), axis=(-2, -1))

    spread, size = (jnp.mean(squared(x), axis=0) for x in (drawn - mean[None], drawn))
    off = [
        squared(out(*model.read(posterior, form=form, key=first)) - mean)[:, None] for form in forms
    ]
    return jnp.concatenate([jnp.zeros((len(tokens), 0)), *off], axis=-1), spread, size


def compare_thresholds(
    model: TextModel, texts: Sequence[str], *, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float]]:
    """Reconstruction after dropping components with small pseudo-counts.

    Args:
      model: an NVAE.
      texts: held-out sentences.
      thresholds: pseudo-counts; a component with at most this is dropped.

    Returns:
      For each threshold "threshold", "kept" (share of vectors), "exact", "bleu".

    >>> [row["kept"] for row in compare_thresholds(model, texts, thresholds=[0.0])]
    [1.0]
    """
    return _by_share_kept(model, texts, "threshold", thresholds, _above)


def compare_budgets(
    model: TextModel, texts: Sequence[str], *, budgets: Sequence[float] = BUDGETS
) -> list[dict[str, float]]:
    """Reconstruction from a share of each sentence's vectors.

    They are those of the largest pseudo-counts, or of the choice of a model's gate.

    Args:
      model: an NVAE, trained with any number of vectors.
      texts: held-out sentences.
      budgets: shares, above 0 and at most 1 (`nvib_jax.keep_largest`).

    Returns:
      For each budget "budget", "kept" (share of vectors that are there and given), "exact", "bleu".

    >>> [row["budget"] for row in compare_budgets(model, texts, budgets=[0.5])]
    [0.5]
    """
    return _by_share_kept(model, texts, "budget", budgets, _budgeted)


def _by_share_kept(
    model: TextModel, texts: Sequence[str], name: str, values: Sequence[float], given: Any
) -> list[dict[str, float]]:
    """A row for each value: it, the share of vectors that `given` leaves, "exact" and "bleu"."""
    lengths, found = token_counts(model, texts) - 1, []
    for value in values:
        ids, kept = model.measure(given, texts, arrays=[np.float32(value)], then=_write)
        scores = reconstruction_scores(texts, model.texts(ids))
        row = {name: value, "kept": float((kept / lengths).mean())}
        found.append(row | {score: scores[score] for score in ("exact", "bleu")})
    return found


Given = tuple[tuple[Memory, ...], jax.Array]  # the decoder's memories, and a number per sentence


def _above(
    model: NVAE, tokens: jax.Array, mask: jax.Array, key: jax.Array, threshold: jax.Array
) -> Given:
    """The memories of the vectors above a threshold, and how many vectors each sentence keeps."""
    posterior = model.encode(tokens, mask)
    mixture, form = model.latent.read(
        posterior, model.config.evaluation_form, key, threshold=threshold
    )
    # The vectors are counted in the posterior and not in the mixture, because a mixture of several
    # draws has several impulses for each vector.
    present = expected(posterior, threshold=threshold).present
    return model.memories(mixture, form), jnp.sum(present[:, 1:], axis=-1)


def _budgeted(
    model: NVAE, tokens: jax.Array, mask: jax.Array, key: jax.Array, budget: jax.Array
) -> Given:
    """The memories of a share of the vectors, and how many of them each sentence has."""
    posterior = model.encode(tokens, mask, keep=budget)
    mixture, form = model.read(posterior, key=key)
    present = expected(posterior, threshold=model.config.threshold).present
    return model.memories(mixture, form), jnp.sum(present[:, 1:], axis=-1)


def read_to_decode(
    model: NVAE, tokens: jax.Array, mask: jax.Array, key: jax.Array, *, form: str
) -> Given:
    """The memories of the mixture that a form reads, and `log p(x | F)` for it in nats."""
    mixture, read = model.read(model.encode(tokens, mask), form=form, key=key)
    memories = model.memories(mixture, read)
    inputs, targets, counted = decoder_io(tokens, mask, model.special)
    return memories, log_likelihood(model.decode(memories, inputs), targets, counted)


def _write(model: NVAE, given: Given, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy decoding: (ids, the number per sentence).

    It is compiled separately, so that all forms with the same kind of memory share it.
    """
    memories, figure = given
    return generate(model, memories, key, max_length=model.max_length), figure
