"""Plain Transformer layers with NVIB layers above them: an encoder, or a causal decoder.

Each NVIB layer has a posterior of its own, whose pseudo-counts multiply those of the layer below,

    log alpha^(l) = w.h + b + log alpha^(l-1)        (the prior's component excluded),

and costs its two KLs. Source: Behjati, Fehr & Henderson, Findings of EMNLP 2023, arXiv 2310.17284.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.attention import Memory
from nvib_jax.kl import kl_dirichlet, kl_gaussian
from nvib_jax.models.config import StackConfig
from nvib_jax.models.summaries import kept
from nvib_jax.models.terms import Metrics
from nvib_jax.modules import EncoderLayer, NVIBEncoderLayer
from nvib_jax.modules.transformer import LayerNorm, split_key
from nvib_jax.types import Posterior, Prior


class NVIBStack(nnx.Module):
    """Plain layers, NVIB layers, and a last norm where they are pre-norm.

    Args:
      config: architecture.
      causal: whether each token sees only the prior's component, itself and those before it.
      num_samples: K, draws of each component in training; 1 if causal.
      rngs: parameter RNGs.
    """

    def __init__(
        self, config: StackConfig, *, causal: bool = False, num_samples: int = 1, rngs: nnx.Rngs
    ):
        c, dtype = config, jnp.dtype(config.dtype)
        self.config, self.causal, self.num_samples = config, causal, num_samples
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
                num_samples=num_samples,
                **shared,
            )
            for layer in range(c.nvib_layers)
        )
        self.norm = LayerNorm(c.dim, dtype=dtype, rngs=rngs) if c.norm == "pre" else None

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        *,
        draw: jax.Array | None = None,
        form: str | None = None,
    ) -> tuple[jax.Array, tuple[Posterior, ...]]:
        """The last states, and the posteriors of the NVIB layers.

        Args:
          x: shape (B, N, D).
          mask: bool, shape (B, N), True = a valid token.
          key: dropout key; None means no dropout.
          draw: key of the drawn mixtures; None reads the posteriors without noise.
          form: how they are read then; None is the config's `evaluation_form`.

        Returns:
          (states, shape (B, N, D); one `Posterior` a layer, S = N + 1).
        """
        states, posteriors = self.layers(x, mask, key, draw=draw, form=form)
        return self._last(states[-1]), posteriors

    def layers(
        self,
        x: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        *,
        draw: jax.Array | None = None,
        form: str | None = None,
    ) -> tuple[list[jax.Array], tuple[Posterior, ...]]:
        """As `__call__`, with the input and the output of every layer, before the last norm."""
        c, how = self.config, form or self.config.evaluation_form
        keys = split_key(key, c.plain_layers + c.nvib_layers)
        draws = split_key(draw, c.nvib_layers) if c.nvib_layers else []
        states: list[jax.Array] = [x]
        posteriors: list[Posterior] = []
        for plain, layer_key in zip(self.plain_layers, keys[: c.plain_layers], strict=True):
            run: Any = jax.checkpoint(plain.__call__) if c.remat else plain
            states.append(run(states[-1], None if self.causal else mask, layer_key))
        for layer, layer_key, layer_draw in zip(
            self.nvib_layers, keys[c.plain_layers :], draws, strict=True
        ):

            def through(x, mask, key, previous, draw, layer=layer):
                return layer(
                    x, mask, key, previous=previous, draw=draw, form=how, causal=self.causal
                )

            run = jax.checkpoint(through) if c.remat else through
            below = posteriors[-1] if posteriors else None
            x, posterior = run(states[-1], mask, layer_key, below, layer_draw)
            states.append(x)
            posteriors.append(posterior)
        return states, tuple(posteriors)

    def costs(
        self, posteriors: tuple[Posterior, ...], mask: jax.Array, objective: Any
    ) -> tuple[dict[str, jax.Array], Metrics]:
        """What the layers cost and keep: "gaussian/L" and "dirichlet/L" of NVIB layer L, from 1.

        Args:
          posteriors: from `__call__`.
          mask: bool, shape (B, N), the tokens that they were made of; an empty row costs nothing.
          objective: says the forms of the KLs.

        Returns:
          (name -> nats of each row times the layer's share, (B,); metrics by layer: both KLs,
          "share_kept", the share of the tokens with a pseudo-count above the threshold).
        """
        real, costs, metrics = jnp.any(mask, axis=-1), {}, {}
        layers = zip(self.nvib_layers, posteriors, self.layer_weights, strict=True)
        for number, (layer, posterior, weight) in enumerate(layers, start=1):
            prior, count = layer.attention.nvib.prior, self.num_samples
            found = {
                "gaussian": kl_gaussian(
                    posterior, prior, num_samples=count, form=objective.gaussian_form
                ),
                "dirichlet": kl_dirichlet(
                    posterior, prior, num_samples=count, form=objective.dirichlet_form
                ),
            }
            for name, cost in found.items():
                cost = jnp.where(real, cost, 0.0)
                costs[f"{name}/{number}"] = weight * cost
                metrics[f"kl_{name}/{number}"] = jnp.sum(cost), jnp.sum(real)
            chosen = jnp.sum(kept(posterior, self.config.threshold))
            metrics[f"share_kept/{number}"] = chosen, jnp.sum(mask)
        return costs, metrics

    @property
    def layer_weights(self) -> list[float]:
        """The share of each NVIB layer's KLs in the loss; they add up to 1."""
        numbers = range(1, self.config.nvib_layers + 1)
        sizes = [number if self.config.layer_weights == "depth" else 1 for number in numbers]
        return [size / sum(sizes) for size in sizes]

    def last_attention(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """What each token attends to in the last layer, mean over heads, without noise.

        For stacks that are not causal.

        Returns:
          float32, shape (B, N, N + 1): over the prior's component and the tokens. The prior's share
          is 0 where the last layer is a plain one.
        """
        states, posteriors = self.layers(x, mask)
        layer: Any = (self.nvib_layers if posteriors else self.plain_layers)[-1]
        h = layer.norms[0](states[-2]) if self.config.norm == "pre" else states[-2]
        if not posteriors:
            weights = jnp.mean(layer.attention.weights(h, mask), axis=1)
            return jnp.pad(weights, ((0, 0), (0, 0), (1, 0)))
        below = posteriors[-2] if len(posteriors) > 1 else None
        form = self.config.evaluation_form
        return jnp.mean(layer.attention.weights(h, mask, previous=below, form=form), axis=1)

    def empty_caches(self, rows: int, capacity: int) -> tuple[Memory, ...]:
        """One empty cache a layer of a causal stack, for `capacity` positions of so many rows."""
        form = self.config.evaluation_form
        return (
            *(layer.attention.empty_cache(rows, capacity) for layer in self.plain_layers),
            *(layer.attention.empty_cache(rows, capacity, form=form) for layer in self.nvib_layers),
        )

    def step(
        self, x: jax.Array, caches: tuple[Memory, ...], position: jax.Array
    ) -> tuple[jax.Array, tuple[Memory, ...]]:
        """One position of a causal stack without noise: x (B, 1, D), caches with those before."""
        form, longer, below = self.config.evaluation_form, [], None
        plain = len(self.plain_layers)
        for layer, cache in zip(self.plain_layers, caches[:plain], strict=True):
            x, cache = layer.step(x, cache, position)
            longer.append(cache)
        for bottleneck, cache in zip(self.nvib_layers, caches[plain:], strict=True):
            x, cache, below = bottleneck.step(x, cache, position, previous=below, form=form)
            longer.append(cache)
        return self._last(x), tuple(longer)

    def _last(self, x: jax.Array) -> jax.Array:
        return x if self.norm is None else self.norm(x)
