"""`Posterior` -> `Mixture`: a draw, the mean, a prior draw, an interpolation.

All four leave the same type, so attention never asks where a mixture is from.
"""

import jax
import jax.numpy as jnp

from nvib_jax.random import log_dirichlet, log_normalize
from nvib_jax.shapes import check_choice, check_shapes
from nvib_jax.special import digamma_of_exp
from nvib_jax.types import Mixture, Posterior, Prior


def sample(key: jax.Array, posterior: Posterior, *, num_samples: int = 1) -> Mixture:
    """Draw a mixture of impulses, reparameterised.

        z = mu + s eps          K times per component
        pi ~ Dir(alpha_i / K, each repeated K times)

    Args:
      key: PRNG key.
      posterior: S components.
      num_samples: K >= 1.

    Returns:
      A `Mixture` of K S impulses, K blocks of S (so component 0 is a draw of the prior's).

    Raises:
      ValueError: `num_samples < 1`, or shapes that do not fit.

    Source: Henderson & Fehr (2023). One draw from `Dir(alpha_i / K repeated)` is their two-stage
    draw, and differentiable.

    >>> x, mask = jnp.zeros((1, 3, 4)), jnp.ones((1, 3), bool)
    >>> posterior = make_posterior(x, x, x[..., 0], mask, Prior.standard(4))
    >>> mixture = sample(jax.random.key(0), posterior, num_samples=2)
    >>> mixture.mean.shape, mixture.log_variance  # 2 (3 + 1) impulses
    ((1, 8, 4), None)
    >>> print(jnp.exp(mixture.log_weights).sum())
    1.0000
    """
    posterior.check()
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; wanted at least 1")
    weight_key, noise_key = jax.random.split(key)
    log_alpha = posterior.log_alpha.astype(jnp.float32) - jnp.log(jnp.float32(num_samples))
    log_alpha, mask = (jnp.tile(a, (1, num_samples)) for a in (log_alpha, posterior.mask))
    mean, log_variance = (
        jnp.tile(a.astype(jnp.float32), (1, num_samples, 1))
        for a in (posterior.mean, posterior.log_variance)
    )
    noise = jax.random.normal(noise_key, mean.shape, jnp.float32)
    return Mixture(
        mean=mean + jnp.exp(0.5 * log_variance) * noise,
        log_variance=None,
        log_weights=log_dirichlet(weight_key, log_alpha, mask),
        mask=mask,
    )


def expected(
    posterior: Posterior,
    *,
    log_weights: str = "mean",
    threshold: float | jax.Array | None = None,
) -> Mixture:
    """The posterior's mean mixture, Gaussians included.

    Args:
      posterior: S components.
      log_weights: "mean" is `log E[pi_i] = log(alpha_i / alpha_0)`; "geometric" is
        `E[log pi_i] = psi(alpha_i) - psi(alpha_0)`, unnormalised, for form "expected_logit".
      threshold: drop components whose pseudo-count is at most this. The largest component of a
        row is always kept, so that no row is left empty.

    Returns:
      A `Mixture` of S Gaussians; a dropped component has log weight -inf.

    Raises:
      ValueError: an unknown `log_weights`, or shapes that do not fit.

    Source: the mean, Henderson & Fehr (2023); the geometric weights are our own.

    >>> x, alpha = jnp.zeros((1, 2, 4)), jnp.array([[2.0, 0.05]])
    >>> mask, prior = jnp.ones((1, 2), bool), Prior.standard(4)
    >>> posterior = make_posterior(x, x, jnp.log(alpha), mask, prior)
    >>> print(jnp.exp(expected(posterior).log_weights))  # of 1 + 2 + 0.05
    [[0.3279 0.6557 0.0164]]
    >>> print(jnp.exp(expected(posterior, threshold=0.1).log_weights))
    [[0.3333 0.6667 0.    ]]
    """
    posterior.check()
    check_choice("log_weights", log_weights, ("mean", "geometric"))
    log_alpha = jnp.where(posterior.mask, posterior.log_alpha, -jnp.inf).astype(jnp.float32)
    if threshold is not None:
        # Compared in log space, where a pseudo-count cannot overflow; negative keeps everything.
        bound = jnp.log(jnp.maximum(jnp.float32(threshold), 0.0))
        largest = log_alpha == jnp.max(log_alpha, axis=-1, keepdims=True)
        keep = (log_alpha > bound) | largest | (threshold < 0)
        log_alpha = jnp.where(keep, log_alpha, -jnp.inf)
    present = ~jnp.isneginf(log_alpha)
    if log_weights == "mean":
        weights = log_normalize(log_alpha)
    else:
        log_alpha = jnp.where(present, log_alpha, 0.0)
        log_total = jax.nn.logsumexp(log_alpha, axis=-1, keepdims=True, where=present)
        digamma = digamma_of_exp(log_alpha) - digamma_of_exp(log_total)
        weights = jnp.where(present, digamma, -jnp.inf)
    return Mixture(posterior.mean, posterior.log_variance, weights, posterior.mask)


