"""What models have that read a text and write it again: embeddings, a decoder, an output layer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.mesh import constrain
from nvib_jax.models.special_ids import SpecialIds
from nvib_jax.modules import Decoder
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import dropout, split_key
from nvib_jax.objective.cross_entropy import cross_entropy


class Autoencoder(nnx.Module):
    """Embedded tokens in, and a decoder that reads one memory a layer and writes tokens.

    A subclass makes the parameters (`make_tables` some of them), encodes, and makes the memories.

    Attributes:
      config: with `dim` D, `dropout` and `dtype`.
      max_length: longest sentence in tokens, end-of-sentence not counted.
      special: ids of padding, beginning, end and unknown.
      encoder_embedding, decoder_embedding: (V, D).
      encoder_position: (max_length, D).
      decoder_position: (max_length + 1, D).
      decoder: the layers.
      output: the output layer; None if it is the decoder's embedding.
    """

    config: Any
    max_length: int
    special: SpecialIds
    encoder_embedding: nnx.Param
    decoder_embedding: nnx.Param
    encoder_position: nnx.Param
    decoder_position: nnx.Param
    decoder: Decoder
    output: Linear | None

    def make_tables(self, vocab_size: int, rngs: nnx.Rngs) -> None:
        """Make the embeddings and positions of encoder and decoder."""
        dim = self.config.dim
        self.encoder_embedding = table(vocab_size, dim, rngs)
        self.decoder_embedding = table(vocab_size, dim, rngs)
        self.encoder_position = table(self.max_length, dim, rngs)
        self.decoder_position = table(self.max_length + 1, dim, rngs)

    @property
    def dtype(self):
        """The compute dtype."""
        return jnp.dtype(self.config.dtype)

    def encoder_input(self, tokens: jax.Array) -> jax.Array:
        """Embedded tokens (B, N) at their positions, (B, N, D).

        Raises:
          ValueError: N is above `max_length`.
        """
        check_positions("tokens", tokens, self.max_length)
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x = self._embed(self.encoder_embedding, tokens)
        return x + self._embed(self.encoder_position, positions)[None]

    def decode(
        self, memories: tuple[Memory, ...], inputs: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Next-token logits under teacher forcing.

        Args:
          memories: from `memories`.
          inputs: int, shape (B, T): beginning-of-sentence, then the sentence.
          key: dropout key; None means no dropout.

        Returns:
          float32, shape (B, T, V).

        Raises:
          ValueError: T is above `max_length + 1`.
        """
        return self._logits(self._decode(memories, inputs, key))

    def cross_entropy(
        self,
        memories: tuple[Memory, ...],
        inputs: jax.Array,
        targets: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Cross-entropy of `decode`'s logits, summed over the valid targets, without forming them.

        Args:
          memories: from `memories`.
          inputs: int, shape (B, T): beginning-of-sentence, then the sentence.
          targets: int, shape (B, T).
          mask: bool, shape (B, T), True = counts.
          key: dropout key; None means no dropout.

        Returns:
          float32 nats, shape ().
        """
        states = self._decode(memories, inputs, key)
        return cross_entropy(states, *self._output_layer(), targets, mask)

    def _output_layer(self) -> tuple[jax.Array, jax.Array | None]:
        """Kernel (D, V) and bias (V,)."""
        if self.output is None:
            return self.decoder_embedding[...].T, None
        return (self.output.kernel[...], self.output.bias[...])  # type: ignore[index]

    def _decode(self, memories, inputs, key) -> jax.Array:
        """The states that the output layer reads, (B, T, D)."""
        check_positions("inputs", inputs, self.max_length + 1)
        first, rest = split_key(key, 2)
        x = dropout(self.decoder_input(inputs), self.config.dropout, first)
        return self.decoder(x, memories, rest)

    def empty_caches(self, batch: int, length: int) -> tuple[Memory, ...]:
        """Caches for decoding up to `length` tokens; for beams, `batch` is B*K."""
        return self.decoder.empty_caches(batch, length)

    def decode_step(
        self,
        memories: tuple[Memory, ...],
        caches: tuple[Memory, ...],
        token: jax.Array,
        position: jax.Array,
    ) -> tuple[jax.Array, tuple[Memory, ...]]:
        """One step of `decode`, for one sentence per memory or for K that share each memory.

        It takes token (B,) or (B, K) at `position` (), and returns logits (B, V) or (B, K, V) and
        the caches, of B or B*K rows.
        """
        x = self.decoder_input(token.reshape(-1, 1), position)
        x = x.reshape(token.shape[0], -1, self.config.dim)  # K sentences are K queries of a memory
        x, caches = self.decoder.step(x, memories, caches, position)
        return self._logits(x).reshape(*token.shape, -1), caches

    def attention(self, memories: tuple[Memory, ...], inputs: jax.Array) -> jax.Array:
        """Share of attention each component gets, mean over layers and heads, (B, T, S)."""
        weights = self.decoder.weights(self.decoder_input(inputs), memories)
        return jnp.mean(weights, axis=(0, 2))

    def _embed(self, table: nnx.Param, tokens: jax.Array) -> jax.Array:
        return embedded(table, tokens, self.dtype)

    def decoder_input(self, tokens: jax.Array, start: int | jax.Array = 0) -> jax.Array:
        """Embedded tokens (B, T) at positions from `start`, (B, T, D)."""
        positions = self._embed(
            self.decoder_position, start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        )
        return self._embed(self.decoder_embedding, tokens) + positions[None]

    def _logits(self, x: jax.Array) -> jax.Array:
        kernel, bias = self._output_layer()
        logits = jnp.dot(
            x.reshape(-1, x.shape[-1]),
            kernel.astype(self.dtype),
            preferred_element_type=jnp.float32,
        ).reshape(*x.shape[:-1], -1)
        return logits if bias is None else logits + jnp.expand_dims(bias, range(logits.ndim - 1))


def embedded(table: nnx.Param, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The rows of a table (V, D) for tokens (B, N) or positions (N,), times sqrt(D)."""
    # On a mesh the table's parts along D are gathered, and not the rows that are looked up.
    whole = constrain(table[...], "vocab", None)
    # Rows start with norm 1; scaled by sqrt(D), their entries have size 1, as layer norm's do.
    rows = (whole[tokens] * whole.shape[-1] ** 0.5).astype(dtype)
    return constrain(rows, "batch", None, None) if tokens.ndim > 1 else rows


def table(rows: int, dim: int, rngs: nnx.Rngs) -> nnx.Param:
    """An embedding (rows, D) whose rows have norm 1, about."""
    init = nnx.initializers.normal(dim**-0.5, jnp.float32)
    return nnx.Param(init(rngs.params(), (rows, dim)))


def check_positions(name: str, tokens: jax.Array, most: int) -> None:
    """Raise ValueError for too many positions, because jax would silently clamp their indices."""
    if tokens.shape[1] > most:
        raise ValueError(f"{name} has {tokens.shape[1]} positions; wanted at most {most}")
