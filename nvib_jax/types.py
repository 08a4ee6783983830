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
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.checks import (
    check_choice,
    check_count,
    check_shapes,
    concrete,
    described,
    is_array,
)

T = TypeVar("T")
WEIGHTS = ("mean", "geometric")  # log E[pi] and E[log pi]
_LOG_SMALL = -40.0  # exp(40) times any number of tokens still fits in float32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prior:
    """The Dirichlet process `F ~ DP(N(mean, exp(log_variance)), exp(log_alpha))`.

    All functions here that take a prior (`make_posterior`, `sample_prior`, the KLs,
    `objective.log_density_ratio`) take it as a constant: gradients by it are 0, unless it is made
    with `trainable=True`. Its arrays are leaves of a pytree all the same. So an optimiser of a
    module that has a `Prior` as a field moves it where it does so without a gradient, as the weight
    decay of AdamW does: leave the prior out of the optimiser's mask (`optax.adamw(..., mask=)`).

    Attributes:
      mean: base mean, shape (D,).
      log_variance: log of the base variance, shape (D,).
      log_alpha: log of the total pseudo-count alpha_0^p, shape ().
      alpha_delta: pseudo-counts that every valid token adds to the total (the *conditional* prior,
        alpha_0^p + alpha_delta * n), shape (). 0 is the plain Dirichlet process, 1 gives each
        component one pseudo-count. It sets the strength of the bottleneck.
      trainable: whether gradients reach the four arrays. It is static, so it is not a leaf.

    >>> prior = Prior.standard(4, alpha=1.0, alpha_delta=0.3)
    >>> prior.mean.shape
    (4,)
    >>> print(jnp.exp(prior.log_total(jnp.array([0, 10]))))  # pseudo-counts for 0 and 10 tokens
    [1. 4.]
    >>> prior.check()
    {'D': 4}
    """

    mean: jax.Array
    log_variance: jax.Array
    log_alpha: jax.Array
    alpha_delta: jax.Array
    trainable: bool = field(default=False, kw_only=True, metadata={"static": True})

    @classmethod
    def standard(
        cls, dim: int, *, alpha: float = 1.0, alpha_delta: float = 0.0, trainable: bool = False
    ) -> "Prior":
        """The default prior: `N(0, 1)` in `dim` dimensions, total pseudo-count `alpha`.

        Raises:
          ValueError: `dim < 1`, `alpha <= 0` or `alpha_delta < 0`, or one that is no finite number.
        """
        for name, value in (("dim", dim), ("alpha", alpha), ("alpha_delta", alpha_delta)):
            if not is_array(value) or np.ndim(value):
                raise ValueError(f"{name} is {described(value)}; wanted a number")
        if not (dim >= 1 and 0 < alpha < math.inf and 0 <= alpha_delta < math.inf):
            raise ValueError(
                f"dim, alpha, alpha_delta are {dim}, {alpha}, {alpha_delta}; "
                "wanted dim >= 1, alpha > 0, alpha_delta >= 0"
            )
        dim = check_count("dim", dim)
        # The two arrays are separate buffers, because jax refuses to donate a state that holds the
        # same array twice.
        return cls(
            mean=jnp.zeros((dim,), jnp.float32),
            log_variance=jnp.zeros((dim,), jnp.float32),
            log_alpha=jnp.float32(math.log(alpha)),
            alpha_delta=jnp.float32(alpha_delta),
            trainable=trainable,
        )

    def log_total(self, lengths: jax.Array) -> jax.Array:
        """`log(alpha_0^p + alpha_delta * n)`, the conditional prior's total.

        Args:
          lengths: number n of valid tokens, any shape.

        Returns:
          float32, the shape of `lengths`.
        """
        log_alpha, delta = (jnp.asarray(a, jnp.float32) for a in (self.log_alpha, self.alpha_delta))
        added = delta * jnp.asarray(lengths).astype(jnp.float32)
        # exp(log_alpha) is never computed, because it overflows for pretrained priors, whose
        # log_alpha is above 88. The total is log_alpha + log(1 + added / alpha) instead.
        total = log_alpha + jnp.log1p(added * jnp.exp(-jnp.maximum(log_alpha, _LOG_SMALL)))
        # Where alpha is so small that 1/alpha would overflow, logaddexp gives the same total.
        tiny = (log_alpha < _LOG_SMALL) & (added > 0)
        log_added = jnp.log(jnp.where(tiny, added, 1.0))
        return jnp.where(tiny, jnp.logaddexp(log_alpha, log_added), total)

    def check(self) -> dict[str, int]:
        """Check shapes, dtypes and the numbers (unless jit traces them); returns the size of D.

        Raises:
          ValueError: naming the field, what it has and what was wanted.
        """
        arrays = {
            "prior.mean": (self.mean, "float D"),
            "prior.log_variance": (self.log_variance, "float D"),
            "prior.log_alpha": (self.log_alpha, "float"),
            "prior.alpha_delta": (self.alpha_delta, "float"),
        }
        sizes = check_shapes(**arrays)
        for name, (array, _) in arrays.items():
            values = concrete(array)
            if values is not None and not np.isfinite(values.astype(np.float32)).all():
                raise ValueError(f"{name} has a {_worst(values)}; wanted finite numbers")
        delta = concrete(self.alpha_delta)
        if delta is not None and delta < 0:
            raise ValueError(f"prior.alpha_delta is {delta}; wanted at least 0")
        return sizes


