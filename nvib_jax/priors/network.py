"""The velocity of a flow on sets: a Transformer without positions.

It commutes with permutations of a set's vectors, because attention without positions does. Time,
the number of vectors and labels reach it through the scales and shifts of its norms (adaLN-zero,
Peebles & Xie 2023, arXiv 2212.09748), so that at its start the velocity is 0.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.modules.attention import SelfAttention
from nvib_jax.modules.linear import Linear

RATES = 32  # frequencies by which the network sees the time


class SetTransformer(nnx.Module):
    """v(x, t) of sets of at most `most` vectors.

    Args:
      width: R, of the vectors.
      most: largest number of vectors in a set.
      labels: name of each label -> number of its classes.
      dim, heads, hidden, layers: of the Transformer.
      rngs: parameter RNGs.
    """

    def __init__(
        self,
        width: int,
        most: int,
        labels: Mapping[str, int],
        *,
        dim: int,
        heads: int,
        hidden: int,
        layers: int,
        rngs: nnx.Rngs,
    ):
        small = nnx.initializers.normal(0.02, jnp.float32)

        def table(rows: int) -> nnx.Param:
            return nnx.Param(small(rngs.params(), (rows, dim)))

        self.time = Linear(2 * RATES, dim, rngs=rngs)
        self.counts = table(most + 1)
        # The last row of each table stands for a label that is not given.
        self.labels = nnx.Dict({name: table(classes + 1) for name, classes in labels.items()})
        self.first = Linear(width, dim, rngs=rngs)
        self.layers = nnx.List(_Layer(dim, heads, hidden, rngs=rngs) for _ in range(layers))
        self.last_norm = Linear(dim, 2 * dim, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.last = Linear(dim, width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        mask: jax.Array,
        labels: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """The velocity.

        Args:
          x: shape (B, S, R).
          t: from 0, noise, to 1, data, shape (B,).
          mask: which vectors are valid, bool (B, S).
          labels: name -> class of each set, int (B,); -1, and a name that is missing, is not given.

        Returns:
          float32, shape (B, S, R).
        """
        rates = jnp.exp(jnp.linspace(0.0, 6.0, RATES, dtype=jnp.float32))
        angles = t[:, None] * rates[None]
        seen = self.time(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))
        seen = seen + self.counts[...][jnp.sum(mask, axis=-1)]
        for name, table in self.labels.items():
            given = (labels or {}).get(name, jnp.full(t.shape, -1, jnp.int32))
            seen = seen + table[...][given]  # row -1 is the last
        seen = nnx.silu(seen)
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, mask, seen)
        return self.last(_modulated(h, self.last_norm(seen)))


class _Layer(nnx.Module):
    """Self-attention and an MLP, each scaled, shifted and gated by what the network is told."""

    def __init__(self, dim: int, heads: int, hidden: int, *, rngs: nnx.Rngs):
        self.told = Linear(dim, 6 * dim, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.attention = SelfAttention(dim, heads, rngs=rngs)
        self.up = Linear(dim, hidden, rngs=rngs)
        self.down = Linear(hidden, dim, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array, seen: jax.Array) -> jax.Array:
        first, gate, second, last = jnp.split(
            self.told(seen), [2 * x.shape[-1], 3 * x.shape[-1], 5 * x.shape[-1]], axis=-1
        )
        x = x + gate[:, None] * self.attention(_modulated(x, first), mask)
        return x + last[:, None] * self.down(nnx.gelu(self.up(_modulated(x, second))))


def _modulated(x: jax.Array, told: jax.Array) -> jax.Array:
    """The layer norm of x (B, S, D), scaled by half of `told` (B, 2 D), shifted by the other."""
    scale, shift = jnp.split(told[:, None], 2, axis=-1)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    normal = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return normal * (1.0 + scale) + shift
