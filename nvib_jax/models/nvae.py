"""NVAE: tokens -> encoder -> latent -> mixture -> decoder -> tokens, a VAE for text.

Source: Henderson & Fehr (2023). The latent is an NVIB or one of its rivals (`model.kind`). Methods
have no side effects on the module. Training and generation split it once into a plain dict of
arrays and merge it again inside `jax.jit` (`nvib_jax.models.params`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.kl import vector_count
from nvib_jax.mesh import constrain
from nvib_jax.models.config import NVAEConfig
from nvib_jax.models.gate import InformationGate
from nvib_jax.models.latents import LATENTS, DirichletLatent
from nvib_jax.models.reading import kept
from nvib_jax.models.special_ids import SpecialIds
from nvib_jax.models.teacher_forcing import blanked, decoder_io
from nvib_jax.models.terms import Batch, Terms
from nvib_jax.modules import Decoder, Encoder
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import dropout, split_key
from nvib_jax.objective import anneal
from nvib_jax.objective.cross_entropy import cross_entropy
from nvib_jax.posterior import keep_largest
from nvib_jax.types import Mixture, Posterior

__all__ = ["NVAE", "NVAEConfig"]


class NVAE(nnx.Module):
    """Transformer encoder, latent, Transformer decoder with denoising cross-attention.

    Args:
      config: architecture.
      vocab_size: V.
      max_length: longest sentence in tokens, end-of-sentence not counted.
      special: the tokenizer's ids of padding, beginning, end and unknown.
      rngs: parameter RNGs.
    """

    def __init__(
        self,
        config: NVAEConfig,
        *,
        vocab_size: int,
        max_length: int,
        special: SpecialIds | None = None,
        rngs: nnx.Rngs,
    ):
        c, dtype = config, jnp.dtype(config.dtype)
        self.config, self.max_length, self.special = config, max_length, special or SpecialIds()

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
        sizes = {"vocab_size": vocab_size, "max_length": max_length, "bos": self.special.bos}
        gated = c.gate != "none" and isinstance(self.latent, DirichletLatent)
        self.gate = InformationGate(c, **sizes, rngs=rngs) if gated else None

    @property
    def dtype(self):
        """The compute dtype."""
        return jnp.dtype(self.config.dtype)

    def terms(
        self, batch: Batch, key: jax.Array, *, step: jax.Array, train: bool, objective: Any
    ) -> Terms:
        """The terms of the loss (`nvib_jax.models.terms`), with one drawn mixture a sentence.

        With `train`, some words of the input are blanked and there is dropout.
        """
        encode_key, draw_key, decode_key, noise_key = jax.random.split(key, 4)
        tokens, mask = batch["tokens"], batch["mask"]
        inputs, targets, counted = decoder_io(tokens, mask, self.special)
        alpha_delta = keep = None
        if train:
            if self.config.keep_from is not None:
                # `split(key, 4)` are the first four of a row of keys, and this is the next.
                drawn = jax.random.fold_in(key, 4)
                least = jnp.log(jnp.float32(self.config.keep_from))
                keep = jnp.exp(least * jax.random.uniform(drawn, mask.shape[:1], jnp.float32))
            alpha_delta = _alpha_delta(step, objective, self.config.alpha_delta)
            keys, ids = jax.random.split(noise_key), self.special
            tokens = blanked(tokens, objective.encoder_noise, keys[0], ids)
            words = blanked(inputs[:, 1:], objective.word_dropout, keys[1], ids)
            inputs = inputs.at[:, 1:].set(words)
        else:
            encode_key = decode_key = None
        posterior = self.encode(tokens, mask, encode_key, keep=keep)
        memories = self.memories(self.draw(posterior, draw_key), "exact")
        nll = self.cross_entropy(memories, inputs, targets, counted, decode_key)

        costs = self.latent.costs(
            posterior,
            gaussian_form=objective.gaussian_form,
            dirichlet_form=objective.dirichlet_form,
            alpha_delta=alpha_delta,
        )
        if self.gate is not None:
            costs |= self.gate.costs(tokens, mask)
        if objective.vector_price:
            costs["vectors"] = vector_count(posterior, num_samples=self.config.num_samples)
        real = jnp.any(mask, axis=-1)
        costs = {name: jnp.where(real, cost, 0.0) for name, cost in costs.items()}
        logged = {"gaussian": "kl_gaussian", "dirichlet": "kl_dirichlet"}
        metrics = {
            logged.get(name, name): (jnp.sum(cost), jnp.sum(real)) for name, cost in costs.items()
        }
        if self.gate is not None:
            metrics["limit"] = self.gate.nats, jnp.ones((), jnp.int32)
        # A share of the tokens, even for a latent that pools them to fewer vectors.
        metrics["share_kept"] = (jnp.sum(kept(posterior)), jnp.sum(mask))
        return Terms(nll, jnp.sum(counted), costs, metrics, width=self.config.dim)

    def encode(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        *,
        keep: float | int | jax.Array | None = None,
    ) -> Posterior:
        """Tokens to posterior.

        Args:
          tokens: int, shape (B, N).
          mask: bool, shape (B, N), True = a valid token.
          key: dropout key; None means no dropout.
          keep: a share or a number of each sentence's vectors: those of the largest pseudo-counts
            (`nvib_jax.keep_largest`), or of a gate's choice. None is all, or what the gate leaves.

        Returns:
          A float32 `Posterior`, S = N + 1 (for pooled kinds: their number of vectors plus 1).

        Raises:
          ValueError: N is above `max_length`.
        """
        _check_positions("tokens", tokens, self.max_length)
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x = self._embed(self.encoder_embedding, tokens)
        x = x + self._embed(self.encoder_position, positions)[None]
        if self.gate is None:
            posterior = self._posterior(x, mask, key)
            return posterior if keep is None else keep_largest(posterior, keep)
        keeps, parts = self.gate(tokens, mask, keep)
        x = x + self.gate.marks(keeps, parts).astype(x.dtype)
        return self.gate.only(self._posterior(x, mask, key), keeps)

    def _posterior(self, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> Posterior:
        """Embedded tokens (B, N, D) to posterior."""
        first, rest = split_key(key, 2)
        return self.latent(self.encoder(dropout(x, self.config.dropout, first), mask, rest), mask)

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


def _alpha_delta(step: jax.Array, objective: Any, last: float) -> jax.Array | None:
    """The Dirichlet prior's alpha_delta at a step; None if it does not change."""
    first = objective.alpha_delta_start
    if first is None:
        return None
    reached = anneal(step, schedule="linear", steps=objective.alpha_delta_steps)
    return first + (last - first) * reached
