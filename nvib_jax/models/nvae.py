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
from nvib_jax.models.autoencoder import Autoencoder
from nvib_jax.models.config import NVAEConfig
from nvib_jax.models.gate import InformationGate
from nvib_jax.models.latents import DIVERGENCES, LATENTS, AdversarialLatent, DirichletLatent
from nvib_jax.models.special_ids import SpecialIds
from nvib_jax.models.summaries import kept, mean_vector
from nvib_jax.models.teacher_forcing import blanked, decoder_io
from nvib_jax.models.terms import Batch, Terms
from nvib_jax.modules import Decoder, Encoder
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import dropout, split_key
from nvib_jax.objective import anneal, mmd, sliced_wasserstein
from nvib_jax.posterior import keep_largest
from nvib_jax.types import Mixture, Posterior

__all__ = ["NVAE", "NVAEConfig"]


class NVAE(Autoencoder):
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

        self.make_tables(vocab_size, rngs)
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
        mixture = self.draw(posterior, draw_key)
        memories = self.memories(mixture, "exact")
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
        costs |= self._aggregate_costs(
            posterior, mixture, real, jax.random.fold_in(key, 5), objective
        )
        costs = {name: jnp.where(real, cost, 0.0) for name, cost in costs.items()}
        logged = {name: f"kl_{name}" for name in DIVERGENCES}
        metrics = {
            logged.get(name, name): (jnp.sum(cost), jnp.sum(real)) for name, cost in costs.items()
        }
        if self.gate is not None:
            metrics["limit"] = self.gate.nats, jnp.ones((), jnp.int32)
        # A share of the tokens, even for a latent that pools them to fewer vectors.
        metrics["share_kept"] = (jnp.sum(kept(posterior)), jnp.sum(mask))
        return Terms(nll, jnp.sum(counted), costs, metrics, width=self.config.dim)

    def _aggregate_costs(
        self,
        posterior: Posterior,
        mixture: Mixture,
        real: jax.Array,
        key: jax.Array,
        objective: Any,
    ) -> dict[str, jax.Array]:
        """What it costs that the batch's mixtures are not distributed as the prior's, each (B,)."""
        costs: dict[str, jax.Array] = {}
        if isinstance(self.latent, AdversarialLatent):
            costs |= self.latent.aggregate_costs(posterior, key)
        if objective.lambda_mmd or objective.lambda_sliced:
            keys, count = jax.random.split(key), jnp.sum(posterior.present[:, 1:], axis=-1)
            prior = self.latent.sample_prior(keys[0], count, most=posterior.mask.shape[1] - 1)
        if objective.lambda_mmd:
            how = {"bandwidth": objective.mmd_bandwidth, "of": objective.mmd_of}
            costs["mmd"] = mmd(mixture, prior, real, **how)
        if objective.lambda_sliced:
            costs["sliced"] = sliced_wasserstein(mixture, prior, real, keys[1])
        return costs

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
        x = self.encoder_input(tokens)
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

    def remember(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        keep: jax.Array | None = None,
        *,
        form: str | None = None,
    ) -> tuple[Memory, ...]:
        """What the decoder reads of a text when it writes it again: `encode`, `read`, `memories`.

        `key` is for the forms "drawn" and "average".
        """
        posterior = self.encode(tokens, mask, keep=keep)
        return self.memories(*self.read(posterior, form=form, key=key))

    def embed(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """One vector of each text (`nvib_jax.models.summaries.mean_vector`), float32 (B, D)."""
        return mean_vector(self.encode(tokens, mask))

    def prior_memories(self, lengths: jax.Array, key: jax.Array) -> tuple[Memory, ...]:
        """What the decoder reads of draws of the prior with these numbers of vectors, (B,)."""
        mixture = self.latent.sample_prior(key, lengths, most=self.max_length)
        return self.memories(mixture, "exact")

    def memories(self, mixture: Mixture, form: str) -> tuple[Memory, ...]:
        """One memory of the mixture for each decoder layer's attention, computed once."""
        return self.decoder.memories(mixture, form)


def _alpha_delta(step: jax.Array, objective: Any, last: float) -> jax.Array | None:
    """The Dirichlet prior's alpha_delta at a step; None if it does not change."""
    first = objective.alpha_delta_start
    if first is None:
        return None
    reached = anneal(step, schedule="linear", steps=objective.alpha_delta_steps)
    return first + (last - first) * reached
