"""The evidence lower bound of single sentences, in nats, from one draw of each mixture.

    log p(x) >= log p(m) + log p(x | F) - KL_G - KL_D        F ~ q(F | x), in expectation

with exact KLs; that of codes, which are certain, is -log p(c | m). m is the number of present
vectors. The decoder sees m, so the bound has to pay `log p(m)` for it (Henderson & Fehr 2023, arXiv
2207.13529; `nvib_jax.evaluation.likelihood`).
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.models.latents import DIVERGENCES
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.objective import log_likelihood
from nvib_jax.types import Posterior


def bound_terms(
    model: NVAE, tokens: jax.Array, mask: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """(log p(x|F) for a drawn F, name -> exact KL, m), all but m in nats, each (B,)."""
    posterior = model.encode(tokens, mask)
    inputs, targets, counted = decoder_io(tokens, mask, model.special)
    logits = model.decode(model.memories(model.draw(posterior, key), "exact"), inputs)
    costs = model.latent.costs(posterior)
    return (
        log_likelihood(logits, targets, counted),
        {name: cost for name, cost in costs.items() if name in DIVERGENCES},
        vectors_present(posterior),
    )


def bound(terms: tuple[Any, ...], count_probabilities: np.ndarray) -> np.ndarray:
    """The ELBO of each sentence in nats, (B,), from the terms that `bound_terms` returns."""
    log_p, kls, present = terms
    log_count = log_count_probability(count_probabilities, present)
    return functools.reduce(operator.sub, kls.values(), log_p + log_count)


def vectors_present(posterior: Posterior) -> jax.Array:
    """m, the number of present vectors without the prior's, int (B,)."""
    return jnp.sum(posterior.present[:, 1:], axis=-1)


def log_count_probability(probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`log p(m)` with a thousandth of the mass spread evenly, so that no count is impossible."""
    smoothed = 0.999 * probabilities + 0.001 / len(probabilities)
    return np.log(smoothed[counts])
