"""Encoder and decoder: stacks of layers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.modules.attention import Cache
from nvib_jax.modules.transformer import DecoderLayer, EncoderLayer, LayerNorm, split_key
from nvib_jax.types import Mixture


class _Stack(nnx.Module):
    """Layers of one kind, and a final norm if they are pre-norm.

    Args:
      layers: the layers, in order.
      dim: D.
      norm: of the layers, "pre" or "post".
      dtype: compute dtype.
      remat: whether a layer is computed again for its gradient.
      rngs: parameter RNGs.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        dim: int,
        *,
        norm: str,
        dtype,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        self.layers = nnx.List(layers)
        self.norm = LayerNorm(dim, dtype=dtype, rngs=rngs) if norm == "pre" else None

    def run(self, layer, *inputs):
        """Call a layer. With remat its activations are not kept but recomputed for the gradient."""
        return jax.checkpoint(layer.__call__)(*inputs) if self.remat else layer(*inputs)


class Encoder(_Stack):
    """A stack of `EncoderLayer`.

    Args:
      layers: how many.
      dim: D.
      heads: H, a divisor of D.
      hidden: width of the feed-forward layers.
      norm: "pre" or "post", layer norm before or after each residual.
      dropout_rate: of each sublayer's output.
      dtype: compute dtype.
      remat: whether a layer is computed again for its gradient.
      rngs: parameter RNGs.
    """

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
    ):
        made = [
            EncoderLayer(
                dim, heads, hidden, norm=norm, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs
            )
            for _ in range(layers)
        ]
        super().__init__(made, dim, norm=norm, dtype=dtype, remat=remat, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """x (B, N, D), mask (B, N) -> (B, N, D)."""
        for layer, layer_key in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = self.run(layer, x, mask, layer_key)
        return x if self.norm is None else self.norm(x)


class Decoder(_Stack):
    """A stack of `DecoderLayer`. All read the same mixture, each with its own projections.

    Args:
      layers: how many.
      dim: D.
      heads: H of self-attention, a divisor of D.
      hidden: width of the feed-forward layers.
      latent_heads: heads of the attention to the mixture; None is `heads`.
      latent_bias: whether the projections of that attention have biases.
      implementation: of that attention, as in `nvib_jax.attention.attend`.
      norm: "pre" or "post", layer norm before or after each residual.
      dropout_rate: of each sublayer's output.
      dtype: compute dtype.
      remat: whether a layer is computed again for its gradient.
      rngs: parameter RNGs.
    """

    def __init__(
        self,
        layers: int,
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
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        made = [
            DecoderLayer(
                dim,
                heads,
                hidden,
                latent_heads=latent_heads,
                latent_bias=latent_bias,
                implementation=implementation,
                norm=norm,
                dropout_rate=dropout_rate,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(layers)
        ]
        super().__init__(made, dim, norm=norm, dtype=dtype, remat=remat, rngs=rngs)

    def memories(self, mixture: Mixture, form: str) -> tuple[Memory, ...]:
        """One memory for each layer, computed once for a mixture."""
        return tuple(layer.latent_attention.memory(mixture, form) for layer in self.layers)

    def __call__(
        self, x: jax.Array, memories: tuple[Memory, ...], key: jax.Array | None = None
    ) -> jax.Array:
        """x (B, T, D) -> (B, T, D), causal."""
        keys = split_key(key, len(self.layers))
        for layer, memory, layer_key in zip(self.layers, memories, keys, strict=True):
            x = self.run(layer, x, memory, layer_key)
        return x if self.norm is None else self.norm(x)

    def step(
        self,
        x: jax.Array,
        memories: tuple[Memory, ...],
        caches: tuple[Cache, ...],
        position: jax.Array,
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """One position of `__call__`, for K sentences that share each memory.

        It takes x (B, K, D) and caches of B*K rows, and returns the output (B, K, D) and the caches
        with this position added.
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
