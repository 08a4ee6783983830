"""Dirichlets of extreme pseudo-counts in float32: their KL, its derivative, a ratio of densities.

The functions take log pseudo-counts, with totals from 1e-3 to 1e8, and return nats. The textbook
formulas subtract numbers of size a0 log a0 to obtain one of size log a0; here those terms have been
cancelled on paper. `kl.py` and `objective` say what is computed, this file says how.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nvib_jax.numerics.special import (
    LOG_HUGE,
    gained_share,
    relative_entropy,
    scaled_digamma_error,
    scaled_trigamma_error,
    stirling_error,
)


@dataclass(frozen=True)
class _Pair:
    """Dir(a) and Dir(b), with the quantities that the KL and its derivative share.

    `alpha_i` is split over `times` atoms, a_i = alpha_i / times; b is the same for all n atoms.
    `log_a`, `change` and `times` (0 where not present) have shape (B, S), the rest (B, 1).
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
        # Entries that are not present get the mean, so that no exp() of them overflows.
        log_alpha = jnp.where(present, log_alpha, log_mean)
        return cls(
            log_a=log_alpha - jnp.log(split),
            log_b=log_b,
            log_a0=log_a0,
            log_b0=log_b + log_n,
            times=times,
            share_b=-log_n,
            # It is one subtraction, which is exact if the result is small, because its error will
            # be multiplied by b0, up to 1e8.
            change=log_alpha - log_mean,
        )

    def of_several(self, x: jax.Array) -> jax.Array:
        """x (B,), but 0 for rows with a single atom, whose weight is 1 under both Dirichlets."""
        return jnp.where(_alone(self.times, self.log_a0), 0.0, x)


@jax.custom_jvp
def kl(log_alpha: jax.Array, split: jax.Array, log_b: jax.Array, present: jax.Array) -> jax.Array:
    """`KL(Dir(a) || Dir(b))`, shape (B,), where `_Pair` defines a and b.

    The textbook formula, lgG(a0) - sum lgG(a_i) - ... + sum (a_i - b)(psi(a_i) - psi(a0)),
    subtracts numbers of size a0 log a0 to obtain one of size log a0. Written with Stirling's error
    rho and x eta(x) = x (psi(x) - log x), all terms a log a cancel on paper:

        h(a) - h(b) + b0 KL(b/b0 || a/a0) + sum (1 - b/a_i)(a_i eta(a_i) - a_i/a0 a0 eta(a0))
    """
    d = _Pair.of(log_alpha, split, log_b, present)
    eta = scaled_digamma_error(d.log_a) - jnp.exp(d.log_a - d.log_a0) * scaled_digamma_error(
        d.log_a0
    )
    moved = jnp.sum(d.times * -jnp.expm1(_capped(d.log_b - d.log_a)) * eta, axis=-1)
    gap = log_beta_gap(d.log_a, d.log_b, d.log_a0, d.log_b0, d.times)
    return d.of_several(gap + _b0(d) * relative_entropy(d.share_b, d.change, d.times) + moved)


@kl.defjvp
def _jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """The derivatives by log alpha_i and by log b, with v(x) = x^2 psi'(x) - x:

        times [ (1 - b/a_i) v(a_i) - a_i/a0 (1 - b0/a0) v(a0) + b0 (a_i/a0 - b/b0) ]
        b0 KL(b/b0 || a/a0) + sum [ b eta(b) - b eta(a_i) ] - b0 eta(b0) + b0 eta(a0)

    Autodiff is not used, because it would add the derivative through a0, where one large b/a_i
    makes the rounding error larger than the contribution of the other atoms.
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
    tangent = jnp.sum(by_alpha * log_alpha_dot, axis=-1) + by_b * log_b_dot
    return kl(*primals), d.of_several(tangent)


def log_beta_gap(
    log_a: jax.Array, log_b: jax.Array, log_a0: jax.Array, log_b0: jax.Array, times: jax.Array
) -> jax.Array:
    """`h(a) - h(b)`, shape (B,): a ratio of Dirichlet normalisers without its terms a log a.

        h(a) = log Gamma(a0) - sum log Gamma(a_i) + sum a_i log(a_i/a0) + (n - 1)/2 log 2 pi
             = rho(a0) - 1/2 log a0 - sum [ rho(a_i) - 1/2 log a_i ]

    Args:
      log_a: shape (B, S).
      log_b: broadcasts to (B, S).
      log_a0: shape (B, 1).
      log_b0: shape (B, 1).
      times: shape (B, S), how many atoms entry i stands for.
    """
    atoms = 0.5 * (log_a - log_b) - (stirling_error(log_a) - stirling_error(log_b))
    whole = 0.5 * (log_a0 - log_b0) - (stirling_error(log_a0) - stirling_error(log_b0))
    return jnp.sum(times * atoms, axis=-1) - whole[:, 0]


def _alone(times: jax.Array, log_a0: jax.Array) -> jax.Array:
    """Which rows have a single atom, (B,), except rows with NaN, which must not become 0."""
    return (jnp.sum(times, axis=-1) == 1) & ~jnp.isnan(log_a0[:, 0])


def _b0(d: _Pair) -> jax.Array:
    return jnp.exp(_capped(d.log_b0))[:, 0]


def _capped(log_x: jax.Array) -> jax.Array:
    return jnp.minimum(log_x, LOG_HUGE)


def log_density_ratio(
    log_pi: jax.Array, log_a: jax.Array, log_b: jax.Array, valid: jax.Array
) -> jax.Array:
    """`log Dir(pi; b) - log Dir(pi; a)` over the valid entries, shape (B,).

        log Dir(pi; a) = h(a) - a0 KL(a/a0 || pi) + a term that cancels

    with `log_beta_gap`'s h. It is not a sum of a_i log pi_i, because at a0 = 1e6 rounding would
    destroy the result.
    """
    times = valid.astype(jnp.float32)
    log_a0 = jax.nn.logsumexp(log_a, axis=-1, keepdims=True, where=valid)
    log_n = jnp.log(jnp.sum(times, axis=-1, keepdims=True))
    log_a = jnp.where(valid, log_a, log_a0)

    def misfit(log_share: jax.Array, log_total: jax.Array) -> jax.Array:
        total = jnp.exp(jnp.minimum(log_total, LOG_HUGE))[:, 0]
        return total * relative_entropy(log_share, log_pi - log_share, times)

    b_share = jnp.broadcast_to(-log_n, log_pi.shape)
    gap = log_beta_gap(log_a, log_b, log_a0, log_b + log_n, times)
    ratio = misfit(log_a - log_a0, log_a0) - misfit(b_share, log_b + log_n) - gap
    return jnp.where(_alone(times, log_a0), 0.0, ratio)