def _worst(values: np.ndarray) -> float:
    """The first number that is not finite, for an error message."""
    values = values.astype(np.float32)
    return float(values[~np.isfinite(values)][0])


def prior_of(prior: Any, dim: int | None = None) -> Prior:
    """Prepare a prior for use: check it, cast it to float32, stop its gradient unless trainable.

    Args:
      prior: a `Prior`, or any object with the same fields.
      dim: the width D that it must have, or None for any.

    Raises:
      ValueError: it is not a prior, a field does not fit, or its width is not `dim`.
    """
    prior = typed("prior", prior, Prior)
    width = prior.check()["D"]
    if dim is not None and width != dim:
        raise ValueError(f"prior.mean has shape ({width},); wanted [D] = ({dim},)")
    prior = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), prior)
    return prior if prior.trainable else jax.lax.stop_gradient(prior)


def typed(name: str, value: Any, kind: type[T]) -> T:
    """Return `value` if it is a `kind`; build a `kind` from any object that has all of its fields.

    Raises:
      ValueError: a field is missing.
    """
    if isinstance(value, kind):
        return value
    names = [f.name for f in fields(kind) if f.default is MISSING]  # type: ignore[arg-type]
    if isinstance(value, type) or not all(hasattr(value, n) for n in names):
        what = f"the class {value.__name__}" if isinstance(value, type) else described(value)
        raise ValueError(f"{name} is {what}; wanted a {kind.__name__}")
    return kind(*(getattr(value, n) for n in names))


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
        """Check shapes and dtypes; returns the sizes of B, S and D."""
        return check_shapes(
            **{
                "posterior.mean": (self.mean, "float B S D"),
                "posterior.log_variance": (self.log_variance, "float B S D"),
                "posterior.log_alpha": (self.log_alpha, "float B S"),
                "posterior.mask": (self.mask, "bool B S"),
            }
        )

    @property
    def present(self) -> jax.Array:
        """Which components have a pseudo-count above 0 and are valid (no padding), bool (B, S)."""
        return self.mask & ~jnp.isneginf(self.log_alpha)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """`F = sum_i pi_i N(mean_i, exp(log_variance_i))`, the set of vectors that attention reads.

    Attributes:
      mean: shape (B, S, D).
      log_variance: shape (B, S, D), or None for a mixture of impulses (every variance 0).
      log_weights: log pi, shape (B, S); -inf where a component is not present. The weights need
        not sum to one, because attention normalises them.
      mask: bool, shape (B, S).
      weights_kind: which weights `expected` computed: "mean" is log E[pi]; "geometric" is
        E[log pi], which only the attention form "expected_logit" may read. None for every other
        mixture, such as a draw or one made by hand, which any form may read. It is static, so it
        is not a leaf.

    >>> mean = jnp.array([[[-1.0], [1.0]]])  # two points of R^1
    >>> points = Mixture(mean, None, jnp.log(jnp.array([[0.5, 0.5]])), jnp.ones((1, 2), bool))
    >>> points.check()
    {'B': 1, 'S': 2, 'D': 1}
    """

    mean: jax.Array
    log_variance: jax.Array | None
    log_weights: jax.Array
    mask: jax.Array
    weights_kind: str | None = field(default=None, kw_only=True, metadata={"static": True})

    def check(self) -> dict[str, int]:
        """Check shapes and dtypes; returns the sizes of B, S and D."""
        if self.weights_kind is not None:
            check_choice("mixture.weights_kind", self.weights_kind, WEIGHTS)
        return check_shapes(
            **{
                "mixture.mean": (self.mean, "float B S D"),
                "mixture.log_variance": (self.log_variance, "float B S D or None"),
                "mixture.log_weights": (self.log_weights, "float B S"),
                "mixture.mask": (self.mask, "bool B S"),
            }
        )

    @property
    def present(self) -> jax.Array:
        """Which components have a weight above 0 and are valid (no padding), bool (B, S)."""
        return self.mask & ~jnp.isneginf(self.log_weights)
