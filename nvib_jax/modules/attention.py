"""Attention modules: denoising attention over a mixture, and plain cached self-attention."""

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory, attend, attention_weights, make_memory
from nvib_jax.attention.cache import append, empty_memory
from nvib_jax.attention.inputs import MASK_VALUE, accumulator
from nvib_jax.mesh import constrain
from nvib_jax.modules.linear import Linear, Linears
from nvib_jax.types import Mixture


def _check_heads(dim: int, heads: int) -> int:
    if heads < 1 or dim % heads:
        raise ValueError(f"dim is {dim} with {heads} heads; wanted a multiple of the heads")
    return dim // heads


class DenoisingAttention(nnx.Module):
    """Cross-attention to a `Mixture` (`nvib_jax.denoising_attention` with projections).

    Args:
      dim: D.
      heads: H, a divisor of D.
      use_bias: biases on query, value and output (a key bias would cancel).
      implementation: of the attention, as in `nvib_jax.attend`.
      dtype: compute dtype of the products; softmax and biases stay float32.
      rngs: parameter RNGs.

    Raises:
      ValueError: `heads` does not divide `dim`.

    >>> from flax import nnx
    >>> key, lengths = jax.random.key(0), jnp.array([3])
    >>> mixture = sample_prior(key, Prior.standard(8), lengths, max_length=4)
    >>> layer = DenoisingAttention(8, heads=2, rngs=nnx.Rngs(0))
    >>> memory = layer.memory(mixture, form="exact")  # once, for any number of queries
    >>> layer(jnp.ones((1, 2, 8)), memory).shape
    (1, 2, 8)
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        use_bias: bool = False,
        implementation: str | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = _check_heads(dim, heads)
        self.heads, self.dtype, self.implementation = heads, dtype, implementation
        init = nnx.initializers.xavier_uniform()

        def kernel() -> nnx.Param:
            return nnx.Param(
                init(rngs.params(), (dim, dim), jnp.float32).reshape(dim, heads, width)
            )

        self.query = Linear(dim, dim, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.key_kernel, self.value_kernel = kernel(), kernel()
        self.value_bias = nnx.Param(jnp.zeros((heads, width), jnp.float32)) if use_bias else None
        self.out = Linear(dim, dim, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def memory(self, mixture: Mixture, form: str) -> Memory:
        """Keys, values and biases of a mixture; compute them once for all queries."""
        kernels = (
            self.key_kernel[...].astype(self.dtype),
            self.value_kernel[...].astype(self.dtype),
        )
        return make_memory(mixture, key_kernel=kernels[0], value_kernel=kernels[1], form=form)

    def vectors(self, x: jax.Array, visible: jax.Array) -> Memory:
        """Keys and values of vectors (B, S, D) as they are, of which some are visible (B, S).

        Attention to this memory is the plain one: no prior's component, no variances, no weights.
        """
        keys, values = (
            jnp.einsum("bsd,dhe->bshe", x.astype(self.dtype), kernel[...].astype(self.dtype))
            for kernel in (self.key_kernel, self.value_kernel)
        )
        bias = jnp.where(visible, 0.0, MASK_VALUE).astype(accumulator(self.dtype))
        return _plain_memory(keys * keys.shape[-1] ** -0.5, values, bias)

    def __call__(self, x: jax.Array, memory: Memory, *, causal: bool = False) -> jax.Array:
        """Attend from x, shape (B, T, D), to a memory; returns (B, T, D).

        With `causal`, query t sees component 0 and the components up to t + S - T.
        """
        bias = None if self.value_bias is None else self.value_bias[...]
        how = self.implementation
        out = attend(self._project(x), memory, value_bias=bias, causal=causal, implementation=how)
        return self.out(out.reshape(x.shape))

    def weights(self, x: jax.Array, memory: Memory) -> jax.Array:
        """The attention of every query over the components, float32, shape (B, H, T, S)."""
        return attention_weights(self._project(x), memory)

    def _project(self, x: jax.Array) -> jax.Array:
        return self.query(x).reshape(*x.shape[:2], self.heads, -1)


class SelfAttention(nnx.Module):
    """Multi-head self-attention: bidirectional, causal, or one position at a time with a cache.

    Args:
      dim: D.
      heads: H, a divisor of D.
      dtype: compute dtype.
      rngs: parameter RNGs.
    """

    def __init__(self, dim: int, heads: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.heads, self.width, self.dtype = heads, _check_heads(dim, heads), dtype
        self.qkv = Linears(dim, (3, dim), dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def _heads(self, x: jax.Array) -> list[jax.Array]:
        qkv = constrain(self.qkv(x), "batch", None, None, "heads")
        return [qkv[:, :, i].reshape(*x.shape[:2], self.heads, -1) for i in range(3)]

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Whole sequences: bidirectional under `mask` (B, N), causal where mask is None.

        Args:
          x: shape (B, N, D).
          mask: bool, shape (B, N), True = a valid token; every row sees at least position 0.

        Returns:
          shape (B, N, D).
        """
        q, k, v = self._heads(x)
        bias = jnp.zeros(x.shape[:2], accumulator(x.dtype))
        if mask is not None:
            # Position 0 is always visible, because the softmax of a row that is all padding would
            # otherwise be empty.
            bias = jnp.where(jnp.asarray(mask).at[:, 0].set(True), bias, MASK_VALUE)
        memory = _plain_memory(k, v, bias)
        out = attend(q * q.shape[-1] ** -0.5, memory, causal=mask is None)
        return self.out(constrain(out.reshape(x.shape), "batch", None, "heads"))

    def weights(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """The attention of `__call__` under a mask, float32, shape (B, H, N, N)."""
        q, k, v = self._heads(x)
        bias = jnp.where(mask.at[:, 0].set(True), 0.0, MASK_VALUE).astype(accumulator(x.dtype))
        return attention_weights(q * q.shape[-1] ** -0.5, _plain_memory(k, v, bias))

    def empty_cache(self, rows: int, capacity: int) -> Memory:
        """A memory for `step`: places for `capacity` positions of so many rows (B*K)."""
        key = jnp.zeros((rows, 1, self.heads, self.width), self.dtype)
        bias = jnp.zeros((rows, 1), accumulator(self.dtype))
        return empty_memory(_plain_memory(key, key, bias), capacity)

    def step(self, x: jax.Array, cache: Memory, position: jax.Array) -> tuple[jax.Array, Memory]:
        """One position of K sentences per row of the batch; K is 1 except for beam search.

        Args:
          x: shape (B, K, D).
          cache: from `empty_cache`, B*K rows, with the positions before.
          position: the position of all these sentences, shape ().

        Returns:
          (output, shape (B, K, D); the cache with this position added).
        """
        q, k, v = (a.reshape(-1, 1, *a.shape[2:]) for a in self._heads(x))
        new = _plain_memory(k, v, jnp.zeros(k.shape[:2], cache.bias.dtype))
        cache = append(cache, new, position)
        # A kernel works on blocks of queries, and here a row has a single one.
        out = attend(q * q.shape[-1] ** -0.5, cache, implementation="xla")
        return self.out(out.reshape(x.shape)), cache


def _plain_memory(k: jax.Array, v: jax.Array, bias: jax.Array) -> Memory:
    """Keys and values (B, S, H, E) and a bias (B, S) as a memory: plain attention is the primitive
    of denoising attention, without terms of width D.
    """
    return Memory(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), bias)
