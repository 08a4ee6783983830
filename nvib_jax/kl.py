"""The two KL terms of the bottleneck, in nats per example.

Enters a `Posterior` and its `Prior`, leaves [B]. DESIGN 3.6; Henderson & Fehr (2023), eqs. 9-10.
`k0 = S K` counts the valid components (padding excluded), K draws each. Each term has two forms:

- `expected_count`, the published loss: components weighted by their expected counts, and a
  Dirichlet KL that sees the total pseudo-count only (the KL of two symmetric Dirichlets).
- `exact`: the KL of what `sample` really draws. A likelihood bound needs this one. A component
  with a pseudo-count of exactly zero is never drawn and leaves both densities.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nvib_jax.random import log_normalize
from nvib_jax.shapes import check_choice
from nvib_jax.special import (
    LOG_HUGE,
    expm1_minus,
    gained_share,
    relative_entropy,
    scaled_digamma_error,
    scaled_trigamma_error,
    stirling_error,
)
from nvib_jax.types import Posterior, Prior

FORMS = ("expected_count", "exact")


def kl_gaussian(
    posterior: Posterior, prior: Prior, *, num_samples: int = 1, form: str = "expected_count"
) -> jax.Array:
    """KL of the components' Gaussians.

        expected_count   k0/2 sum_i (alpha_i / alpha_0) sum_d [ ... ]_id
        exact             K/2 sum_i                     sum_d [ ... ]_id
        [ ... ] = s2/s2^p + (mu - mu^p)^2/s2^p - 1 - log(s2/s2^p)

    Args:
      posterior: S components.
      prior: the same the posterior was made with.
      num_samples: K, as given to `sample`.
      form: "expected_count" or "exact".

    Returns:
      float32 nats, shape (B,). The published loss divides by S D; this does not.

    Raises:
      ValueError: an unknown form, `num_samples < 1`, or shapes that do not fit.
    """
    _check(posterior, prior, num_samples, form)
    present, log_alpha = _present(posterior)
    # Chosen before the arithmetic: what is padded or empty must not reach a gradient as 0 * inf.
    mean, log_variance = (
        jnp.where(present[..., None], a.astype(jnp.float32), b)
        for a, b in ((posterior.mean, prior.mean), (posterior.log_variance, prior.log_variance))
    )
    distance = jnp.square(mean - prior.mean) * jnp.exp(-prior.log_variance)
    each = 0.5 * jnp.sum(expm1_minus(log_variance - prior.log_variance) + distance, axis=-1)
    if form == "exact":
        return num_samples * jnp.sum(each, axis=-1)
    _, count = prior_atom(posterior, prior, num_samples)
    return count * jnp.sum(jnp.exp(log_normalize(log_alpha, present)) * each, axis=-1)


def kl_dirichlet(
    posterior: Posterior, prior: Prior, *, num_samples: int = 1, form: str = "expected_count"
) -> jax.Array:
    """KL of the weights, `q = sum_i alpha_i` against `p = alpha_0^p + alpha_delta n`.

        expected_count   KL( Dir(q/k0, k0 times)            || Dir(p/k0, k0 times) )
        exact            KL( Dir(alpha_i/K, each K times)   || Dir(p/k0, as often) )

    Args:
      posterior: S components.
      prior: the same the posterior was made with.
      num_samples: K, as given to `sample`.
      form: "expected_count" or "exact".

    Returns:
      float32 nats, shape (B,). For totals of 1e-3 to 1e8 it is within 1e-5 relative + 1e-6 per
      atom of the truth, and its gradient by log_alpha within that of its largest entry.

    Raises:
      ValueError: an unknown form, `num_samples < 1`, or shapes that do not fit.
    """
    _check(posterior, prior, num_samples, form)
    present, log_alpha = _present(posterior)
    log_b, count = prior_atom(posterior, prior, num_samples)
    if form == "exact":
        return _kl_dirichlet(log_alpha, jnp.full_like(count, num_samples), log_b, present)
    log_q = jax.nn.logsumexp(log_alpha, axis=-1, where=present, keepdims=True)
    return _kl_dirichlet(log_q, count, log_b, jnp.ones_like(log_q, bool))


def prior_atom(posterior: Posterior, prior: Prior, num_samples: int) -> tuple[jax.Array, jax.Array]:
    """`log(p/k0)`, the prior's log pseudo-count of one atom, and `k0`: float32, shape (B,) each."""
    tokens = jnp.sum(posterior.mask[:, 1:], axis=-1)
    count = num_samples * (tokens + 1).astype(jnp.float32)
    return prior.log_total(tokens) - jnp.log(count), count


@dataclass(frozen=True)
class _Pair:
    """Dir(a) and Dir(b) as both the KL and its derivative read them.

    `alpha_i` is split over `times` atoms, a_i = alpha_i / times; b is the same for all n of them.
    `log_a`, `present` and `times` (0 where absent) have shape (B, S), the rest (B, 1).
    """

    log_a: jax.Array
    log_b: jax.Array
    log_a0: jax.Array
    log_b0: jax.Array
    times: jax.Array
    share_b: jax.Array  # log(b/b0)
    change: jax.Array  # log(a_i/a0) - log(b/b0)

    @classmethod
    def of(
        cls, log_alpha: jax.Array, split: jax.Array, log_b: jax.Array, present: jax.Array
    ) -> "_Pair":
        split, log_b = split[:, None], log_b[:, None]
        times = jnp.where(present, split, 0.0)
        log_n = jnp.log(jnp.sum(times, axis=-1, keepdims=True))
        log_a0 = jax.nn.logsumexp(log_alpha, axis=-1, where=present, keepdims=True)
        log_mean = log_a0 - log_n + jnp.log(split)
        log_alpha = jnp.where(present, log_alpha, log_mean)  # exp() of what is absent is not inf
        return cls(
            log_a=log_alpha - jnp.log(split),
            log_b=log_b,
            log_a0=log_a0,
            log_b0=log_b + log_n,
            times=times,
            share_b=-log_n,
            # In one subtraction, exact where it is small: b0 = 1e8 times its error must not count.
            change=log_alpha - log_mean,
        )


