"""The three values everything passes around: `Prior`, `Posterior`, `Mixture`.

A set of vectors is read as a mixture distribution over R^D. The prior and the posterior are
distributions *over* such mixtures (Dirichlet-process shaped); a `Mixture` is one of them: a
sample, a posterior mean and an interpolation are all mixtures. Source: Henderson & Fehr (2023),
arXiv 2207.13529, like all of the pure core.

Dimension letters, used in every docstring:

    B batch                 S latent components, S = N + 1 (component 0 is the prior's)
    N encoder tokens        K samples drawn per component
    T queries               H heads      E head width, E = D / H
    D latent (model) width  V vocabulary

Masks are boolean and True = valid. Weights live in log space; KLs are in nats.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nvib_jax.shapes import check_mask, check_shapes
from nvib_jax.special import LOG_TINY


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prior:
    """The Dirichlet process `F ~ DP(N(mean, exp(log_variance)), exp(log_alpha))`.

    Attributes:
      mean: base mean, shape (D,).
      log_variance: log of the base variance, shape (D,).
      log_alpha: log of the total pseudo-count alpha_0^p, shape ().
      alpha_delta: pseudo-counts that every real token adds to the total (the *conditional* prior,
        alpha_0^p + alpha_delta * n), shape (). 0 is the pure process, 1 gives each component one
        pseudo-count; it is the knob of the bottleneck.

    >>> prior = Prior.standard(4, alpha=1.0, alpha_delta=0.3)
    >>> prior.mean.shape
    (4,)
    >>> print(jnp.exp(prior.log_total(jnp.array([0, 10]))))  # pseudo-counts for 0 and 10 tokens
    [1. 4.]
    """

    mean: jax.Array
    log_variance: jax.Array
    log_alpha: jax.Array
    alpha_delta: jax.Array

    @classmethod
    def standard(cls, dim: int, *, alpha: float = 1.0, alpha_delta: float = 0.0) -> "Prior":
        """The default prior: `N(0, 1)` in `dim` dimensions, total pseudo-count `alpha`.

        Raises:
          ValueError: `dim < 1`, `alpha <= 0` or `alpha_delta < 0`.
        """
        if dim < 1 or alpha <= 0 or alpha_delta < 0:
            raise ValueError(
                f"dim, alpha, alpha_delta are {dim}, {alpha}, {alpha_delta}; "
                "wanted dim >= 1, alpha > 0, alpha_delta >= 0"
            )
        return cls(  # two buffers, not one shared: a donated state may not hold an array twice
            mean=jnp.zeros((dim,), jnp.float32),
            log_variance=jnp.zeros((dim,), jnp.float32),
            log_alpha=jnp.float32(math.log(alpha)),
            alpha_delta=jnp.float32(alpha_delta),
        )

    def log_total(self, lengths: jax.Array) -> jax.Array:
        """`log(alpha_0^p + alpha_delta * n)`, the conditional prior's total.

        Args:
          lengths: number n of real tokens, any shape.

        Returns:
          float32, the shape of `lengths`.
        """
        n = jnp.asarray(lengths).astype(jnp.float32)
        # Pretrained priors have log_alpha > 88: exp(log_alpha) is not formed.
        inverse = jnp.exp(-jnp.maximum(self.log_alpha, LOG_TINY))
        return self.log_alpha + jnp.log1p(self.alpha_delta * n * inverse)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posterior:
    """`q(F | x)`: independent Gaussians for the vectors, a Dirichlet for their weights.

    Attributes:
      mean: shape (B, S, D); component 0 is the prior's.
      log_variance: shape (B, S, D).
      log_alpha: log pseudo-counts, shape (B, S); -inf removes a component without masking it.
      mask: bool, shape (B, S); False on padding only, `mask[:, 0]` is always True.

    >>> x, prior = jnp.zeros((2, 3, 4)), Prior.standard(4)
    >>> posterior = make_posterior(x, x, x[..., 0], jnp.ones((2, 3), bool), prior)
    >>> posterior.check()
    {'B': 2, 'S': 4, 'D': 4}
    """

    mean: jax.Array
    log_variance: jax.Array
    log_alpha: jax.Array
    mask: jax.Array

    def check(self) -> dict[str, int]:
        """Check the shapes and the mask; returns the sizes of B, S and D."""
        check_mask("posterior.mask", self.mask)
        return check_shapes(
            **{
                "posterior.mean": (self.mean, "B S D"),
                "posterior.log_variance": (self.log_variance, "B S D"),
                "posterior.log_alpha": (self.log_alpha, "B S"),
                "posterior.mask": (self.mask, "B S"),
            }
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """`F = sum_i pi_i N(mean_i, exp(log_variance_i))`, what attention reads.

    Attributes:
      mean: shape (B, S, D).
      log_variance: shape (B, S, D), or None for a mixture of impulses (every variance 0).
      log_weights: log pi, shape (B, S); -inf where a component is empty. Attention normalises, so
        they need not sum to one.
      mask: bool, shape (B, S).

    >>> mean = jnp.array([[[-1.0], [1.0]]])  # two points of R^1
    >>> points = Mixture(mean, None, jnp.log(jnp.array([[0.5, 0.5]])), jnp.ones((1, 2), bool))
    >>> points.check()
    {'B': 1, 'S': 2, 'D': 1}
    """

    mean: jax.Array
    log_variance: jax.Array | None
    log_weights: jax.Array
    mask: jax.Array

    def check(self) -> dict[str, int]:
        """Check the shapes and the mask; returns the sizes of B, S and D."""
        check_mask("mixture.mask", self.mask)
        return check_shapes(
            **{
                "mixture.mean": (self.mean, "B S D"),
                "mixture.log_variance": (self.log_variance, "B S D"),
                "mixture.log_weights": (self.log_weights, "B S"),
                "mixture.mask": (self.mask, "B S"),
            }
        )
