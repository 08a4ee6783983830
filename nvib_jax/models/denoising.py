"""A denoising autoencoder whose encoder attends through bottlenecks: NVIB self-attention.

    characters -> plain layers -> NVIB layers -> decoder -> characters

The encoder is an `NVIBStack`. The decoder attends plainly to its last states: what the KLs can
change is what self-attention reads. Source: Behjati, Fehr & Henderson, Findings of EMNLP
2023, arXiv 2310.17284.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.models.autoencoder import Autoencoder
from nvib_jax.models.config import DenoisingConfig
from nvib_jax.models.special_ids import SpecialIds
from nvib_jax.models.stack import NVIBStack
from nvib_jax.models.summaries import kept
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.models.terms import Batch, Terms
from nvib_jax.modules import Decoder
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import dropout, split_key
from nvib_jax.types import Posterior


class DenoisingAutoencoder(Autoencoder):
    """Transformer encoder with plain and NVIB layers, and a plain Transformer decoder.

    Args:
      config: architecture.
      vocab_size: V.
      max_length: longest sentence in tokens, end-of-sentence not counted.
      special: the tokenizer's ids of padding, beginning, end, unknown and a lone space.
      rngs: parameter RNGs.
    """

    def __init__(
        self,
        config: DenoisingConfig,
        *,
        vocab_size: int,
        max_length: int,
        special: SpecialIds | None = None,
        rngs: nnx.Rngs,
    ):
        c, dtype = config, jnp.dtype(config.dtype)
        self.config, self.max_length, self.special = config, max_length, special or SpecialIds()
        self.make_tables(vocab_size, rngs)
        self.encoder = NVIBStack(c, num_samples=c.num_samples, rngs=rngs)
        self.decoder = Decoder(
            c.decoder_layers,
            c.dim,
            c.heads,
            c.hidden,
            latent_bias=True,
            norm=c.norm,
            dropout_rate=c.dropout,
            dtype=dtype,
            remat=c.remat,
            rngs=rngs,
        )
        self.output = Linear(c.dim, vocab_size, dtype=dtype, rngs=rngs)

    def terms(
        self, batch: Batch, key: jax.Array, *, step: jax.Array, train: bool, objective: Any
    ) -> Terms:
        """The terms of the loss (`nvib_jax.models.terms`); "gaussian/L" is the KL of NVIB layer L.

        With `train`, tokens of the input are deleted, each posterior is drawn from once, and there
        is dropout; otherwise there is no noise at all.
        """
        tokens, mask = batch["tokens"], batch["mask"]
        inputs, targets, counted = decoder_io(tokens, mask, self.special)
        noise = encode = draw = decode = None
        if train:
            noise, encode, draw, decode = jax.random.split(key, 4)
        source, seen = tokens, mask
        if noise is not None:
            source, seen = deleted(tokens, mask, self.config.deletion, noise, self.special)
        x, posteriors = self.states(source, seen, encode, draw=draw)
        memories = self.memories(x, self.visible(posteriors, seen, train=train))
        nll = self.cross_entropy(memories, inputs, targets, counted, decode)

        costs, metrics = self.encoder.costs(posteriors, seen, objective)
        return Terms(nll, jnp.sum(counted), costs, metrics, width=self.config.dim)

    def states(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        *,
        draw: jax.Array | None = None,
        form: str | None = None,
    ) -> tuple[jax.Array, tuple[Posterior, ...]]:
        """Tokens to the encoder's last states, and the posteriors of the NVIB layers.

        Args:
          tokens: int, shape (B, N).
          mask: bool, shape (B, N), True = a valid token.
          key: dropout key; None means no dropout.
          draw: key of the drawn mixtures; None reads the posteriors without noise.
          form: how they are read then; None is the config's `evaluation_form`.

        Returns:
          (states, shape (B, N, D); one `Posterior` a layer, S = N + 1).

        Raises:
          ValueError: N is above `max_length`.
        """
        first, rest = split_key(key, 2)
        x = dropout(self.encoder_input(tokens), self.config.dropout, first)
        return self.encoder(x, mask, rest, draw=draw, form=form)

    def states_by_layer(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The input and every layer's output without noise, before the last norm: (L, B, N, D)."""
        return jnp.stack(self.encoder.layers(self.encoder_input(tokens), mask)[0])

    def posteriors(self, tokens: jax.Array, mask: jax.Array) -> tuple[Posterior, ...]:
        """The posteriors of the NVIB layers, S = N + 1, without noise."""
        return self.states(tokens, mask)[1]

    def last_attention(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """`NVIBStack.last_attention` of tokens, float32 (B, N, N + 1)."""
        return self.encoder.last_attention(self.encoder_input(tokens), mask)

    def visible(
        self, posteriors: tuple[Posterior, ...], mask: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Which states the decoder is given, (B, N): by `cross_mask`, the kept ones or all.

        Where the last layer keeps none, its largest is given.
        """
        when = self.config.cross_mask
        if not posteriors or when == "never" or (train and when == "evaluation"):
            return mask
        log_alpha = jnp.where(mask, posteriors[-1].log_alpha[:, 1:], -jnp.inf)
        largest = log_alpha == jnp.max(log_alpha, axis=-1, keepdims=True)
        return mask & (kept(posteriors[-1], self.config.threshold) | largest)

    def memories(self, x: jax.Array, visible: jax.Array) -> tuple[Memory, ...]:
        """One memory of the encoder's states for each decoder layer."""
        # The first position is always there, because the softmax of a row that is all padding would
        # otherwise be empty.
        none = ~jnp.any(visible, axis=-1)
        return self.decoder.vectors(x, visible.at[:, 0].set(visible[:, 0] | none))

    def remember(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        keep: jax.Array | None = None,
        *,
        form: str | None = None,
    ) -> tuple[Memory, ...]:
        """What the decoder reads of a text when it writes it again.

        Args:
          tokens: int, shape (B, N).
          mask: bool, shape (B, N), True = a valid token.
          key: not used, because nothing is drawn.
          keep: not for this model.
          form: how the posteriors are read; None is the config's `evaluation_form`.

        Raises:
          ValueError: `keep` is given.
        """
        if keep is not None:
            raise ValueError(
                "keep is given; a denoising model has no budget of vectors, wanted None"
            )
        x, posteriors = self.states(tokens, mask, form=form)
        return self.memories(x, self.visible(posteriors, mask))

    def embed(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The mean of the encoder's last states over the valid tokens, float32 (B, D)."""
        return masked_mean(self.states(tokens, mask)[0], mask)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the valid tokens: x (..., B, N, D), mask (B, N) -> float32 (..., B, D)."""
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(jnp.float32)
    total = jnp.einsum("...bnd,bn->...bd", x.astype(jnp.float32), mask.astype(jnp.float32))
    return total / jnp.expand_dims(count, (*range(x.ndim - 3), -1))


def deleted(
    tokens: jax.Array, mask: jax.Array, share: float, key: jax.Array, special: SpecialIds
) -> tuple[jax.Array, jax.Array]:
    """Delete a random share of the tokens, and close the gaps.

    Args:
      tokens: int, shape (B, N).
      mask: bool, shape (B, N), True = a valid token.
      share: probability of each; a lone space is never deleted, nor anything of a row that would
        lose all.
      key: PRNG key.
      special: the ids of padding and of a lone space.

    Returns:
      (tokens, mask), of the same shapes; deleted tokens have become padding at the end.
    """
    if share == 0.0:
        return tokens, mask
    gone = jax.random.bernoulli(key, share, tokens.shape) & mask & (tokens != special.space)
    gone = gone & jnp.any(mask & ~gone, axis=-1, keepdims=True)
    left = mask & ~gone
    # Tokens that are left come first, in their order, because the sort is stable.
    order = jnp.argsort(~left, axis=-1, stable=True)
    rest = jnp.where(left, tokens, jnp.asarray(special.pad, tokens.dtype))
    count = jnp.sum(left, axis=-1, keepdims=True)
    seen = jnp.arange(tokens.shape[1])[None] < count
    return jnp.take_along_axis(rest, order, axis=-1), seen
