"""A mixture that comes without its form of attention, and a posterior as a single vector."""

import jax
import jax.numpy as jnp

from nvib_jax.attention import FORMS
from nvib_jax.types import Mixture, Posterior


def form_of(mixture: Mixture, preferred: str) -> str:
    """The form of attention that reads a mixture's weights as what they are.

    Impulses are the same in every form, geometric weights are for "expected_logit" alone. Mean
    weights are for the other three. Of these, "simplified" stays nearest to the drawn impulses that
    a decoder is trained on: the others move a value towards its query by a component's variance.

    Args:
      mixture: any.
      preferred: how the model was made to be read, taken where it fits.
    """
    if mixture.log_variance is None:
        return "exact"
    kind = mixture.weights_kind  # of `nvib_jax.expected`; None of all others
    if kind == "geometric":
        return "expected_logit"
    fits = preferred in FORMS and not (kind == "mean" and preferred == "expected_logit")
    return preferred if fits else "simplified"


def mean_vector(posterior: Posterior) -> jax.Array:
    """`sum_i alpha_i mu_i / sum_i alpha_i` without component 0, float32, shape (B, D).

    Where no other component is present, the mean of component 0, which is the prior's.
    """
    log_alpha = jnp.where(posterior.mask, posterior.log_alpha, -jnp.inf)[:, 1:]
    top = jnp.max(log_alpha, axis=1, keepdims=True, initial=-jnp.inf)
    some = ~jnp.isneginf(top)
    weights = jnp.exp(log_alpha - jnp.where(some, top, 0.0))
    weights = weights / jnp.where(some, jnp.sum(weights, axis=1, keepdims=True), 1.0)
    mean = jnp.einsum("bs,bsd->bd", weights, posterior.mean[:, 1:])
    return jnp.where(some, mean, posterior.mean[:, 0])
