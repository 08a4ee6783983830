"""What is minimised, and what is reported: log-likelihood, published scale, ELBO, IWAE.

The training loss (Henderson & Fehr 2023) is a mean over valid tokens plus KLs in the published
scaling; a bound on the likelihood is a sum over the sentence with the exact KLs, and is kept apart.
Arguments that are no arrays, or of other shapes than a function says, are a ValueError.
"""

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_number, check_shapes
from nvib_jax.kl import prior_atom
from nvib_jax.numerics import dirichlet
from nvib_jax.random import log_normalize
from nvib_jax.types import Mixture, Posterior, Prior, prior_of, typed


def log_likelihood(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """`log p(x | F)` summed over each sentence's valid tokens.

    Args:
      logits: shape (B, T, V), any float dtype; the softmax is float32.
      targets: int, shape (B, T).
      mask: bool, shape (B, T), True = counts.

    Returns:
      float32 nats, shape (B,).

    Raises:
      ValueError: shapes or dtypes that do not fit.

    >>> mask = jnp.array([[True, True, False]])
    >>> print(log_likelihood(jnp.zeros((1, 3, 4)), jnp.zeros((1, 3), int), mask))  # 2 log 1/4
    [-2.7725887]
    """
    check_shapes(
        logits=(logits, "float B T V"), targets=(targets, "int B T"), mask=(mask, "bool B T")
    )
    return _log_likelihood(logits, targets, mask)


@jax.jit
def _log_likelihood(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    token = picked - jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(jnp.where(mask, token, 0.0), axis=-1)


def published_scale(kl: jax.Array, components: jax.Array, dim: int | None = None) -> jax.Array:
    """The published reductions: `KL_G / (S D)` (give `dim`) and `KL_D / S`.

    Args:
      kl: nats, shape (B,).
      components: S, valid components of each example (the prior's included), shape (B,).
      dim: D for the Gaussian term, None for the Dirichlet term.

    Returns:
      nats, shape (B,).

    >>> print(published_scale(jnp.array([60.0]), jnp.array([3]), dim=4))
    [5.]
    """
    check_shapes(kl=(kl, "float B"), components=(components, "B"))
    return kl.astype(jnp.float32) / (components.astype(jnp.float32) * (1 if dim is None else dim))


def elbo_weights(lambda_gaussian: float, lambda_dirichlet: float, dim: int) -> tuple[float, float]:
    """Published loss weights in units of the ELBO, where (1, 1) is the bound itself.

    Summed over a sentence, `CE/T + lambda_G KL_G/(S D) + lambda_D KL_D/S` with T = S is
    `CE + (lambda_G / D) KL_G + lambda_D KL_D`.

    Args:
      lambda_gaussian: lambda_G of the published loss.
      lambda_dirichlet: lambda_D.
      dim: D.

    Returns:
      (weight of KL_G, weight of KL_D).

    >>> elbo_weights(1e-3, 1.0, dim=256)  # the published setting
    (3.90625e-06, 1.0)
    """
    return lambda_gaussian / dim, lambda_dirichlet


def elbo(
    log_likelihood: jax.Array,
    kl_gaussian: jax.Array,
    kl_dirichlet: jax.Array,
    log_prob_count: jax.Array,
) -> jax.Array:
    """`log p(x) >= log p(m) + E_q log p(x | F) - KL_G - KL_D`, nats per sentence.

    It bounds the likelihood only with the exact KLs and a *drawn* mixture in the first term.

    Args:
      log_likelihood: of a drawn mixture, shape (B,).
      kl_gaussian: `kl_gaussian(..., form="exact")`, shape (B,).
      kl_dirichlet: `kl_dirichlet(..., form="exact")`, shape (B,).
      log_prob_count: `log p(m)`, what it costs to tell the decoder the number of components,
        shape (B,).

    Returns:
      shape (B,).

    >>> print(elbo(*(jnp.array([x]) for x in (-10.0, 4.0, 2.0, -1.0))))
    [-17.]
    """
    check_number("log_likelihood", log_likelihood)
    check_number("kl_gaussian", kl_gaussian)
    check_number("kl_dirichlet", kl_dirichlet)
    check_number("log_prob_count", log_prob_count)
    return log_likelihood + log_prob_count - kl_gaussian - kl_dirichlet


def log_density_ratio(mixture: Mixture, posterior: Posterior, prior: Prior) -> jax.Array:
    """`log p(F) - log q(F | x)` of a mixture drawn by `sample(key, posterior, num_samples=K)`.

    Its mean under q is minus the sum of the exact KLs. Components with a pseudo-count of zero are
    in neither density: both are conditioned on which components are there.

    Args:
      mixture: impulses, shape (B, K S, D).
      posterior: what it was drawn from; K is read off the shapes.
      prior: the prior; no gradient reaches it unless it is `trainable`.

    Returns:
      float32 nats, shape (B,).

    Raises:
      ValueError: the mixture has variances, another batch or width, or a number of components that
        is no multiple of the posterior's; or a prior that does not fit.

    >>> x, prior = jnp.zeros((1, 2, 4)), Prior.standard(4)
    >>> posterior = make_posterior(x, x - 2, x[..., 0], jnp.ones((1, 2), bool), prior)
    >>> drawn = sample(jax.random.key(0), posterior)
    >>> log_density_ratio(drawn, posterior, prior).shape
    (1,)
    """
    return _log_density_ratio(*_drawn(mixture, posterior, prior))


@jax.jit
def _log_density_ratio(mixture: Mixture, posterior: Posterior, prior: Prior) -> jax.Array:
    count, drawn = _impulses(mixture, posterior)
    log_alpha = jnp.where(drawn, jnp.tile(posterior.log_alpha, (1, count)), 0.0)
    present = drawn[:, : posterior.mask.shape[1]]
    return _gaussian_log_density_ratio(mixture, posterior, prior) + dirichlet.log_density_ratio(
        jnp.where(drawn, log_normalize(mixture.log_weights, drawn), 0.0),
        log_alpha.astype(jnp.float32) - jnp.log(jnp.float32(count)),
        prior_atom(present, prior, count)[0][:, None],
        drawn,
    )


def gaussian_log_density_ratio(mixture: Mixture, posterior: Posterior, prior: Prior) -> jax.Array:
    """The vectors' part of `log_density_ratio`; all of it where the weights are no draw.

    Args:
      mixture: impulses, shape (B, K S, D).
      posterior: what it was drawn from.
      prior: as in `log_density_ratio`.

    Returns:
      float32 nats, shape (B,).

    >>> x, prior = jnp.zeros((1, 2, 4)), Prior.standard(4)
    >>> posterior = make_posterior(x, x, x[..., 0], jnp.ones((1, 2), bool), prior)
    >>> drawn = sample(jax.random.key(0), posterior)
    >>> print(gaussian_log_density_ratio(drawn, posterior, prior))  # drawn from the prior itself
    [0.]
    """
    return _gaussian_log_density_ratio(*_drawn(mixture, posterior, prior))


@jax.jit
def _gaussian_log_density_ratio(mixture: Mixture, posterior: Posterior, prior: Prior) -> jax.Array:
    count, drawn = _impulses(mixture, posterior)
    prior_mean, prior_log_variance = prior.mean[None, None], prior.log_variance[None, None]

    def tiled(array: jax.Array, fill: jax.Array) -> jax.Array:
        array = jnp.tile(array.astype(jnp.float32), (1, count, 1))
        return jnp.where(drawn[..., None], array, fill)  # before the arithmetic, for the gradient

    z = jnp.where(drawn[..., None], mixture.mean.astype(jnp.float32), prior_mean)
    log_variance = tiled(posterior.log_variance, prior_log_variance)
    noise = (z - tiled(posterior.mean, prior_mean)) * jnp.exp(-0.5 * log_variance)
    score = jnp.square(z - prior_mean) * jnp.exp(-prior_log_variance)
    each = 0.5 * (jnp.square(noise) - score + log_variance - prior_log_variance)
    return jnp.sum(each, axis=(1, 2))


def _drawn(
    mixture: Mixture, posterior: Posterior, prior: Prior
) -> tuple[Mixture, Posterior, Prior]:
    """The arguments, checked."""
    mixture, posterior = (
        typed("mixture", mixture, Mixture),
        typed("posterior", posterior, Posterior),
    )
    sizes = posterior.check()
    mixture.check()
    if mixture.log_variance is not None:
        raise ValueError("mixture has variances; wanted impulses, as `sample` draws them")
    shape = mixture.mean.shape
    if (shape[0], shape[2]) != (sizes["B"], sizes["D"]):
        raise ValueError(
            f"mixture.mean has shape {shape}; wanted ({sizes['B']}, K S, {sizes['D']})"
        )
    count, rest = divmod(shape[1], sizes["S"])
    if rest or not count:
        raise ValueError(
            f"mixture has {shape[1]} components; wanted a multiple of the posterior's {sizes['S']}"
        )
    return mixture, posterior, prior_of(prior, sizes["D"])


def _impulses(mixture: Mixture, posterior: Posterior) -> tuple[int, jax.Array]:
    """K, and which of the K S components are in the densities, bool (B, K S)."""
    count = mixture.mask.shape[1] // posterior.mask.shape[1]
    return count, jnp.tile(posterior.present, (1, count))


def iwae(log_weights: jax.Array, *, axis: int = 0) -> jax.Array:
    """`log 1/k sum_j p(x | F_j) p(F_j) / q(F_j | x)`, the importance-weighted bound.

    Args:
      log_weights: `log p(m) + log p(x | F_j) + log_density_ratio`, k of them along `axis`.
      axis: the axis of the k draws.

    Returns:
      float32 nats, `axis` removed. Source: Burda et al. (2016).

    >>> print(iwae(jnp.log(jnp.array([0.1, 0.3]))))  # log 0.2
    -1.609438
    """
    check_number("log_weights", log_weights)
    shape = jnp.shape(log_weights)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis is {axis}; wanted an axis of log_weights, of shape {shape}")
    count = shape[axis]
    return jax.nn.logsumexp(log_weights, axis=axis) - jnp.log(jnp.float32(count))
