"""The layers of encoder and decoder; the decoder's cross-attention reads a mixture.

`stacks.py` builds the encoder and the decoder from them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.checks import check_choice
from nvib_jax.mesh import constrain
from nvib_jax.modules.attention import DenoisingAttention, SelfAttention
from nvib_jax.modules.linear import Linear

NORMS = ("pre", "post")


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero a share `rate` of x and scale up the rest; without a key, return x itself."""
    if key is None or rate == 0.0:
        return x
    # 16 random bits per number are half the work of 32. So the rate is rounded to a multiple of
    # 2^-16, but never to 0 or 1.
    dropped = min(max(round(rate * 2**16), 1), 2**16 - 1)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(dropped)
    return jnp.where(keep, x / (1.0 - dropped / 2**16), jnp.zeros((), x.dtype))


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`jax.random.split` that passes None on."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def sinusoids(length: int, dim: int) -> np.ndarray:
    """Vaswani et al. (2017): float32 (length, dim), half sines and half cosines of positions."""
    rates = 1e4 ** (-np.arange(0, dim, 2) / dim)
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :dim].astype(np.float32)


class LayerNorm(nnx.LayerNorm):
    """Layer norm that computes in float32 and then casts to the compute dtype.

    Flax's own, given a compute dtype, promotes bfloat16 implicitly, which fails under strict dtype
    promotion.
    """

    def __init__(self, dim: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(dim, rngs=rngs)
        self.out_dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """x (..., D) -> (..., D) in the compute dtype."""
        return super().__call__(x.astype(jnp.float32)).astype(self.out_dtype)


class Block(nnx.Module):
    """What both layers share: the residual with its norm (before or after) and the MLP."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        sublayers: int,
        *,
        norm: str,
        dropout_rate: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        check_choice("norm", norm, NORMS)
        self.norm, self.dropout_rate = norm, dropout_rate
        self.norms = nnx.List([LayerNorm(dim, dtype=dtype, rngs=rngs) for _ in range(sublayers)])
        self.up = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def mlp(self, x: jax.Array) -> jax.Array:
        """The feed-forward network, (B, N, D) -> (B, N, D)."""
        return self.down(constrain(nnx.gelu(self.up(x)), "batch", None, "mlp"))

    def residual(self, index: int, x: jax.Array, sublayer, key: jax.Array | None) -> jax.Array:
        """x (B, N, D) with what a sublayer adds to it, norm number `index` before or after."""
        norm = self.norms[index]
        if self.norm == "pre":
            x = x + dropout(sublayer(norm(x)), self.dropout_rate, key)
        else:
            x = norm(x + dropout(sublayer(x), self.dropout_rate, key))
        return constrain(x, "batch", None, None)


class EncoderLayer(Block):
    """Self-attention and an MLP."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        norm: str = "pre",
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            dim, hidden, 2, norm=norm, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs
        )
        self.attention = SelfAttention(dim, heads, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, key: jax.Array | None = None
    ) -> jax.Array:
        """x (B, N, D), mask (B, N) -> (B, N, D); causal where mask is None."""
        keys = split_key(key, 2)
        x = self.residual(0, x, lambda h: self.attention(h, mask), keys[0])
        return self.residual(1, x, self.mlp, keys[1])

    def step(self, x: jax.Array, cache: Memory, position: jax.Array) -> tuple[jax.Array, Memory]:
        """One position of the causal `__call__`, x (B, 1, D), and the cache with it."""
        longer = cache

        def attention(h: jax.Array) -> jax.Array:
            nonlocal longer
            out, longer = self.attention.step(h, cache, position)
            return out

        x = self.residual(0, x, attention, None)
        return self.residual(1, x, self.mlp, None), longer


class DecoderLayer(Block):
    """Causal self-attention, denoising attention to a mixture, and an MLP."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        latent_heads: int | None = None,
        latent_bias: bool = False,
        implementation: str | None = None,
        norm: str = "pre",
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            dim, hidden, 3, norm=norm, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs
        )
        self.attention = SelfAttention(dim, heads, dtype=dtype, rngs=rngs)
        self.latent_attention = DenoisingAttention(
            dim,
            latent_heads or heads,
            use_bias=latent_bias,
            implementation=implementation,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, memory: Memory, key: jax.Array | None = None) -> jax.Array:
        """x (B, T, D) -> (B, T, D), causal."""
        return self._run(x, memory, self.attention, key)

    def step(
        self, x: jax.Array, memory: Memory, cache: Memory, position: jax.Array
    ) -> tuple[jax.Array, Memory]:
        """One position of `__call__`, for K sentences that share each memory.

        It takes x (B, K, D) and a cache of B*K rows, and returns the output and the longer cache.
        """
        new_cache = cache

        def attention(h: jax.Array) -> jax.Array:
            nonlocal new_cache
            out, new_cache = self.attention.step(h, cache, position)
            return out

        return self._run(x, memory, attention, None), new_cache

    def latent_query(self, x: jax.Array) -> jax.Array:
        """The input of the latent attention's query projection, (B, T, D) -> (B, T, D)."""
        x = self.residual(0, x, self.attention, None)
        return self.norms[1](x) if self.norm == "pre" else x

    def weights(self, x: jax.Array, memory: Memory) -> tuple[jax.Array, jax.Array]:
        """(layer output, latent attention (B, H, T, S))."""
        seen = self.latent_attention.weights(self.latent_query(x), memory)
        return self(x, memory), seen

    def _run(self, x, memory, attention, key):
        keys = split_key(key, 3)
        x = self.residual(0, x, attention, keys[0])
        x = self.residual(1, x, lambda h: self.latent_attention(h, memory), keys[1])
        return self.residual(2, x, self.mlp, keys[2])
