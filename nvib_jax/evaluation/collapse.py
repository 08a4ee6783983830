"""Detects posterior collapse: mutual information, active dimensions, KL by dimension and vector.

All figures are in nats and come from the posteriors of held-out texts, without decoding.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.checks import check_shapes
from nvib_jax.evaluation.likelihood import is_variational, vectors_present
from nvib_jax.models.nvae import NVAE
from nvib_jax.text_model import TextModel
from nvib_jax.types import Mixture, Posterior

ACTIVE = 0.01  # least variance of an active dimension's mean over the data, Burda et al. (2016)
PAIRS = 256  # sentences in the estimate of the mutual information


def collapse_report(model: TextModel, texts: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Measure how much the posteriors of texts carry.

    Args:
      model: the model.
      texts: held-out sentences.
      seed: of the draws that the mutual information is estimated from.

    Returns:
      "active_dimensions": how many of the D dimensions have a posterior mean whose variance over
      all present vectors is above 0.01; "passive_dimensions": the rest; "kl_per_dimension": nats,
      mean over the present vectors, a list of D; "kl_per_vector": their mean KL_G; "pseudo_count":
      their mean pseudo-count; "mutual_information": see `mutual_information`, and its upper limit
      "mutual_information_most", both nan for a latent without a density.

    >>> report = collapse_report(model, texts)
    >>> report["active_dimensions"] + report["passive_dimensions"] == model.config.model.dim
    True
    """
    each = model.measure(_vectors, texts)
    there = each["there"]
    means, kl = each["mean"][there], each["kl"][there]
    active = int(np.sum(means.var(axis=0) > ACTIVE))
    report = {
        "active_dimensions": active,
        "passive_dimensions": means.shape[1] - active,
        "kl_per_dimension": [float(x) for x in kl.mean(axis=0)],
        "kl_per_vector": float(kl.sum(axis=1).mean()),
        "pseudo_count": float(each["alpha"][there].mean()),
        "mutual_information": float("nan"),
        "mutual_information_most": float("nan"),
    }
    if is_variational(model):
        tokens, mask = model.padded(model.tokenize(texts[:PAIRS]), model.max_length)
        estimate = model.compiled(_information)(model.params, tokens, mask, jax.random.key(seed))
        report["mutual_information"] = float(estimate)
        report["mutual_information_most"] = float(np.log(len(tokens)))
    return report


def mutual_information(latent: Any, drawn: Mixture, posterior: Posterior) -> jax.Array:
    """`I(x; F)` for a set of M texts: how well a draw identifies its own text among them.

        mean_i [ log q(F_i | x_i) - log 1/M sum_j q(F_i | x_j) ]

    It is at most log M, if every draw identifies its text, and 0 if all posteriors are the same.
    A draw has density 0 under a text with another number of vectors.

    Args:
      latent: with `log_density_ratio(mixture, posterior)`.
      drawn: one draw of each posterior, shape (M, S, D).
      posterior: shape (M, S, D).

    Returns:
      float32 nats, shape (). Source: Hoffman & Johnson (2016).
    """
    check_shapes(
        **{"drawn.mean": (drawn.mean, "M S D"), "posterior.mean": (posterior.mean, "M S D")}
    )
    # The density is of an ordered set of the present vectors, so they are moved to the front.
    there = posterior.present
    order = jnp.argsort(~there, axis=1, stable=True)

    def front(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda row, o: row[o])(x, order)

    drawn, posterior = jax.tree.map(front, (drawn, posterior))
    count = vectors_present(posterior)

    def row(mixture: Mixture, m: jax.Array) -> jax.Array:
        """log p(F_i) - log q(F_i | x_j) for all j."""
        all_j = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(count), *x.shape)), mixture)
        found = -latent.log_density_ratio(all_j, posterior)
        return jnp.where(count == m, found, -jnp.inf)

    log_q = jax.lax.map(lambda x: row(*x), (drawn, count))
    own = jnp.diagonal(log_q)
    return jnp.mean(own - jax.nn.logsumexp(log_q, axis=1)) + jnp.log(jnp.float32(len(count)))


def _information(model: NVAE, tokens: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
    posterior = model.encode(tokens, mask)
    return mutual_information(model.latent, model.latent.draw(posterior, key), posterior)


def _vectors(model: NVAE, tokens: jax.Array, mask: jax.Array, key: jax.Array) -> dict[str, Any]:
    """Mean, KL by dimension, presence and pseudo-count of every vector but the prior's, padded to
    the longest text.
    """
    posterior, prior = model.encode(tokens, mask), model.latent.prior
    prior_mean, prior_log_variance = prior.mean[None, None], prior.log_variance[None, None]
    log_ratio = posterior.log_variance - prior_log_variance
    distance = jnp.square(posterior.mean - prior_mean) * jnp.exp(-prior_log_variance)
    kl = 0.5 * (jnp.exp(log_ratio) - 1 - log_ratio + distance)
    there = posterior.present
    missing = 0 if model.latent.pools else model.max_length - tokens.shape[1]

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x[:, 1:], [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))

    found = {
        "mean": posterior.mean,
        "kl": kl,
        "there": there,
        "alpha": jnp.exp(posterior.log_alpha),
    }
    return jax.tree.map(padded, found)
