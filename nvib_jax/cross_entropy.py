"""Cross-entropy of an output layer: states and a [D, V] kernel -> nats, without [B, T, V] logits.

Positions are taken a few at a time. When the gradient is asked for, each part's is computed beside
its value, while its logits are there: unlike a recomputation this costs no product more than
keeping all logits would.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nvib_jax.shapes import check_mask, check_shapes

LOGITS_AT_ONCE = 1 << 21  # 8 MiB: what a few cores' caches hold


def cross_entropy(
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    mask: jax.Array,
    *,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> jax.Array:
    """`- sum log softmax(states kernel + bias)[targets]` over the valid tokens.

    Args:
      states: shape (B, T, D); their dtype is that of the products, which add up in float32.
      kernel: shape (D, V).
      bias: shape (V,), or None.
      targets: int, shape (B, T).
      mask: bool, shape (B, T), True = counts.
      logits_at_once: how many logits may exist; one position's B V always do.

    Returns:
      float32 nats, shape (). Differentiable once, by states, kernel and bias.

    Raises:
      ValueError: shapes that do not fit, or a mask that is not boolean.
    """
    check_mask("mask", mask)
    sizes = check_shapes(
        states=(states, "B T D"),
        kernel=(kernel, "D V"),
        bias=(bias, "V"),
        targets=(targets, "B T"),
        mask=(mask, "B T"),
    )
    parts = -(-sizes["B"] * sizes["T"] * sizes["V"] // logits_at_once)
    width = -(-sizes["T"] // max(min(parts, sizes["T"]), 1))
    return _cross_entropy(width, states, kernel, bias, targets, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(width, states, kernel, bias, targets, mask):
    def part(total: jax.Array, x: Any):
        return total + _part(x, kernel, bias)[0], None

    return _scan_positions(part, jnp.float32(0), (states, targets, mask), width)[0]


def _forward(width, states, kernel, bias, targets, mask):
    f32: dict[str, Any] = {"preferred_element_type": jnp.float32}

    def part(carry: Any, x: Any):
        total, d_kernel, d_bias = carry
        loss, logits, log_total = _part(x, kernel, bias)
        position, token, counts = x
        hit = jax.lax.broadcasted_iota(token.dtype, logits.shape, 2) == token[..., None]
        d_logits = jnp.exp(logits - log_total) - hit.astype(jnp.float32)
        d_logits = jnp.where(counts[..., None], d_logits, 0.0)
        low = d_logits.astype(states.dtype)
        d_states = jnp.einsum("btv,dv->btd", low, kernel.astype(low.dtype), **f32)
        d_kernel = d_kernel + jnp.einsum("btd,btv->dv", position, low, **f32)
        d_bias = None if bias is None else d_bias + jnp.sum(d_logits, axis=(0, 1))
        return (total + loss, d_kernel, d_bias), d_states.astype(states.dtype)

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), (kernel, bias))
    start = (jnp.float32(0), *zeros)
    (total, *grads), d_states = _scan_positions(part, start, (states, targets, mask), width)
    d_kernel, d_bias = (None if g is None else g.astype(kernel.dtype) for g in grads)
    return total, (d_states, d_kernel, d_bias)


def _backward(width, grads, scale):
    scaled = jax.tree.map(lambda g: (g.astype(jnp.float32) * scale).astype(g.dtype), grads)
    return (*scaled, None, None)


_cross_entropy.defvjp(_forward, _backward)


def _part(x: tuple, kernel: jax.Array, bias: jax.Array | None) -> tuple:
    """(loss (), logits (B, t, V), their log-sum-exp (B, t, 1)) of a few positions."""
    states, targets, mask = x
    kernel = kernel.astype(states.dtype)
    logits = jnp.einsum("btd,dv->btv", states, kernel, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1) - log_total
    return -jnp.sum(jnp.where(mask[..., None], picked, 0.0)), logits, log_total


def _scan_positions(part: Callable, carry: Any, arrays: Any, width: int) -> tuple[Any, Any]:
    """`jax.lax.scan` over runs of `width` positions, axis 1, and once more over what is left."""
    batch, length = arrays[-1].shape
    whole = length // width * width

    def runs(x):
        return jnp.moveaxis(x[:, :whole].reshape(batch, -1, width, *x.shape[2:]), 1, 0)

    if whole == width:
        carry, out = part(carry, jax.tree.map(lambda x: x[:, :whole], arrays))
    else:
        carry, out = jax.lax.scan(part, carry, jax.tree.map(runs, arrays))
        if out is not None:
            out = jnp.moveaxis(out, 0, 1).reshape(batch, whole, *out.shape[3:])
    if whole < length:
        carry, last = part(carry, jax.tree.map(lambda x: x[:, whole:], arrays))
        out = None if out is None else jnp.concatenate([out, last], axis=1)
    return carry, out
