"""Which words' vectors a model keeps: as many as the text has to tell, wherever it tells it.

Pseudo-counts that are a function of the encoder's states learn a stride: states know their place,
and to drop a place in all sentences at once is the easiest way to save vectors. Here a small
language model, which sees the n words before a word and no place, says how much each word tells:

    s_t = -log p(w_t | w_(t-n) ... w_(t-1))

    surprise   a vector is there if    s_t > L
    pace       a vector is there if    floor(1/2 + S_t / L) > floor(1/2 + S_(t-1) / L)

where S_t is the sum of min(s_1, L) ... min(s_t, L): with "pace" there is a vector for every L nats
of text, and at most one for a word. The limit L is learned such that the wanted share of the
vectors is there; a reader may ask for another share of a sentence's vectors, or a number of them,
which is another limit. Language model and limit are trained beside the autoencoder and take no
gradient from it. How much a vector weighs is left to its state.

Source of the language model: Bengio et al. (2003), an n-gram model with a hidden layer. That text
may be divided where it surprises is an idea of Pagnoni et al. (2024), arXiv 2412.09871.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.modules.linear import Linear
from nvib_jax.posterior import number_kept
from nvib_jax.types import Posterior

# The limit is expm1(LIMIT_RATE * parameter), because an optimiser such as Adam moves a parameter by
# about its learning rate a step: at 2e-3 the limit moves by 4 % a step, whatever the share. A
# parameter in nats takes hundreds of steps to a small share, and the model has learned to read too
# many vectors by then (share .25, 3,200 steps, one seed: BLEU 86, and 91 this way).
LIMIT_RATE = 20.0


class InformationGate(nnx.Module):
    """Keeps the vectors of words at which the text tells something.

    Args:
      config: an `NVAEConfig` whose `gate` is "surprise" or "pace"; D is the language model's width.
      vocab_size: V.
      max_length: longest sentence in tokens.
      bos: the id that stands for the words before the first.
      rngs: parameter RNGs.
    """

    def __init__(self, config: Any, *, vocab_size: int, max_length: int, bos: int, rngs: nnx.Rngs):
        dim, self.rule, self.share = config.dim, config.gate, config.gate_share
        self.window, self.bos = config.gate_window, bos
        init = nnx.initializers.normal(1.0, jnp.float32)
        self.embedding = nnx.Param(init(rngs.params(), (vocab_size, dim)))
        self.up = Linear(self.window * dim, dim, rngs=rngs)
        self.output = Linear(dim, vocab_size, rngs=rngs)
        self.part = nnx.Param(init(rngs.params(), (max_length + 1, dim)))
        self.stays = nnx.Param(init(rngs.params(), (dim,)))
        self.limit = nnx.Param(jnp.float32(0.0))  # every vector is there before training

    @property
    def nats(self) -> jax.Array:
        """The limit L, ()."""
        return jnp.expm1(self.limit[...] * LIMIT_RATE)

    def __call__(
        self, tokens: jax.Array, mask: jax.Array, keep: float | int | jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The choice, and the parts of the text that it makes.

        Args:
          tokens: int, shape (B, N).
          mask: bool, shape (B, N), True = a valid token.
          keep: a share or a number of each sentence's vectors (`nvib_jax.keep_largest`); None is
            what the limit leaves.

        Returns:
          Which vectors are there, bool (B, N), never padding's; and the number of the vector, from
          0, in whose part of the text each word is, int32 (B, N).
        """
        surprise, limit = self.surprise(tokens, mask), self.nats
        if keep is not None:
            limit = self.limit_of(surprise, mask, number_kept(keep, mask))
        return self.divide(surprise, limit, mask)

    def marks(self, keeps: jax.Array, parts: jax.Array) -> jax.Array:
        """What the encoder is told of the choice, (B, N, D), so that each vector that is there can
        take up its part of the text.
        """
        return self.part[...][parts] + jnp.where(keeps[..., None], self.stays[...], 0.0)

    def only(self, posterior: Posterior, keeps: jax.Array) -> Posterior:
        """The posterior (S = N + 1) without the vectors that are not kept."""
        keeps = jnp.pad(keeps, ((0, 0), (1, 0)), constant_values=True)  # the prior's stays
        return dataclasses.replace(
            posterior, log_alpha=jnp.where(keeps, posterior.log_alpha, -jnp.inf)
        )

    def surprise(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """`-log p` of each word given the words before it, float32 nats, (B, N); 0 for padding."""
        length = tokens.shape[1]
        padded = jnp.pad(tokens, ((0, 0), (self.window, 0)), constant_values=self.bos)
        before = jnp.stack([padded[:, i : i + length] for i in range(self.window)], axis=-1)
        embedded = self.embedding[...][before]
        hidden = nnx.gelu(self.up(embedded.reshape(*tokens.shape, -1)))
        log_p = jax.nn.log_softmax(self.output(hidden))
        own = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        return jnp.where(mask, -own, 0.0)

    def divide(
        self, surprise: jax.Array, limit: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What `__call__` returns, at this limit, () or one for each row (B, 1).

        With "pace" the j-th vector stands where half of the j-th L nats is told, and these L nats
        are its part. With "surprise" a part ends with its vector. What is left at the end of a text
        is in the last vector's part.
        """
        if self.rule == "surprise":
            keeps = (surprise > limit) & mask
            parts = jnp.cumsum(keeps.astype(jnp.int32), axis=1) - keeps.astype(jnp.int32)
        else:
            limit = jnp.maximum(limit, 1e-3)
            each = jnp.minimum(surprise, limit) / limit  # at most one vector for a word
            told = jnp.cumsum(each, axis=1)
            keeps = (jnp.diff(jnp.floor(0.5 + told), axis=1, prepend=0.0) > 0) & mask
            parts = jnp.floor(told - each / 2).astype(jnp.int32)
        vectors = jnp.sum(keeps, axis=1, keepdims=True, dtype=jnp.int32)
        return keeps, jnp.minimum(parts, jnp.maximum(vectors - 1, 0))

    def limit_of(self, surprise: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
        """The limit (B, 1) that leaves `count` (B, 1) of each row's vectors, at most its words."""
        words = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32)
        rising = jnp.sort(jnp.where(mask, surprise, jnp.inf), axis=1)
        over = jnp.maximum(words - count, 0)  # so many words of the least surprise stay without
        if self.rule == "surprise":
            below = jnp.take_along_axis(rising, jnp.maximum(over - 1, 0), axis=1)
            return jnp.where(over > 0, below, -1.0)
        # The sum of min(s, L) is at most the m least surprises and L for each other word, and as
        # much for one m. So the L at which that sum is count * L is the least of these quotients.
        m = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)[None]
        sums = jnp.cumsum(jnp.where(m <= words, rising, 0.0), axis=1)
        fits = (m > over) & (m <= words)
        least = sums / jnp.where(fits, m - over, 1).astype(jnp.float32)
        return jnp.min(jnp.where(fits, least, jnp.inf), axis=1, keepdims=True)

    def costs(self, tokens: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """What trains the gate, each (B,): the language model's loss in nats, and the limit's.

        The limit's is 0. Its gradient is the number of vectors that are wanted less those that are
        there, so that the limit rises while there are too many. For "surprise" this is the gradient
        of the quantile loss (Koenker & Bassett, 1978).
        """
        surprise, limit = self.surprise(tokens, mask), self.limit[...]
        kept, words = (
            jnp.sum(there, axis=-1).astype(jnp.float32)
            for there in (self.divide(surprise, self.nats, mask)[0], mask)
        )
        missing = self.share * words - kept
        return {
            "surprise": jnp.sum(surprise, axis=-1),
            "limit": jax.lax.stop_gradient(missing) * (limit - jax.lax.stop_gradient(limit)),
        }
