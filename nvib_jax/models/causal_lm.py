"""A causal language model whose self-attention may read a mixture of the past.

    log p(x) = sum_t log p(x_t | x_<t)

The layers are an `NVIBStack` that is causal: each token sees the prior's component, itself and the
components of the tokens before it, and what those may carry costs the KLs. With no NVIB layers it
is a plain Transformer.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.models.autoencoder import check_positions, embedded, table
from nvib_jax.models.config import CausalConfig
from nvib_jax.models.special_ids import SpecialIds
from nvib_jax.models.stack import NVIBStack
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.models.terms import Batch, Terms
from nvib_jax.modules.transformer import dropout, split_key
from nvib_jax.objective.cross_entropy import cross_entropy
from nvib_jax.types import Posterior


class CausalLM(nnx.Module):
    """Embedding, causal stack, and the embedding again as the output layer.

    Args:
      config: architecture.
      vocab_size: V.
      max_length: longest sentence in tokens, end-of-sentence not counted.
      special: the tokenizer's ids of padding, beginning and end.
      rngs: parameter RNGs.
    """

    def __init__(
        self,
        config: CausalConfig,
        *,
        vocab_size: int,
        max_length: int,
        special: SpecialIds | None = None,
        rngs: nnx.Rngs,
    ):
        self.config, self.max_length, self.special = config, max_length, special or SpecialIds()
        self.embedding = table(vocab_size, config.dim, rngs)
        self.position = table(max_length + 1, config.dim, rngs)
        self.bias = nnx.Param(jnp.zeros(vocab_size, jnp.float32))
        self.stack = NVIBStack(config, causal=True, rngs=rngs)

    def terms(
        self, batch: Batch, key: jax.Array, *, step: jax.Array, train: bool, objective: Any
    ) -> Terms:
        """The terms of the loss (`nvib_jax.models.terms`); "gaussian/L" is the KL of NVIB layer L.

        With `train`, each posterior is drawn from once, and there is dropout; otherwise there is no
        noise at all.
        """
        encode, draw = jax.random.split(key) if train else (None, None)
        inputs, targets, counted = decoder_io(batch["tokens"], batch["mask"], self.special)
        x, posteriors = self.states(inputs, counted, encode, draw=draw)
        nll = cross_entropy(x, self.embedding[...].T, self.bias[...], targets, counted)
        costs, metrics = self.stack.costs(posteriors, counted, objective)
        return Terms(nll, jnp.sum(counted), costs, metrics, width=self.config.dim)

    def states(
        self,
        inputs: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        *,
        draw: jax.Array | None = None,
        form: str | None = None,
    ) -> tuple[jax.Array, tuple[Posterior, ...]]:
        """The states that predict the next token, and the posteriors of the NVIB layers.

        Args:
          inputs: int, shape (B, T): beginning-of-sentence, then the sentence.
          mask: bool, shape (B, T), True = a valid input.
          key: dropout key; None means no dropout.
          draw: key of the drawn mixtures; None reads the posteriors without noise.
          form: how they are read then; None is the config's `evaluation_form`.

        Returns:
          (states, shape (B, T, D), [:, t] depends on inputs[:, :t + 1] alone; one `Posterior` a
          layer, S = T + 1).

        Raises:
          ValueError: T is above `max_length + 1`.
        """
        check_positions("inputs", inputs, self.max_length + 1)
        first, rest = split_key(key, 2)
        x = dropout(self._embedded(inputs, 0), self.config.dropout, first)
        return self.stack(x, mask, rest, draw=draw, form=form)

    def posteriors(self, tokens: jax.Array, mask: jax.Array) -> tuple[Posterior, ...]:
        """The posteriors of tokens (B, N) without that of beginning-of-sentence: S = N + 1."""
        inputs, _, counted = decoder_io(tokens, mask, self.special)
        found = self.states(inputs, counted)[1]
        # Component 1 is that of beginning-of-sentence.
        return jax.tree.map(lambda a: jnp.concatenate([a[:, :1], a[:, 2:]], axis=1), found)

    def log_probs(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """`log p` of each token, and of the end, given those before: (B, N + 1), 0 on padding."""
        inputs, targets, counted = decoder_io(tokens, mask, self.special)
        x, _ = self.states(inputs, counted)
        log_p = jax.nn.log_softmax(self._logits(x), axis=-1)
        picked = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        return jnp.where(counted, picked, 0.0)

    # ---- writing, with the methods of a decoder

    def prior_memories(self, lengths: jax.Array, key: jax.Array) -> tuple[Memory, ...]:
        """None: a language model writes from nothing, in sentences as long as it finds right."""
        return ()

    def empty_caches(self, rows: int, length: int) -> tuple[Memory, ...]:
        """Caches for writing up to `length` tokens; for beams, `rows` is B*K."""
        return self.stack.empty_caches(rows, length)

    def decode_step(
        self,
        memories: tuple[Memory, ...],
        caches: tuple[Memory, ...],
        token: jax.Array,
        position: jax.Array,
    ) -> tuple[jax.Array, tuple[Memory, ...]]:
        """Logits of the next token: token (B,) or (B, K) at `position` (), caches of B or B*K rows.

        It returns logits, shape (B, V) or (B, K, V), and the caches with this position.
        """
        x = self._embedded(token.reshape(-1, 1), position)
        x, caches = self.stack.step(x, caches, position)
        return self._logits(x).reshape(*token.shape, -1), caches

    def _embedded(self, tokens: jax.Array, start: int | jax.Array) -> jax.Array:
        positions, dtype = start + jnp.arange(tokens.shape[1], dtype=jnp.int32), self.config.dtype
        places = embedded(self.position, positions, jnp.dtype(dtype))
        return embedded(self.embedding, tokens, jnp.dtype(dtype)) + places[None]

    def _logits(self, x: jax.Array) -> jax.Array:
        kernel = self.embedding[...].T.astype(x.dtype)
        logits = jnp.dot(x, kernel, preferred_element_type=jnp.float32)
        return logits + jnp.expand_dims(self.bias[...], range(logits.ndim - 1))
