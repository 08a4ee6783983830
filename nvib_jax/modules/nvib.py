"""The NVIB layer: encoder states -> `Posterior`. DESIGN 3.3."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.posterior import add_skip, log_pseudo_count, make_posterior
from nvib_jax.types import Posterior, Prior


class Fixed(nnx.Variable):
    """Saved in the checkpoint, never trained: the prior."""


class NVIB(nnx.Module):
    """Linear maps from encoder states to means, log variances and pseudo-counts.

    Args:
      dim: D.
      prior: the Dirichlet process; kept with the parameters and never trained.
      pseudo_count: "exp_linear", "exp_quadratic" or "relu" (`nvib_jax.log_pseudo_count`).
      initial_alpha: pseudo-count of a component before training, were all states alike.
      initial_spread: how far states differ before training: the standard deviation of the map's
        linear part for states of variance 1.
      initial_variance: variance of every component before training.
      rngs: parameter RNGs.
    """

    def __init__(
        self,
        dim: int,
        *,
        prior: Prior,
        pseudo_count: str = "exp_linear",
        initial_alpha: float = 1.0,
        initial_spread: float = 1.0,
        initial_variance: float = 0.1,
        rngs: nnx.Rngs,
    ):
        start = initial_alpha if pseudo_count == "relu" else math.log(initial_alpha)
        init = nnx.initializers.normal(initial_spread * dim**-0.5)
        self.pseudo_count = pseudo_count
        self.mean = nnx.Linear(dim, dim, rngs=rngs)
        self.log_variance = nnx.Linear(
            dim,
            dim,
            kernel_init=nnx.initializers.zeros_init(),
            bias_init=nnx.initializers.constant(math.log(initial_variance)),
            rngs=rngs,
        )
        self.alpha_linear = nnx.Param(init(rngs.params(), (dim,), jnp.float32))
        self.alpha_bias = nnx.Param(jnp.float32(start))
        self.alpha_quadratic = (
            nnx.Param(jnp.zeros((dim,), jnp.float32)) if pseudo_count == "exp_quadratic" else None
        )
        self.prior_values = nnx.data(
            {f.name: Fixed(getattr(prior, f.name)) for f in dataclasses.fields(prior)}
        )

    @property
    def prior(self) -> Prior:
        """The prior, with no gradient."""
        values = {name: jax.lax.stop_gradient(v[...]) for name, v in self.prior_values.items()}
        return Prior(**values)

    def __call__(
        self, x: jax.Array, mask: jax.Array, previous: Posterior | None = None
    ) -> Posterior:
        """Encoder states to posterior.

        Args:
          x: shape (B, N, D).
          mask: bool, shape (B, N), True = a real token.
          previous: the posterior of the NVIB layer below, whose log pseudo-counts are added.

        Returns:
          A float32 `Posterior` with S = N + 1 components.
        """
        x = x.astype(jnp.float32)
        quadratic = None if self.alpha_quadratic is None else self.alpha_quadratic[...]
        log_alpha = log_pseudo_count(
            x, self.alpha_linear[...], self.alpha_bias[...], quadratic, form=self.pseudo_count
        )
        if previous is not None:
            log_alpha = add_skip(log_alpha, previous)
        return make_posterior(self.mean(x), self.log_variance(x), log_alpha, mask, self.prior)
