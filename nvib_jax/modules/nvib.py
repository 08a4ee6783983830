"""The NVIB layer: encoder states -> `Posterior` (Henderson & Fehr 2023, arXiv 2207.13529)."""

import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvib_jax.modules.linear import Linear
from nvib_jax.posterior import add_skip, log_pseudo_count, make_posterior
from nvib_jax.types import Posterior, Prior

PRIOR_ARRAYS = ("mean", "log_variance", "log_alpha", "alpha_delta")  # as checkpoints name them


class Fixed(nnx.Variable):
    """A variable that checkpoints hold and no optimiser trains; the prior's arrays are of it."""


def mean_map(dim: int, *, rngs: nnx.Rngs) -> Linear:
    """The map from states to means."""
    return Linear(dim, dim, rngs=rngs)


def log_variance_map(dim: int, variance: float, *, rngs: nnx.Rngs) -> Linear:
    """The map from states to log variances, which starts as the constant `variance`."""
    return Linear(
        dim,
        dim,
        kernel_init=nnx.initializers.zeros_init(),
        bias_init=nnx.initializers.constant(math.log(variance)),
        rngs=rngs,
    )


def stored(prior: Prior) -> Any:
    """A prior's arrays as module variables, under the names of its fields."""
    return nnx.data({name: Fixed(getattr(prior, name)) for name in PRIOR_ARRAYS})


def restored(values: Any) -> Prior:
    """The inverse of `stored`, with no gradient."""
    return Prior(**{name: jax.lax.stop_gradient(values[name][...]) for name in PRIOR_ARRAYS})


class PosteriorMaps(nnx.Module):
    """The three maps that `NVIB` learns. A subclass decides how the prior is stored.

    Args:
      dim: D.
      prior: the Dirichlet process.
      pseudo_count, initial_alpha, initial_kept, initial_variance: as in `NVIB`.
      rngs: parameter RNGs.
    """

    def __init__(
        self,
        dim: int,
        *,
        prior: Prior,
        pseudo_count: str,
        initial_alpha: float | None,
        initial_kept: float,
        initial_variance: float,
        rngs: nnx.Rngs,
    ):
        if initial_alpha is not None and initial_alpha <= 0:
            raise ValueError(f"initial_alpha is {initial_alpha}; wanted more than 0")
        self.mean = mean_map(dim, rngs=rngs)
        self.log_variance = log_variance_map(dim, initial_variance, rngs=rngs)
        # jnp.where and not `if`, because a prior that is made inside `jax.jit` is traced.
        delta = prior.alpha_delta
        alpha = jnp.where(delta > 0, delta, 1.0) if initial_alpha is None else initial_alpha
        start: Any = jnp.log(jnp.float32(alpha))
        spread: Any = 1.0
        if pseudo_count == "relu":
            start, spread = (alpha * x for x in rectified_normal(initial_kept))
        init = nnx.initializers.normal(spread * dim**-0.5)
        self.pseudo_count = pseudo_count
        self.alpha_linear = nnx.Param(init(rngs.params(), (dim,), jnp.float32))
        self.alpha_bias = nnx.Param(jnp.float32(start))
        self.alpha_quadratic = (
            nnx.Param(jnp.zeros((dim,), jnp.float32)) if pseudo_count == "exp_quadratic" else None
        )

    @property
    def prior(self) -> Prior:
        """The prior of component 0; a subclass defines it."""
        raise NotImplementedError

    def __call__(
        self, x: jax.Array, mask: jax.Array, previous: Posterior | None = None
    ) -> Posterior:
        """Encoder states to posterior.

        Args:
          x: shape (B, N, D).
          mask: bool, shape (B, N), True = a valid token.
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


class NVIB(PosteriorMaps):
    """Linear maps from encoder states to means, log variances and pseudo-counts.

    Args:
      dim: D.
      prior: the Dirichlet process; stored beside the parameters and never trained.
      pseudo_count: "exp_linear", "exp_quadratic" or "relu" (`nvib_jax.log_pseudo_count`).
      initial_alpha: mean pseudo-count of a component before training. None is the prior's
        `alpha_delta` (1 if that is 0), so that the Dirichlet KL and its gradient start near 0.
      initial_kept: share of components with a pseudo-count above 0 before training, for "relu".
      initial_variance: variance of every component before training.
      rngs: parameter RNGs.

    Raises:
      ValueError: `initial_alpha` is not above 0, or `initial_kept` not inside (0, 1).

    >>> from flax import nnx
    >>> layer = NVIB(8, prior=Prior.standard(8, alpha_delta=0.3), rngs=nnx.Rngs(0))
    >>> posterior = layer(jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool))
    >>> posterior.mean.shape
    (2, 6, 8)
    """

    def __init__(
        self,
        dim: int,
        *,
        prior: Prior,
        pseudo_count: str = "exp_linear",
        initial_alpha: float | None = None,
        initial_kept: float = 0.5,
        initial_variance: float = 0.1,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            dim,
            prior=prior,
            pseudo_count=pseudo_count,
            initial_alpha=initial_alpha,
            initial_kept=initial_kept,
            initial_variance=initial_variance,
            rngs=rngs,
        )
        self.prior_values = stored(prior)

    @property
    def prior(self) -> Prior:
        """The prior, with no gradient."""
        return restored(self.prior_values)


def rectified_normal(share: float) -> tuple[float, float]:
    """(m, s) such that `max(0, N(m, s^2))` has mean 1 and is positive with this probability.

    With it, which components start without a pseudo-count is a random function of the encoder's
    state. Otherwise all would start with equal weights, and training would have to break that
    symmetry itself.

    Raises:
      ValueError: the share is not inside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"initial_kept is {share}; wanted 0 < initial_kept < 1")
    normal = statistics.NormalDist()
    edge = -normal.inv_cdf(share)
    scale = 1.0 / (normal.pdf(edge) - edge * share)
    return -edge * scale, scale
