"""A lower bound on log p(x) whose prior over latents is learned (`nvib_jax.priors`).

    log p(x) >= log p(m) + E_q [ log p(x | w) + log p(w | m) - log q(w | x) ]

w are the m points of a text (`PointMap`), q(w | x) the text's own points blurred by the noise that
the prior was fitted with, p(w | m) the prior's density of ordered tuples, and p(x | w) the decoder,
reading the posterior that the points stand for. It is another model than that of `likelihood.py`:
its latents are points, and what the point_map leaves out is constant. Only the decoder is shared.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.evaluation.likelihood import ratio, standard_error, token_counts
from nvib_jax.models.bound import log_count_probability
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import Params, merge
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.objective import log_likelihood
from nvib_jax.priors import LearnedPrior, Sampling
from nvib_jax.priors.points import PointMap
from nvib_jax.text_model import TextModel


def learned_bound(
    model: TextModel,
    prior: LearnedPrior,
    texts: Sequence[str],
    *,
    draws: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The bound and its parts, means over sentences, in nats.

    Args:
      model: the model.
      prior: fitted to it.
      texts: held-out sentences.
      draws: of the points and of the divergence's directions, averaged.
      sampling: how a flow's density is integrated.
      seed: of the draws.

    Returns:
      "elbo_sentence" and "elbo_token" (a ratio of sums; end-of-sentence is a token) with their
      standard errors over sentences, "elbo_sentence_error" and "elbo_token_error", which hold the
      error of the draws too; the parts per sentence "log_likelihood", "kl" (that of q from the
      prior) and "log_prob_count".

    Raises:
      ValueError: the prior was fitted to other parameters.
    """
    prior.check_fits(model.params)
    given = (prior.params, prior.point_map)
    how: dict[str, Any] = {
        "graph": prior.graph,
        "noise": prior.config.noise,
        "sampling": sampling or Sampling(),
    }
    found = [model.measure(_terms, texts, seed + i, arrays=given, **how) for i in range(draws)]
    log_p, kl, present = (np.mean([terms[i] for terms in found], axis=0) for i in range(3))
    log_count = log_count_probability(model.count_probabilities, present.astype(int))
    bound = log_p.astype(np.float64) - kl + log_count
    per_token, error = ratio(bound, token_counts(model, texts))
    return {
        "elbo_sentence": float(bound.mean()),
        "elbo_sentence_error": standard_error(bound),
        "elbo_token": per_token,
        "elbo_token_error": error,
        "log_likelihood": float(log_p.mean()),
        "kl": float(kl.mean()),
        "log_prob_count": float(log_count.mean()),
    }


def _terms(
    model: NVAE,
    tokens: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    params: Params,
    point_map: PointMap,
    *,
    graph: nnx.GraphDef,
    noise: float,
    sampling: Sampling,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log p(x | w), log q(w | x) - log p(w | m), m) of one draw of each text, each (B,)."""
    blur_key, density_key, read_key = jax.random.split(key, 3)
    points, there = point_map.points(model.encode(tokens, mask))
    normal = jax.random.normal(blur_key, points.shape, jnp.float32)
    points = jnp.where(there[..., None], points + noise * normal, 0.0)
    log_q = -0.5 * jnp.square(normal) - math.log(noise * math.sqrt(2 * math.pi))
    log_q = jnp.sum(jnp.where(there[..., None], log_q, 0.0), axis=(1, 2))
    log_prior = merge(graph, params).log_density(points, there, density_key, sampling)

    posterior = point_map.posterior(points, there, model.latent.prior)
    inputs, targets, counted = decoder_io(tokens, mask, model.special)
    logits = model.decode(model.memories(*model.read(posterior, key=read_key)), inputs)
    log_p = log_likelihood(logits, targets, counted)
    return log_p, log_q - log_prior, jnp.sum(there, axis=-1)
