"""The primitive in plain XLA: softmax(q.k + bias) v in chunks of queries, linear memory in S.

Enters a `Memory` and queries, leaves (B, T, H, E). Only one chunk's logits exist at a time, in the
backward pass too, where they are recomputed; no width-D query exists beyond one chunk either.
"""

import jax
import jax.numpy as jnp

from nvib_jax.attention.inputs import MASK_VALUE, Memory, accumulator, causal_mask

CHUNK = 128  # queries at a time


def attend(
    query: jax.Array, memory: Memory, mask: jax.Array | None = None, *, causal: bool = False
) -> jax.Array:
    """Attend to a memory.

    Args:
      query: projected, unscaled, shape (B, T, H, E).
      memory: from `make_memory`.
      mask: bool, shape (B, T, S), or None.
      causal: query t sees component 0 and components up to t + S - T.

    Returns:
      shape (B, T, H, E), the query's dtype, without the value bias.
    """
    length, components = query.shape[1], memory.key.shape[1]

    def visible(mask: jax.Array | None, start: int | jax.Array, rows: int) -> jax.Array | None:
        if not causal:
            return mask
        seen = causal_mask(length, components, start=start, rows=rows)[None]
        return seen if mask is None else seen & mask

    if length <= CHUNK:
        return _attend_chunk(query, memory, visible(mask, 0, length))

    chunks = -(-length // CHUNK)
    padding = chunks * CHUNK - length

    def to_chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, CHUNK, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def body(xs: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        start, chunk, seen = xs
        return _attend_chunk(chunk, memory, visible(seen, start, CHUNK))

    starts = CHUNK * jnp.arange(chunks)
    seen = None if mask is None else to_chunks(mask)
    out = jax.lax.map(body, (starts, to_chunks(query), seen))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], chunks * CHUNK, *out.shape[3:])[:, :length]


def attention_weights(
    query: jax.Array, memory: Memory, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """The softmax of `attend`, for one chunk or for looking at.

    Returns:
      (float32 weights, shape (B, H, T, S); the queries pulled back into R^D, float32, shape
      (B, T, H, D), or None where no term of the form needs them).
    """
    f32 = accumulator(query.dtype)
    logits = jnp.einsum("bthe,bshe->bhts", query, memory.key, preferred_element_type=f32)
    logits = logits + memory.bias[:, None, None, :]
    pulled = None
    if memory.key_kernel is not None:
        pulled = jnp.einsum("bthe,dhe->bthd", query, memory.key_kernel, preferred_element_type=f32)
    if memory.shared_key is not None and pulled is not None:
        # Squares of a query reach hundreds: float32, and no bfloat16 passes of it on a TPU, even
        # when the model computes in bfloat16.
        logits = logits + jnp.einsum(
            "bthd,bsd->bhts",
            jnp.square(pulled),
            memory.shared_key,
            precision=jax.lax.Precision.HIGHEST,
        )
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, MASK_VALUE)
    return jax.nn.softmax(logits, axis=-1), pulled


def _attend_chunk(query: jax.Array, memory: Memory, mask: jax.Array | None) -> jax.Array:
    dtype, f32 = query.dtype, accumulator(query.dtype)
    weights, pulled = attention_weights(query, memory, mask)
    weights = weights.astype(dtype)
    out = jnp.einsum("bhts,bshe->bthe", weights, memory.value, preferred_element_type=f32)
    if memory.shared_value is not None and pulled is not None:
        # In the order the product leaves it: XLA on CPUs has no bfloat16 product into "bthd".
        kept = jnp.einsum(
            "bhts,bsd->bhtd", weights, memory.shared_value, preferred_element_type=f32
        )
        out = out + jnp.einsum(
            "bthd,dhe->bthe",
            (jnp.swapaxes(kept, 1, 2) * pulled).astype(dtype),
            memory.value_kernel,
            preferred_element_type=f32,
        )
    return out.astype(dtype)
