"""Encoder and decoder: layers on top of each other."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.modules.transformer import DecoderLayer, EncoderLayer, LayerNorm, split_key
from nvib_jax.types import Mixture


class _Stack(nnx.Module):
    """Layers of one kind, with a last norm where they are pre-norm.

    Args:
      layers: how many.
      dim: D.
      heads: H of self-attention, a divisor of D.
      hidden: width of the feed-forward layers.
      norm: "pre" or "post", layer norm before or after each residual.
      dropout_rate: of what each sublayer gives.
      dtype: compute dtype.
      remat: whether a layer is computed again for its gradient.
      rngs: parameter RNGs.
      options: what else the layers of this kind take.
    """

    layer: ClassVar[type[Any]]

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        hidden: int,
        *,
        norm: str = "pre",
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        options |= {"norm": norm, "dropout_rate": dropout_rate, "dtype": dtype, "rngs": rngs}
        self.remat = remat
        self.layers = nnx.List(self.layer(dim, heads, hidden, **options) for _ in range(layers))
        self.norm = LayerNorm(dim, dtype=dtype, rngs=rngs) if norm == "pre" else None

    def run(self, layer, *inputs):
        """A layer; with remat, what it computes is thrown away and done again for the gradient."""
        return jax.checkpoint(layer.__call__)(*inputs) if self.remat else layer(*inputs)


class Encoder(_Stack):
    """A stack of `EncoderLayer`."""

    layer = EncoderLayer

    def __call__(self, x: jax.Array, mask: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """x (B, N, D), mask (B, N) -> (B, N, D)."""
        for layer, layer_key in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = self.run(layer, x, mask, layer_key)
        return x if self.norm is None else self.norm(x)


class Decoder(_Stack):
    """A stack of `DecoderLayer`, all reading the same mixture with projections of their own.

    Args:
      latent_heads: heads of the attention to the mixture; None is `heads`.
      latent_bias: biases in its projections.
      implementation: of it, as in `nvib_jax.attention.attend`.
    """

    layer = DecoderLayer

    def memories(self, mixture: Mixture, form: str) -> tuple[Memory, ...]:
        """One memory a layer, computed once for a mixture."""
        return tuple(layer.latent_attention.memory(mixture, form) for layer in self.layers)

    def vectors(self, x: jax.Array, visible: jax.Array) -> tuple[Memory, ...]:
        """One memory a layer, of the visible of the vectors (B, S, D) as they are."""
        return tuple(layer.latent_attention.vectors(x, visible) for layer in self.layers)

    def __call__(
        self, x: jax.Array, memories: tuple[Memory, ...], key: jax.Array | None = None
    ) -> jax.Array:
        """x (B, T, D) -> (B, T, D), causal."""
        keys = split_key(key, len(self.layers))
        for layer, memory, layer_key in zip(self.layers, memories, keys, strict=True):
            x = self.run(layer, x, memory, layer_key)
        return x if self.norm is None else self.norm(x)

    def empty_caches(self, rows: int, capacity: int) -> tuple[Memory, ...]:
        """One empty cache a layer, for `capacity` positions of so many rows (B*K)."""
        return tuple(layer.attention.empty_cache(rows, capacity) for layer in self.layers)

    def step(
        self,
        x: jax.Array,
        memories: tuple[Memory, ...],
        caches: tuple[Memory, ...],
        position: jax.Array,
    ) -> tuple[jax.Array, tuple[Memory, ...]]:
        """One position of `__call__`, of K sentences a memory.

        x (B, K, D) and caches of B*K rows: the output and the caches, longer by one.
        """
        new = []
        for layer, memory, cache in zip(self.layers, memories, caches, strict=True):
            x, cache = layer.step(x, memory, cache, position)
            new.append(cache)
        return x if self.norm is None else self.norm(x), tuple(new)

    def weights(self, x: jax.Array, memories: tuple[Memory, ...]) -> jax.Array:
        """Latent attention of every layer, float32, shape (layers, B, H, T, S)."""
        seen = []
        for layer, memory in zip(self.layers, memories, strict=True):
            x, weights = layer.weights(x, memory)
            seen.append(weights)
        return jnp.stack(seen)
