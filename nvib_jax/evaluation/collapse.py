"""Is the latent used? Mutual information, active dimensions, KL by dimension and by vector.

The figures that users of text VAEs look at for posterior collapse. All in nats, over held-out
texts, from the posterior alone: no decoding.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.engine import pad
from nvib_jax.evaluation.likelihood import is_variational, vectors_present
from nvib_jax.models.nvae import NVAE
from nvib_jax.shapes import check_shapes
from nvib_jax.text_model import TextModel
from nvib_jax.types import Mixture, Posterior

ACTIVE = 0.01  # variance of a dimension's mean over the data, Burda et al. (2016)
PAIRS = 256  # sentences in the estimate of the mutual information


def collapse_report(model: TextModel, texts: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """What the posterior says of each text.

    Args:
      model: the model.
      texts: held-out sentences.
      seed: of the draws that the mutual information is estimated from.

    Returns:
      "active_dimensions": of D, those whose posterior mean has a variance above 0.01 over all
      vectors that are there; "passive_dimensions": the rest; "kl_per_dimension": nats, mean over
      these vectors, a list of D; "kl_per_vector": their mean KL_G; "pseudo_count": mean of a vector
      that is there; "mutual_information": see `mutual_information`, and its ceiling
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
        tokens, mask = pad(model.tokenize(texts[:PAIRS]), model.max_length)
        estimate = model.compiled(_information)(model.params, tokens, mask, jax.random.key(seed))
        report["mutual_information"] = float(estimate)
        report["mutual_information_most"] = float(np.log(len(tokens)))
    return report


def mutual_information(latent: Any, drawn: Mixture, posterior: Posterior) -> jax.Array:
    """`I(x; F)` of a set of M texts: how far a draw tells its own text from the others.

        mean_i [ log q(F_i | x_i) - log 1/M sum_j q(F_i | x_j) ]

    At most log M, which a latent that identifies every text reaches; 0 where all posteriors are
    the same. A text with another number of vectors has density 0.

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
    # Densities are of ordered sets: the vectors that are there, in order, in front.
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
    """Every vector but the prior's, padded to the longest text: mean, KL by dimension, count."""
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
