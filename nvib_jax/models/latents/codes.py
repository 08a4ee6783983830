"""The distribution of a sentence's codes: what `VQ` draws from when it writes from nothing.

    log p(c_1 ... c_m | m) = sum_t log p(c_t | c_1 ... c_(t-1), m)

A small causal Transformer. At each place it is told the code before, the place, and how many codes
are still to come. It is trained beside the autoencoder on the codes that this finds, which are ints
and give the encoder no gradient, so that it is fitted when training ends and needs no second run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.models.autoencoder import embedded, table
from nvib_jax.modules import EncoderLayer
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import LayerNorm, sinusoids


class CodePrior(nnx.Module):
    """A causal Transformer over codes, which knows how many there are.

    Args:
      config: an `NVAEConfig`; it has the width, heads and layers (`prior_layers`) of the model.
      rngs: parameter RNGs.
    """

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.codes, self.dim = config.codes, config.dim
        self.embedding = table(config.codes + 1, config.dim, rngs)  # the last stands for the start
        self.left = Linear(config.dim, config.dim, rngs=rngs)
        self.layers = nnx.List(
            EncoderLayer(config.dim, config.heads, config.hidden, rngs=rngs)
            for _ in range(config.prior_layers)
        )
        self.norm = LayerNorm(config.dim, dtype=jnp.float32, rngs=rngs)
        self.output = Linear(config.dim, config.codes, rngs=rngs)

    def log_prob(self, codes: jax.Array, mask: jax.Array) -> jax.Array:
        """`log p(codes | how many)`, nats.

        Args:
          codes: int, shape (B, N), from 0.
          mask: bool, shape (B, N), True = a code; these come first in their row.

        Returns:
          float32, shape (B,); 0 for a row without codes.
        """
        rows, length = codes.shape
        start = jnp.full((rows, 1), self.codes, codes.dtype)
        place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], codes.shape)
        left = jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32) - place
        x = self._input(jnp.concatenate([start, codes[:, :-1]], axis=1), place, left, length)
        for layer in self.layers:
            x = layer(x, None)
        log_p = jax.nn.log_softmax(self.output(self.norm(x)), axis=-1)
        picked = jnp.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(mask, picked, 0.0), axis=-1)

    def draw(self, key: jax.Array, counts: jax.Array, *, most: int) -> jax.Array:
        """So many codes (B,), each at most `most`, one after the other: int32, shape (B, most).

        Beyond a row's count the codes mean nothing.
        """
        rows = counts.shape[0]

        def step(carry: tuple, place: jax.Array) -> tuple[tuple, jax.Array]:
            before, caches = carry
            left = (counts.astype(jnp.int32) - place)[:, None]
            x = self._input(before[:, None], jnp.broadcast_to(place, left.shape), left, most)
            longer = []
            for layer, cache in zip(self.layers, caches, strict=True):
                x, cache = layer.step(x, cache, place)
                longer.append(cache)
            logits = self.output(self.norm(x))[:, 0]
            code = jax.random.categorical(jax.random.fold_in(key, place), logits).astype(jnp.int32)
            return (code, tuple(longer)), code

        start = jnp.full((rows,), self.codes, jnp.int32)
        caches = tuple(layer.attention.empty_cache(rows, most) for layer in self.layers)
        places = jnp.arange(most, dtype=jnp.int32)
        return jnp.swapaxes(jax.lax.scan(step, (start, caches), places)[1], 0, 1)

    def _input(
        self, before: jax.Array, place: jax.Array, left: jax.Array, length: int
    ) -> jax.Array:
        """The code before (B, N), its place and how many are left, as states (B, N, D)."""
        waves = jnp.asarray(sinusoids(length + 1, self.dim))
        told = self.left(waves[jnp.clip(left, 0, length)])
        return embedded(self.embedding, before, jnp.dtype(jnp.float32)) + waves[place] + told