@jax.custom_jvp
def _kl_dirichlet(
    log_alpha: jax.Array, split: jax.Array, log_b: jax.Array, present: jax.Array
) -> jax.Array:
    """`KL(Dir(a) || Dir(b))`, shape (B,), of what `_Pair` describes.

    The textbook formula, lgG(a0) - sum lgG(a_i) - ... + sum (a_i - b)(psi(a_i) - psi(a0)),
    subtracts numbers of size a0 log a0 to leave one of size log a0. Written with Stirling's error
    rho and x eta(x) = x (psi(x) - log x), all a log a terms cancel on paper instead:

        h(a) - h(b) + b0 KL(b/b0 || a/a0) + sum (1 - b/a_i)(a_i eta(a_i) - a_i/a0 a0 eta(a0))
    """
    d = _Pair.of(log_alpha, split, log_b, present)
    eta = scaled_digamma_error(d.log_a) - jnp.exp(d.log_a - d.log_a0) * scaled_digamma_error(
        d.log_a0
    )
    moved = jnp.sum(d.times * -jnp.expm1(_capped(d.log_b - d.log_a)) * eta, axis=-1)
    gap = log_beta_gap(d.log_a, d.log_b, d.log_a0, d.log_b0, d.times)
    return gap + _b0(d) * relative_entropy(d.share_b, d.change, d.times) + moved


@_kl_dirichlet.defjvp
def _kl_dirichlet_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """By log alpha_i and by log b, with v(x) = x^2 psi'(x) - x:

        times [ (1 - b/a_i) v(a_i) - a_i/a0 (1 - b0/a0) v(a0) + b0 (a_i/a0 - b/b0) ]
        b0 KL(b/b0 || a/a0) + sum [ b eta(b) - b eta(a_i) ] - b0 eta(b0) + b0 eta(a0)

    Autodiff would reach a_i through a0 too, where one large b/a_i drowns the other atoms.
    """
    log_alpha_dot, _, log_b_dot, _ = tangents
    d = _Pair.of(*primals)
    each, whole = _capped(d.log_b - d.log_a), _capped(d.log_b0 - d.log_a0)
    curve = jnp.exp(d.log_a - d.log_a0) * jnp.expm1(whole) * scaled_trigamma_error(d.log_a0)
    curve = curve - jnp.expm1(each) * scaled_trigamma_error(d.log_a)
    by_alpha = d.times * curve + _b0(d)[:, None] * gained_share(d.share_b, d.change, d.times)

    def b_eta(log_b: jax.Array, log_a: jax.Array, log_ratio: jax.Array) -> jax.Array:
        return scaled_digamma_error(log_b) - jnp.exp(log_ratio) * scaled_digamma_error(log_a)

    by_b = _b0(d) * relative_entropy(d.share_b, d.change, d.times)
    by_b = by_b + jnp.sum(d.times * b_eta(d.log_b, d.log_a, each), axis=-1)
    by_b = by_b - b_eta(d.log_b0, d.log_a0, whole)[:, 0]
    return _kl_dirichlet(*primals), jnp.sum(by_alpha * log_alpha_dot, axis=-1) + by_b * log_b_dot


def log_beta_gap(
    log_a: jax.Array, log_b: jax.Array, log_a0: jax.Array, log_b0: jax.Array, times: jax.Array
) -> jax.Array:
    """`h(a) - h(b)`, shape (B,): a ratio of Dirichlet normalisers without its a log a terms.

        h(a) = log Gamma(a0) - sum log Gamma(a_i) + sum a_i log(a_i/a0) + (n - 1)/2 log 2 pi
             = rho(a0) - 1/2 log a0 - sum [ rho(a_i) - 1/2 log a_i ]

    Args:
      log_a: shape (B, S).
      log_b: broadcasts to it.
      log_a0: shape (B, 1).
      log_b0: shape (B, 1).
      times: shape (B, S), for how many atoms entry i stands.
    """
    atoms = 0.5 * (log_a - log_b) - (stirling_error(log_a) - stirling_error(log_b))
    whole = 0.5 * (log_a0 - log_b0) - (stirling_error(log_a0) - stirling_error(log_b0))
    return jnp.sum(times * atoms, axis=-1) - whole[:, 0]


def _b0(d: _Pair) -> jax.Array:
    return jnp.exp(_capped(d.log_b0))[:, 0]


def _capped(log_x: jax.Array) -> jax.Array:
    return jnp.minimum(log_x, LOG_HUGE)


def _present(posterior: Posterior) -> tuple[jax.Array, jax.Array]:
    """Which components have a pseudo-count, and its log in float32, 0 where there is none."""
    present = posterior.mask & ~jnp.isneginf(posterior.log_alpha)
    return present, jnp.where(present, posterior.log_alpha, 0.0).astype(jnp.float32)


def _check(posterior: Posterior, prior: Prior, num_samples: int, form: str) -> None:
    check_choice("form", form, FORMS)
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; wanted at least 1")
    width = posterior.check()["D"]
    if prior.mean.shape != (width,):
        raise ValueError(f"prior.mean has shape {prior.mean.shape}; wanted [D] = ({width},)")
