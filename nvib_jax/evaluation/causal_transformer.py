"""A causal Transformer: the log-probability of each token, given the tokens before it.

Its only input is the sentence so far. A sentence is its tokens and one end-of-sentence, so that the
model is a distribution over all sentences, including the empty one. Positions are sinusoids, so
that no sentence is too long.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.fields import check_fields
from nvib_jax.modules.transformer import EncoderLayer, LayerNorm, dropout, sinusoids, split_key


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Architecture and training of a language model."""

    dim: int = 128
    """Width D."""
    heads: int = 4
    """Heads of self-attention."""
    hidden: int = 512
    """Width of the feed-forward layers."""
    layers: int = 2
    """Layers."""
    dropout: float = 0.1
    """Dropout rate in training."""
    steps: int = 3000
    """Optimiser steps."""
    batch_size: int = 64
    """Sentences in a batch."""
    learning_rate: float = 2e-3
    """Peak learning rate, after a warm-up and before a cosine decay."""
    seed: int = 0
    """Seed of parameters, dropout and batch order."""

    def __post_init__(self) -> None:
        check_fields(self, "lm")

        def check(right: bool, name: str, wanted: str) -> None:
            if not right:
                raise ValueError(f"lm.{name} is {getattr(self, name)}; wanted {wanted}")

        for name in ("dim", "heads", "hidden", "layers", "steps", "batch_size"):
            check(getattr(self, name) >= 1, name, "at least 1")
        check(self.dim % self.heads == 0, "heads", f"a divisor of lm.dim, {self.dim}")
        check(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")
        check(self.learning_rate > 0, "learning_rate", "more than 0")
        check(self.seed >= 0, "seed", "at least 0")
        check(self.learning_rate > 0, "learning_rate", "more than 0")


class CausalTransformer(nnx.Module):
    """Pre-norm layers with causal self-attention; the embedding is also the output matrix.

    Args:
      config: architecture.
      vocab_size: V.
      rngs: parameter RNGs.
    """

    def __init__(self, config: LanguageModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        c = self.config = config
        # Rows start with norm 1; `states` scales them by sqrt(D), to entries of size 1.
        init = nnx.initializers.normal(c.dim**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (vocab_size, c.dim)))
        self.bias = nnx.Param(jnp.zeros(vocab_size))
        self.layers = nnx.List(
            EncoderLayer(c.dim, c.heads, c.hidden, dropout_rate=c.dropout, rngs=rngs)
            for _ in range(c.layers)
        )
        self.norm = LayerNorm(c.dim, dtype=jnp.float32, rngs=rngs)

    def states(self, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The states from which the output layer predicts each token and end-of-sentence.

        Args:
          tokens: int, shape (B, N).
          key: dropout key; None means no dropout.

        Returns:
          shape (B, N + 1, D); [:, t] depends on tokens[:, :t] alone.
        """
        first = jnp.full((tokens.shape[0], 1), Tokenizer.special.bos, tokens.dtype)
        inputs = jnp.concatenate([first, tokens], axis=1)
        x = self.embedding[...][inputs] * self.config.dim**0.5
        x = x + sinusoids(inputs.shape[1], self.config.dim)[None]
        first_key, *keys = split_key(key, len(self.layers) + 1)
        x = dropout(x, self.config.dropout, first_key)
        for layer, layer_key in zip(self.layers, keys, strict=True):
            x = layer(x, None, layer_key)  # no mask: causal
        return self.norm(x)

    def output_layer(self) -> tuple[jax.Array, jax.Array]:
        """Kernel (D, V) and bias (V,)."""
        return self.embedding[...].T, self.bias[...]

    def log_probs(self, tokens: jax.Array) -> jax.Array:
        """`log p(v | tokens before)` of every v: tokens (B, N) -> float32 (B, N + 1, V)."""
        kernel, bias = self.output_layer()
        return jax.nn.log_softmax(jnp.dot(self.states(tokens), kernel) + bias[None, None], axis=-1)


def targets_of(tokens: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The targets of a batch and which of them count.

    Args:
      tokens: int, shape (B, N).
      lengths: int, shape (B,): tokens of each sentence, 0 if it is empty, -1 if the row is padding.

    Returns:
      (targets: the tokens and end-of-sentence, int; which of them count, bool), each (B, N + 1).
    """
    position = jnp.arange(tokens.shape[1] + 1)[None]
    end = jnp.asarray(Tokenizer.special.eos, tokens.dtype)
    shifted = jnp.pad(tokens, ((0, 0), (0, 1)))
    return jnp.where(position == lengths[:, None], end, shifted), position <= lengths[:, None]


def token_log_probs(model: CausalTransformer, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Log-probability of each token and of end-of-sentence, 0 on padding: float32 (B, N + 1).

    The arguments are those of `targets_of`.
    """
    targets, counted = targets_of(tokens, lengths)
    picked = jnp.take_along_axis(model.log_probs(tokens), targets[..., None], axis=-1)[..., 0]
    return jnp.where(counted, picked, 0.0)
