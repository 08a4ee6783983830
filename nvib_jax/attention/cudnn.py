"""The primitive through NVIDIA's cuDNN, for the forms without terms of width D.

cuDNN's flash attention does not take a bias of one number per key, only a whole [B, H, T, S] array.
So the bias becomes three more columns of the keys, which the queries multiply by ones. There are
three, because three bfloat16 numbers hold the 24 bits of a float32; a single one would be wrong by
about a half at a bias of -300.
"""

import jax
import jax.numpy as jnp

from nvib_jax.attention.inputs import Memory
from nvib_jax.mesh import device

COLUMNS = 3
_WIDTH = 8  # cuDNN wants head widths that are multiples of this


def attend(
    query: jax.Array, memory: Memory, mask: jax.Array | None = None, *, causal: bool = False
) -> jax.Array:
    """Attend to a memory; shapes as in `nvib_jax.attention.xla.attend`.

    Raises:
      NotImplementedError: float32, a mask, causality, a form with terms of width D, or no GPU.
    """
    if memory.shared_value is not None:
        raise NotImplementedError(
            "cudnn has no terms of width D; forms 'exact' and 'published' need 'xla' or 'pallas'"
        )
    arrays = {"query": query, "memory.key": memory.key, "memory.value": memory.value}
    for name, array in arrays.items():
        if array.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} has dtype {array.dtype}; cudnn takes bfloat16")
    if mask is not None or causal:
        raise NotImplementedError("cudnn takes a mask of size T x S only as a tensor; use 'xla'")
    if device()[0] != "gpu":
        raise NotImplementedError(f"cudnn runs on NVIDIA GPUs; this is {device()[0]}")
    q, k, v = fold(query, memory)
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="cudnn")
    return out[..., : memory.value.shape[-1]]


def fold(query: jax.Array, memory: Memory) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(q, k, v) padded to one width, such that q.k is the whole logit with its bias.

    Returns:
      shapes (B, T, H, W), (B, S, H, W), (B, S, H, W), W a multiple of 8 of at least E + 3.
    """
    key, value = (jnp.swapaxes(x, 1, 2) for x in (memory.key, memory.value))
    parts = split_columns(memory.bias)[:, :, None]
    columns = jnp.broadcast_to(parts, (*key.shape[:3], COLUMNS))
    width = max(query.shape[-1] + COLUMNS, memory.value.shape[-1])
    width = -(-width // _WIDTH) * _WIDTH

    def widen(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])])

    ones = jnp.ones((*query.shape[:3], COLUMNS), query.dtype)
    return (
        widen(jnp.concatenate([query, ones], -1)),
        widen(jnp.concatenate([key, columns], -1)),
        widen(value),
    )


def split_columns(bias: jax.Array) -> jax.Array:
    """Split float32 (...) into three bfloat16 numbers (..., 3) that add up to it.

    The gradient flows through the first of the three.
    """
    columns = []
    for _ in range(COLUMNS):
        # The rounding is not written as a cast to bfloat16 and back, because XLA may remove that.
        column = jax.lax.reduce_precision(bias, exponent_bits=8, mantissa_bits=7)
        columns.append(column.astype(jnp.bfloat16))
        bias = bias - column
    return jnp.stack(columns, -1)
