"""NVAE: tokens -> encoder -> latent -> mixture -> decoder -> tokens, a VAE for text.

Source: Henderson & Fehr (2023). The latent is an NVIB or one of its rivals (`model.kind`). Methods
have no side effects on the module. Training and generation split it once into a plain dict of
arrays and merge it again inside `jax.jit` (`nvib_jax.models.params`).
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.fields import check_fields
from nvib_jax.mesh import constrain
from nvib_jax.models.latents import LATENTS
from nvib_jax.modules import Decoder, Encoder
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import dropout, split_key
from nvib_jax.objective.cross_entropy import cross_entropy
from nvib_jax.types import Mixture, Posterior

PAD, BOS, EOS, UNK = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class NVAEConfig:
    """Architecture and bottleneck of an `NVAE`."""

    kind: Literal["NVAE", "T", "VTV", "VTP", "VTS", "VTQ"] = "NVAE"
    """The latent: the NVIB, or a rival of `nvib_jax.models.latents`: T plain, VTV a Gaussian per
    vector, VTP pooled to one, VTS a fixed share of the vectors, VTQ pooled by learned queries."""
    pool: Literal["mean", "max", "first"] = "mean"
    """VTP: how the states become one vector."""
    stride_share: float = 0.5
    """VTS: share of a sentence's vectors that are kept, at least one."""
    latent_queries: int = 1
    """VTQ: learned queries, each a vector."""
    dim: int = 256
    """Width D of the model and of the latent vectors."""
    heads: int = 4
    """Heads of self-attention."""
    latent_heads: int = 1
    """Heads of the decoder's denoising attention."""
    hidden: int = 1024
    """Width of the feed-forward layers."""
    encoder_layers: int = 1
    """Encoder layers."""
    decoder_layers: int = 1
    """Decoder layers."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before (pre) or after (post) each residual."""
    dropout: float = 0.1
    """Dropout rate in training."""
    tied: bool = False
    """Use the decoder's embedding as the output matrix."""
    latent_bias: bool = False
    """Biases in the denoising attention's projections."""
    pseudo_count: Literal["exp_linear", "exp_quadratic", "relu"] = "exp_linear"
    """Map from encoder states to pseudo-counts."""
    initial_alpha: float | None = None
    """Mean pseudo-count of a vector before training; None is alpha_delta, or 1 where that is 0."""
    initial_kept: float = 0.5
    """Share of the vectors that are not empty before training, for relu."""
    initial_variance: float = 0.1
    """Variance of each vector before training."""
    prior_alpha: float = 1.0
    """Total pseudo-count of the Dirichlet process, alpha_0^p."""
    alpha_delta: float = 0.3
    """Prior pseudo-counts a token adds: the knob of the bottleneck."""
    num_samples: int = 1
    """Draws per component in training, K."""
    evaluation_form: Literal[
        "exact", "published", "simplified", "expected_logit", "drawn", "average"
    ] = "expected_logit"
    """How a posterior is read when not training: a form of denoising attention, one draw, or the
    average of eight."""
    threshold: float | None = None
    """Drop components with a pseudo-count at most this when evaluating; None keeps all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, softmax, biases and KLs stay float32."""
    attention: Literal["auto", "xla", "pallas", "pallas_tpu", "pallas_gpu", "cudnn"] = "auto"
    """Implementation of denoising attention; auto takes the fastest measured on the device."""
    remat: bool = False
    """Recompute each layer for its gradient: less memory, a third more work."""

    def __post_init__(self) -> None:
        check_fields(self, "model")

        def check(right: bool, name: str, wanted: str) -> None:
            if not right:
                raise ValueError(f"model.{name} is {getattr(self, name)}; wanted {wanted}")

        for name in ("dim", "hidden", "decoder_layers", "num_samples", "latent_queries"):
            check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("encoder_layers", "alpha_delta"):
            check(getattr(self, name) >= 0, name, "at least 0")
        for name in ("initial_variance", "prior_alpha"):
            check(getattr(self, name) > 0, name, "more than 0")
        check(self.initial_alpha is None or self.initial_alpha > 0, "initial_alpha", "more than 0")
        check(0 < self.stride_share <= 1, "stride_share", "0 < stride_share <= 1")
        check(0 < self.initial_kept < 1, "initial_kept", "0 < initial_kept < 1")
        for name in ("heads", "latent_heads"):
            heads = getattr(self, name)
            check(heads >= 1 and self.dim % heads == 0, name, f"a divisor of model.dim, {self.dim}")
        check(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")


class NVAE(nnx.Module):
    """Transformer encoder, latent, Transformer decoder with denoising cross-attention.

    Args:
      config: architecture.
      vocab_size: V.
      max_length: longest sentence in tokens, end-of-sentence not counted.
      rngs: parameter RNGs.
    """

    def __init__(self, config: NVAEConfig, *, vocab_size: int, max_length: int, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.dtype)
        self.config, self.max_length = config, max_length

        def table(rows: int) -> nnx.Param:
            init = nnx.initializers.normal(c.dim**-0.5, jnp.float32)
            return nnx.Param(init(rngs.params(), (rows, c.dim)))

        self.encoder_embedding, self.decoder_embedding = table(vocab_size), table(vocab_size)
        self.encoder_position, self.decoder_position = table(max_length), table(max_length + 1)
        shared: dict[str, Any] = {
            "norm": c.norm,
            "dropout_rate": c.dropout,
            "dtype": dtype,
            "remat": c.remat,
            "rngs": rngs,
        }
        self.encoder = Encoder(c.encoder_layers, c.dim, c.heads, c.hidden, **shared)
        self.latent: Any = LATENTS[c.kind](c, rngs=rngs)
        self.decoder = Decoder(
            c.decoder_layers,
            c.dim,
            c.heads,
            c.hidden,
            latent_heads=c.latent_heads,
            latent_bias=c.latent_bias,
            implementation=None if c.attention == "auto" else c.attention,
            **shared,
        )
        self.output = None if c.tied else Linear(c.dim, vocab_size, dtype=dtype, rngs=rngs)

    @property
    def dtype(self):
        """The compute dtype."""
        return jnp.dtype(self.config.dtype)

    def encode(self, tokens: jax.Array, mask: jax.Array, key: jax.Array | None = None) -> Posterior:
        """Tokens to posterior.

        Args:
          tokens: int, shape (B, N).
          mask: bool, shape (B, N), True = a valid token.
          key: dropout key; None means no dropout.

        Returns:
          A float32 `Posterior`, S = N + 1 (for pooled kinds: their number of vectors plus 1).

        Raises:
          ValueError: N is above `max_length`.
        """
        _check_positions("tokens", tokens, self.max_length)
        first, rest = split_key(key, 2)
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x = self._embed(self.encoder_embedding, tokens)
        x = x + self._embed(self.encoder_position, positions)[None]
        x = dropout(x, self.config.dropout, first)
        return self.latent(self.encoder(x, mask, rest), mask)

    def draw(self, posterior: Posterior, key: jax.Array) -> Mixture:
        """The training mixture: K draws of each component."""
        return self.latent.draw(posterior, key)

    def read(
        self, posterior: Posterior, *, form: str | None = None, key: jax.Array | None = None
    ) -> tuple[Mixture, str]:
        """The evaluation mixture and the attention form that goes with it.

        Args:
          posterior: from `encode`.
          form: one of `nvib_jax.mixture.READS`; overrides `config.evaluation_form`.
          key: for forms "drawn" and "average" only.

        Raises:
          ValueError: an unknown form, or a draw without a key.
        """
        return self.latent.read(posterior, form or self.config.evaluation_form, key)

    def memories(self, mixture: Mixture, form: str) -> tuple[Memory, ...]:
        """One memory of the mixture for each decoder layer's attention, computed once."""
        return self.decoder.memories(mixture, form)

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
        _check_positions("inputs", inputs, self.max_length + 1)
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
        # On a mesh the table's parts along D are gathered, and not the rows that are looked up.
        whole = constrain(table[...], "vocab", None)
        # Rows start with norm 1; scaled by sqrt(D), their entries have size 1, as layer norm's do.
        rows = (whole[tokens] * self.config.dim**0.5).astype(self.dtype)
        return constrain(rows, "batch", None, None) if tokens.ndim > 1 else rows

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


def _check_positions(name: str, tokens: jax.Array, most: int) -> None:
    """Raise ValueError for too many positions, because jax would silently clamp their indices."""
    if tokens.shape[1] > most:
        raise ValueError(f"{name} has {tokens.shape[1]} positions; wanted at most {most}")


def decoder_io(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Teacher forcing: (inputs, targets, which targets count), each (B, N + 1).

    Inputs are beginning-of-sentence and the sentence; targets are the sentence and end-of-sentence.
    In a row that is all padding no target counts.
    """
    length = jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)
    column = jnp.full((tokens.shape[0], 1), BOS, tokens.dtype)
    position = jnp.arange(tokens.shape[1] + 1, dtype=jnp.int32)[None]
    padded = jnp.concatenate([tokens, column], axis=1)
    targets = jnp.where(position == length, jnp.asarray(EOS, tokens.dtype), padded)
    counted = (position <= length) & (length > 0)
    return jnp.concatenate([column, tokens], axis=1), targets, counted
