"""Denoising attention as the equation is written, in R^D.

It is slow and plain, and the tests compare every other implementation with it. It computes the
equation term by term. Queries and values of shape (B, T, H, D) are formed, an array of shape
(B, T, H, S, D) never is.
"""

import jax
import jax.numpy as jnp

from nvib_jax.attention.inputs import MASK_VALUE, accumulator, moments
from nvib_jax.types import Mixture


def attend(
    query: jax.Array,
    mixture: Mixture,
    *,
    key_kernel: jax.Array,
    value_kernel: jax.Array,
    mask: jax.Array | None,
    position_bias: jax.Array | None = None,
    form: str,
) -> tuple[jax.Array, jax.Array]:
    """See `nvib_jax.denoising_attention`; shapes are checked there.

    Returns (B, T, H, E) and the log-sum-exp of the logits of `nvib_jax.attention.inputs`, which
    have + 1/2 sum u^2/r + D/2 log r beside the equation's, (B, T, H, 1).
    """
    highest = jax.lax.Precision.HIGHEST
    dtype = accumulator(query.dtype)
    query, key_kernel, value_kernel = (a.astype(dtype) for a in (query, key_kernel, value_kernel))
    mu, s2 = moments(mixture, dtype)
    root = float(query.shape[-1]) ** 0.5
    # For impulses all forms are equal, and "simplified" avoids products with an array of zero
    # variances, because XLA on CPUs (jax 0.10.2) has been seen to give NaN gradients for them.
    form = "simplified" if mixture.log_variance is None else form
    log_weights = mixture.log_weights.astype(dtype)
    if form == "expected_logit":
        log_weights = log_weights - jnp.sum(s2, -1) / (2 * root)
        s2 = jnp.zeros_like(mu)
    t = s2 + root

    u = jnp.einsum("bthe,dhe->bthd", query, key_kernel, precision=highest)
    logits = jnp.einsum("bthd,bsd->bths", u, mu / t, precision=highest)
    offset = log_weights - 0.5 * jnp.sum(mu * mu / t, -1)
    if form in ("exact", "published"):
        offset = offset - 0.5 * jnp.sum(jnp.log(t), -1)
    if form == "exact":
        logits = logits - 0.5 * jnp.einsum("bthd,bsd->bths", u * u, 1 / t, precision=highest)

    if position_bias is not None:
        bias = position_bias if position_bias.ndim == 4 else position_bias[None]
        logits = logits + jnp.swapaxes(bias.astype(dtype), 1, 2)
    valid = mixture.present
    logits = logits + jnp.where(valid, offset, 0.0)[:, None, None, :]
    valid = valid[:, None, None, :]
    if mask is not None:
        valid = valid & mask[:, :, None, :]
    logits = jnp.where(valid, logits, MASK_VALUE)
    weights = jax.nn.softmax(logits, axis=-1)
    lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if form in ("exact", "published"):
        lse = lse + 0.5 * mu.shape[-1] * jnp.log(root)
    if form == "exact":
        lse = lse + 0.5 * jnp.sum(u * u, -1, keepdims=True) / root

    value = jnp.einsum("bths,bsd->bthd", weights, root * mu / t, precision=highest)
    if form in ("exact", "published"):
        value = value + u * jnp.einsum("bths,bsd->bthd", weights, s2 / t, precision=highest)
    return jnp.einsum("bthd,dhe->bthe", value, value_kernel, precision=highest), lse
