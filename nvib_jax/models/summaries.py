"""What posteriors and mixtures tell: the form to read them with, vectors kept, one mean vector."""

import jax
import jax.numpy as jnp

from nvib_jax.attention import FORMS
from nvib_jax.types import Mixture, Posterior


def form_of(mixture: Mixture, preferred: str) -> str:
    """The form of attention to read a mixture with, according to its kind of weights.

    For impulses all forms are equal. Geometric weights are for "expected_logit" alone, mean weights
    for the other three. If `preferred` is none of those, "simplified" is taken, because it stays
    nearest to the drawn impulses that a decoder is trained on: the other two move each value
    towards its query, the more the larger the component's variance is.

    Args:
      mixture: any.
      preferred: the model's `evaluation_form`, which is returned if it may read the weights.
    """
    if mixture.log_variance is None:
        return "exact"
    kind = mixture.weights_kind  # None unless `nvib_jax.expected` made the mixture
    if kind == "geometric":
        return "expected_logit"
    fits = preferred in FORMS and not (kind == "mean" and preferred == "expected_logit")
    return preferred if fits else "simplified"


KEPT_ABOVE = 0.1  # the published evaluation drops vectors with at most this pseudo-count


def kept(posterior: Posterior, threshold: float = KEPT_ABOVE) -> jax.Array:
    """Which vectors have a pseudo-count above the threshold, without the prior's.

    Returns:
      bool, shape (B, S - 1).
    """
    above = posterior.log_alpha[:, 1:] > jnp.log(threshold)
    return above & posterior.mask[:, 1:]


def mean_vector(posterior: Posterior) -> jax.Array:
    """`sum_i alpha_i mu_i / sum_i alpha_i` without component 0, float32, shape (B, D).

    If no other component is present, it is the mean of component 0, which is the prior's.
    """
    log_alpha = jnp.where(posterior.mask, posterior.log_alpha, -jnp.inf)[:, 1:]
    top = jnp.max(log_alpha, axis=1, keepdims=True, initial=-jnp.inf)
    some = ~jnp.isneginf(top)
    weights = jnp.exp(log_alpha - jnp.where(some, top, 0.0))
    weights = weights / jnp.where(some, jnp.sum(weights, axis=1, keepdims=True), 1.0)
    mean = jnp.einsum("bs,bsd->bd", weights, posterior.mean[:, 1:])
    return jnp.where(some, mean, posterior.mean[:, 0])
