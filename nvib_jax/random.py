"""Reparameterised gamma and Dirichlet samples in log space.

Enters log pseudo-counts, leaves log samples whose pathwise gradient is right from alpha = 1e-6 up
(`jax.random.loggamma` alone saturates below 0.02). `alpha = 0` (log_alpha = -inf) is a value like
any other: a sample of -inf, a gradient of 0.
"""

import jax
import jax.numpy as jnp

from nvib_jax.shapes import check_mask
from nvib_jax.special import LOG_TINY

# Above this alpha the Wilson-Hilferty cube of a normal cannot be told from a gamma (its relative
# error is O(alpha^-3/2)), its gradient is exact where the implicit one grows noisy, and it needs
# log_alpha only, never exp(log_alpha).
_LOG_LARGE = 6.907755278982137  # log 1000


def loggamma(key: jax.Array, log_alpha: jax.Array) -> jax.Array:
    """Draw `log x`, `x ~ Gamma(exp(log_alpha), 1)`, differentiable in `log_alpha`.

    Uses `log x = log x' - e/alpha` with `x' ~ Gamma(alpha + 1)` and `e ~ Exponential(1)`, so that
    the small-alpha part of the gradient, `e/alpha`, is explicit.

    Args:
      key: PRNG key.
      log_alpha: log of the shape parameter, any shape; -inf gives -inf.

    Returns:
      float32 samples, the shape of `log_alpha`.

    Source: DESIGN 3.4; the boost is Marsaglia & Tsang (2000).
    """
    log_alpha = jnp.asarray(log_alpha).astype(jnp.float32)
    empty = jnp.isneginf(log_alpha)
    log_alpha = jnp.maximum(jnp.where(empty, 0.0, log_alpha), LOG_TINY)
    large = log_alpha > _LOG_LARGE  # not minimum, maximum: they halve the gradient at a tie
    gamma_key, boost_key, normal_key = jax.random.split(key, 3)

    small = jnp.where(large, _LOG_LARGE, log_alpha)
    boost = jax.random.exponential(boost_key, log_alpha.shape, jnp.float32) * jnp.exp(-small)
    drawn = jax.random.loggamma(gamma_key, jnp.exp(small) + 1.0) - boost

    root = jnp.exp(-0.5 * jnp.where(large, log_alpha, _LOG_LARGE))  # alpha^-1/2
    normal = jax.random.normal(normal_key, log_alpha.shape, jnp.float32)
    cube = log_alpha + 3.0 * jnp.log1p((normal - root / 3.0) * root / 3.0)

    return jnp.where(empty, -jnp.inf, jnp.where(large, cube, drawn))


def log_normalize(log_weights: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`log_weights - logsumexp(log_weights)` over the last axis, -inf (gradient 0) where empty.

    Args:
      log_weights: shape (..., S); -inf marks an empty entry.
      mask: bool, shape (..., S); False marks an empty entry.

    Returns:
      float32, shape (..., S). A row with no entry at all is -inf throughout.
    """
    valid = ~jnp.isneginf(log_weights)
    valid = valid if mask is None else valid & mask
    filled = jnp.where(valid, log_weights, 0.0).astype(jnp.float32)
    # The empty entries are left out by `where`, not by a small number: a drawn log weight may be
    # as low as -1e36. An all-empty row gets a stand-in, or its gradient would be NaN.
    some = jnp.any(valid, axis=-1, keepdims=True)
    total = jax.nn.logsumexp(filled, axis=-1, keepdims=True, where=valid | ~some)
    return jnp.where(valid, filled - total, -jnp.inf)


def log_dirichlet(key: jax.Array, log_alpha: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Draw `log pi`, `pi ~ Dir(exp(log_alpha))` over the valid entries of the last axis.

    Args:
      key: PRNG key.
      log_alpha: log pseudo-counts, shape (..., S); -inf removes an entry.
      mask: bool, shape (..., S), True = valid; None means all.

    Returns:
      float32 log weights, shape (..., S); -inf, with zero gradient, where removed or masked.

    Raises:
      ValueError: the mask is not boolean or does not have the shape of `log_alpha`.
    """
    check_mask("mask", mask)
    if mask is not None and jnp.shape(mask) != jnp.shape(log_alpha):
        raise ValueError(
            f"mask has shape {jnp.shape(mask)}; wanted that of log_alpha, {jnp.shape(log_alpha)}"
        )
    return log_normalize(loggamma(key, log_alpha), mask)
