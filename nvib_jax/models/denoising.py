"""A denoising autoencoder whose encoder attends through bottlenecks: NVIB self-attention.

    characters -> plain layers -> NVIB layers -> decoder -> characters

Each NVIB layer has a posterior of its own, whose pseudo-counts multiply those of the layer below
(`nvib_jax.posterior.add_skip`). The decoder attends plainly to the last layer's states: what the
KLs can change is what self-attention reads. Source: Behjati, Fehr & Henderson, Findings of EMNLP
2023, arXiv 2310.17284.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.kl import kl_dirichlet, kl_gaussian
from nvib_jax.models.autoencoder import Autoencoder, table
from nvib_jax.models.config import DenoisingConfig
from nvib_jax.models.reading import kept
from nvib_jax.models.special_ids import SpecialIds
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.models.terms import Batch, Terms
from nvib_jax.modules import Decoder, EncoderLayer, NVIBEncoderLayer
from nvib_jax.modules.linear import Linear
from nvib_jax.modules.transformer import LayerNorm, dropout, split_key
from nvib_jax.types import Posterior, Prior


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
        self.encoder_embedding = table(vocab_size, c.dim, rngs)
        self.decoder_embedding = table(vocab_size, c.dim, rngs)
        self.encoder_position = table(max_length, c.dim, rngs)
        self.decoder_position = table(max_length + 1, c.dim, rngs)
        shared: dict[str, Any] = {
            "norm": c.norm,
            "dropout_rate": c.dropout,
            "dtype": dtype,
            "rngs": rngs,
        }
        self.plain_layers = nnx.List(
            EncoderLayer(c.dim, c.heads, c.hidden, **shared) for _ in range(c.plain_layers)
        )
        prior = Prior.standard(c.dim, alpha=c.prior_alpha, alpha_delta=c.alpha_delta)
        self.nvib_layers = nnx.List(
            NVIBEncoderLayer(
                c.dim,
                c.heads,
                c.hidden,
                prior=prior,
                pseudo_count=c.pseudo_count,
                # Only the first has the pseudo-counts to make; the others multiply those by 1.
                initial_alpha=1.0 if layer else c.initial_alpha or c.alpha_delta or 1.0,
                initial_variance=c.initial_variance,
                num_samples=c.num_samples,
                **shared,
            )
            for layer in range(c.nvib_layers)
        )
        self.norm = LayerNorm(c.dim, dtype=dtype, rngs=rngs) if c.norm == "pre" else None
        self.decoder = Decoder(
            c.decoder_layers, c.dim, c.heads, c.hidden, latent_bias=True, remat=c.remat, **shared
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

        real = jnp.any(mask, axis=-1)
        costs, metrics = {}, {}
        for layer, (posterior, weight) in enumerate(
            zip(posteriors, self.layer_weights, strict=True), start=1
        ):
            for name, cost in self._costs(layer, posterior, objective).items():
                cost = jnp.where(real, cost, 0.0)
                costs[f"{name}/{layer}"] = weight * cost
                metrics[f"kl_{name}/{layer}"] = jnp.sum(cost), jnp.sum(real)
            metrics[f"share_kept/{layer}"] = (
                jnp.sum(kept(posterior, self.config.threshold)),
                jnp.sum(seen),
            )
        return Terms(nll, jnp.sum(counted), costs, metrics, width=self.config.dim)

    def _costs(self, layer: int, posterior: Posterior, objective: Any) -> dict[str, jax.Array]:
        """The KLs of an NVIB layer, from 1, each (B,)."""
        prior = self.nvib_layers[layer - 1].attention.nvib.prior
        count = self.config.num_samples
        return {
            "gaussian": kl_gaussian(
                posterior, prior, num_samples=count, form=objective.gaussian_form
            ),
            "dirichlet": kl_dirichlet(
                posterior, prior, num_samples=count, form=objective.dirichlet_form
            ),
        }

    @property
    def layer_weights(self) -> list[float]:
        """The share of each NVIB layer's KLs in the loss; they add up to 1."""
        layers = range(1, self.config.nvib_layers + 1)
        sizes = [layer if self.config.layer_weights == "depth" else 1 for layer in layers]
        return [size / sum(sizes) for size in sizes]

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
        *_, x, posteriors = self._layers(tokens, mask, key, draw, form)
        return (x if self.norm is None else self.norm(x)), posteriors

    def states_by_layer(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The input and every layer's output without noise, before the last norm: (L, B, N, D)."""
        *states, _ = self._layers(tokens, mask, None, None, None)
        return jnp.stack(states)

    def last_attention(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """What each token attends to in the encoder's last layer, mean over heads, without noise.

        Returns:
          float32, shape (B, N, N + 1): over the prior's component and the tokens. The prior's share
          is 0 where the last layer is a plain one.
        """
        *states, posteriors = self._layers(tokens, mask, None, None, None)
        if not posteriors:
            weights = self.plain_layers[-1].attention.weights(
                self._normed(self.plain_layers[-1], states[-2]), mask
            )
            return jnp.pad(jnp.mean(weights, axis=1), ((0, 0), (0, 0), (1, 0)))
        layer = self.nvib_layers[-1]
        below = posteriors[-2] if len(posteriors) > 1 else None
        form = self.config.evaluation_form
        weights = layer.attention.weights(
            self._normed(layer, states[-2]), mask, previous=below, form=form
        )
        return jnp.mean(weights, axis=1)

    def _normed(self, layer: Any, x: jax.Array) -> jax.Array:
        """What a layer's attention reads."""
        return layer.norms[0](x) if self.config.norm == "pre" else x

    def _layers(self, tokens, mask, key, draw, form) -> list[Any]:
        """The input of the first layer, the output of each, and the posteriors."""
        c = self.config
        first, *keys = split_key(key, 1 + c.plain_layers + c.nvib_layers)
        draws = split_key(draw, c.nvib_layers) if c.nvib_layers else []
        x = dropout(self.encoder_input(tokens), c.dropout, first)
        found: list[Any] = [x]
        for layer, layer_key in zip(self.plain_layers, keys[: c.plain_layers], strict=True):
            x = (jax.checkpoint(layer.__call__) if c.remat else layer)(x, mask, layer_key)
            found.append(x)
        posteriors: list[Posterior] = []
        how = form or c.evaluation_form
        for bottleneck, layer_key, layer_draw in zip(
            self.nvib_layers, keys[c.plain_layers :], draws, strict=True
        ):

            def run(x, mask, key, previous, draw, layer=bottleneck):
                return layer(x, mask, key, previous=previous, draw=draw, form=how)

            below = posteriors[-1] if posteriors else None
            once = jax.checkpoint(run) if c.remat else run
            x, posterior = once(x, mask, layer_key, below, layer_draw)
            found.append(x)
            posteriors.append(posterior)
        return [*found, tuple(posteriors)]

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