def sample_prior(key: jax.Array, prior: Prior, lengths: jax.Array, *, max_length: int) -> Mixture:
    """Draw mixtures from the (conditional) prior: `z ~ N(mu^p, s2^p)`, `pi ~ Dir(alpha_0^p' / S)`.

    Args:
      key: PRNG key.
      prior: the process.
      lengths: number n of tokens each mixture stands for, int, shape (B,); S = n + 1.
      max_length: static bound on `lengths`; the result has max_length + 1 components.

    Returns:
      A `Mixture` of impulses, shape (B, max_length + 1, D), masked beyond n + 1.

    Raises:
      ValueError: `max_length < 0` or `lengths` is not of shape (B,).

    Source: the bounded process of Henderson & Fehr (2023).

    >>> lengths = jnp.array([1, 3])
    >>> drawn = sample_prior(jax.random.key(0), Prior.standard(4), lengths, max_length=3)
    >>> drawn.mean.shape
    (2, 4, 4)
    >>> print(drawn.mask.sum(-1))  # and one for the prior's component
    [2 4]
    """
    sizes = check_shapes(lengths=(lengths, "B"))
    if max_length < 0:
        raise ValueError(f"max_length is {max_length}; wanted at least 0")
    shape = (sizes["B"], max_length + 1)
    lengths = jnp.asarray(lengths, jnp.int32)
    mask = jnp.arange(shape[1], dtype=jnp.int32)[None, :] <= lengths[:, None]
    atoms = (lengths + 1).astype(jnp.float32)
    log_alpha = prior.log_total(lengths) - jnp.log(atoms)
    weight_key, noise_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (*shape, prior.mean.shape[-1]), jnp.float32)
    return Mixture(
        mean=prior.mean + jnp.exp(0.5 * prior.log_variance) * noise,
        log_variance=None,
        log_weights=log_dirichlet(weight_key, jnp.broadcast_to(log_alpha[:, None], shape), mask),
        mask=mask,
    )


def interpolate(a: Mixture, b: Mixture, t: float | jax.Array) -> Mixture:
    """The mixture `(1 - t) a + t b`: both sets of components, weights scaled.

    Args:
      a: mixture with S_a components, shape (B, S_a, D).
      b: mixture with S_b components, shape (B, S_b, D).
      t: in [0, 1], shape () or (B,); beyond it weights are NaN. At 0 and 1 the gradient by t
        leaves out the end that weighs nothing there.

    Returns:
      A `Mixture` with S_a + S_b components. If only one side has variances, the other's are 0.

    Raises:
      ValueError: batch or width of `a` and `b` differ, or `t` is neither () nor (B,).

    Source: Henderson & Fehr (2023).

    >>> def point(x):
    ...     return Mixture(jnp.full((1, 1, 1), x), None, jnp.zeros((1, 1)), jnp.ones((1, 1), bool))
    >>> print(jnp.exp(interpolate(point(-1.0), point(1.0), 0.25).log_weights))
    [[0.75 0.25]]
    """
    a.check()
    b.check()
    check_shapes(**{"a.mean": (a.mean, "B Sa D"), "b.mean": (b.mean, "B Sb D")})
    if jnp.ndim(t) > 0:
        check_shapes(**{"a.mean": (a.mean, "B Sa D"), "t": (t, "B")})
    t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), a.mean.shape[:1])[:, None]
    a_weight, b_weight = _log(1.0 - t), _log(t)
    log_variance = None
    if a.log_variance is not None or b.log_variance is not None:
        log_variance = jnp.concatenate([_log_variance(a), _log_variance(b)], axis=1)
    return Mixture(
        mean=jnp.concatenate([a.mean, b.mean], axis=1),
        log_variance=log_variance,
        log_weights=jnp.concatenate([a.log_weights + a_weight, b.log_weights + b_weight], axis=1),
        mask=jnp.concatenate([a.mask, b.mask], axis=1),
    )


def _log(x: jax.Array) -> jax.Array:
    """-inf at 0, where its gradient would be no number, with gradient 0."""
    return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1.0, x)))


def _log_variance(mixture: Mixture) -> jax.Array:
    if mixture.log_variance is None:
        return jnp.full_like(mixture.mean, -jnp.inf)
    return mixture.log_variance
