"""Cross-entropy of an output layer: states and a [D, V] kernel -> nats, without [B, T, V] logits.

Positions are processed a few at a time. When a gradient is needed, the forward pass computes each
part's gradient together with its loss, while the part's logits exist. Unlike recomputing the logits
in the backward pass, this needs no more matrix products than keeping all logits would.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_count, check_shapes, vary_alike
from nvib_jax.mesh import RULES, ambient, device, gathered, per_device, per_part, summed, ways


def cross_entropy(
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    mask: jax.Array,
    *,
    logits_at_once: int | None = None,
) -> jax.Array:
    """`- sum log softmax(states kernel + bias)[targets]` over the valid tokens.

    Args:
      states: shape (B, T, D); the products have their dtype and add up in float32.
      kernel: shape (D, V).
      bias: shape (V,), or None.
      targets: int, shape (B, T).
      mask: bool, shape (B, T), True = counts.
      logits_at_once: how many logits may exist at a time; the B V of one position always do. None
        is 8 MiB of them on a CPU, which its caches hold, and a quarter of a GiB on an accelerator,
        where a longer loop costs more.

    Returns:
      float32 nats, shape (). Differentiable once, with respect to states, kernel and bias.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    sizes = check_shapes(
        states=(states, "float B T D"),
        kernel=(kernel, "float D V"),
        bias=(bias, "float V or None"),
        targets=(targets, "int B T"),
        mask=(mask, "bool B T"),
    )
    if logits_at_once is None:
        logits_at_once = 1 << (21 if device()[0] == "cpu" else 26)
    logits_at_once = check_count("logits_at_once", logits_at_once)
    mesh = ambient()
    shared = 1 if mesh is None else ways(mesh, "batch") * ways(mesh, "vocab")
    parts = -(-sizes["B"] * sizes["T"] * sizes["V"] // (logits_at_once * shared))
    width = max(-(-sizes["T"] // max(min(parts, sizes["T"]), 1)), 1)

    mask = jnp.asarray(mask)

    def total(states, kernel, targets, mask, bias=None):
        return _compiled(width, *vary_alike((states, kernel, bias, targets, mask)))

    arrays = {"states": states, "kernel": kernel, "targets": targets, "mask": mask}
    arrays |= {} if bias is None else {"bias": bias}

    def share(kernel, **others):
        return summed(total(kernel=gathered(kernel, 0, "embed"), **others))

    # Each device adds up its own gradient of the kernel over all parts, so that the devices
    # exchange gradients once and not once per part.
    # If the batch does not divide over the mesh, every device computes the whole loss. The kernel
    # must then be whole as well, because `summed` would add up equal copies.
    divided = mesh is not None and sizes["B"] % ways(mesh, "batch") == 0
    names: dict[str, tuple[str | None, ...]] = {
        "states": ("batch", None, None),
        "targets": ("batch", None),
        "mask": ("batch", None),
        "kernel": ("embed" if divided else None, None),
        "bias": (None,),
    }
    if mesh is None:
        return per_part(total, arrays, names)
    return per_device(share, arrays, names, like=None, over=RULES["batch"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(width, states, kernel, bias, targets, mask):
    def part(total: jax.Array, x: Any):
        return total + _part(x, kernel, bias)[0], None

    return _scan_positions(part, _zero(states), (states, targets, mask), width)[0]


def _zero(like: jax.Array) -> jax.Array:
    """A float32 0 that varies over an enclosing `shard_map` as `like` does."""
    return jnp.sum(jnp.zeros_like(like, jnp.float32))


def _forward(width, states, kernel, bias, targets, mask):
    f32: dict[str, Any] = {"preferred_element_type": jnp.float32}

    def part(carry: Any, x: Any):
        total, d_kernel, d_bias = carry
        loss, logits, log_total = _part(x, kernel, bias)
        position, token, counts = x
        # A masked state becomes 0 here, because its gradient 0 times a NaN state would be NaN.
        position = jnp.where(counts[..., None], position, 0)
        hit = jax.lax.broadcasted_iota(token.dtype, logits.shape, 2) == token[..., None]
        d_logits = jnp.exp(logits - log_total) - hit.astype(jnp.float32)
        d_logits = jnp.where(counts[..., None], d_logits, 0.0)
        low = d_logits.astype(states.dtype)
        d_states = jnp.einsum("btv,dv->btd", low, kernel.astype(low.dtype), **f32)
        d_kernel = d_kernel + jnp.einsum("btd,btv->dv", position, low, **f32)
        d_bias = None if bias is None else d_bias + jnp.sum(d_logits, axis=(0, 1))
        return (total + loss, d_kernel, d_bias), d_states.astype(states.dtype)

    zeros = jax.tree.map(lambda a: jnp.zeros_like(a, jnp.float32), (kernel, bias))
    start = (_zero(states), *zeros)
    (total, *grads), d_states = _scan_positions(part, start, (states, targets, mask), width)
    d_kernel, d_bias = jax.tree.map(lambda g, a: g.astype(a.dtype), tuple(grads), (kernel, bias))
    return total, (d_states, d_kernel, d_bias)


def _backward(width, grads, scale):
    scaled = jax.tree.map(lambda g: (g.astype(jnp.float32) * scale).astype(g.dtype), grads)
    return (*scaled, None, None)


_cross_entropy.defvjp(_forward, _backward)
_compiled = jax.jit(_cross_entropy, static_argnums=0)


def _part(x: tuple, kernel: jax.Array, bias: jax.Array | None) -> tuple:
    """(loss (), logits (B, t, V), their log-sum-exp (B, t, 1)) of t positions."""
    states, targets, mask = x
    kernel = kernel.astype(states.dtype)
    logits = jnp.einsum("btd,dv->btv", states, kernel, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)[None, None]
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1) - log_total
    return -jnp.sum(jnp.where(mask[..., None], picked, 0.0)), logits, log_total


def _scan_positions(part: Callable, carry: Any, arrays: Any, width: int) -> tuple[Any, Any]:
    """`jax.lax.scan` over runs of `width` positions (axis 1), then `part` on the remainder."""
    batch, length = arrays[-1].shape
    whole = length // width * width

    def runs(x):
        return jnp.moveaxis(x[:, :whole].reshape(batch, -1, width, *x.shape[2:]), 1, 0)

    if whole == width or not length:
        carry, out = part(carry, jax.tree.map(lambda x: x[:, :whole], arrays))
    else:
        carry, out = jax.lax.scan(part, carry, jax.tree.map(runs, arrays))
        if out is not None:
            out = jnp.moveaxis(out, 0, 1).reshape(batch, whole, *out.shape[3:])
    if whole < length:
        carry, last = part(carry, jax.tree.map(lambda x: x[:, whole:], arrays))
        out = None if out is None else jnp.concatenate([out, last], axis=1)
    return carry, out
