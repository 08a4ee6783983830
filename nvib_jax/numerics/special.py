"""Special functions of a *log* argument, accurate in float32 from exp(-80) to exp(300).

The functions take `log x` and return a function of x that is finite even if `exp(log x)` would
overflow. Above x = 4 the asymptotic series is exact to float32. Below, the recurrence is used to
get above 4, and the pole at 0 is a separate term. Derivatives are given in closed form, because
autodiff through the branches would be neither finite nor accurate.
"""

import jax
import jax.numpy as jnp

LOG_TINY = -80.0  # smaller log x are raised to this, so that 1/x still fits in float32
LOG_HUGE = 80.0  # larger logs are lowered to this before exp(), which would overflow
_LOG_SPLIT = 1.3862943611198906  # log 4
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132)
_TRIGAMMA = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66)


def _split(log_x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(whether x > 4, log x if not else log 4, 1/x if so else 1/4), all of which are finite."""
    log_x = jnp.maximum(log_x, LOG_TINY)
    large = log_x > _LOG_SPLIT
    return (
        large,
        jnp.where(large, _LOG_SPLIT, log_x),
        jnp.exp(-jnp.where(large, log_x, _LOG_SPLIT)),
    )


def _odd_series(y: jax.Array, *coefficients: float) -> jax.Array:
    """`c_0 y + c_1 y^3 + c_2 y^5 + ...`."""
    total = jnp.zeros_like(y)
    for c in reversed(coefficients):
        total = total * (y * y) + c
    return total * y


@jax.custom_jvp
def stirling_error(log_x: jax.Array) -> jax.Array:
    """`rho(x) = log Gamma(x) - ((x - 1/2) log x - x + 1/2 log 2 pi)`; large x: 1/(12 x)."""
    large, log_small, inv = _split(log_x)
    x = jnp.exp(log_small)
    series = _odd_series(inv, *_STIRLING)
    # rho(x) = rho(x + 1) + (x + 1/2) log(1 + 1/x) - 1 is applied four times. All terms are small.
    # jax's gammaln is not used, because its error of 1e-6 is too large in sums of thousands.
    direct = _odd_series(1 / (4 + x), *_STIRLING)
    direct = direct + (x + 0.5) * (jnp.log1p(x) - log_small) - 1
    for j in (1, 2, 3):
        direct = direct + (x + (j + 0.5)) * jnp.log1p(1 / (x + j)) - 1
    return jnp.where(large, series, direct)


@jax.custom_jvp
def scaled_digamma_error(log_x: jax.Array) -> jax.Array:
    """`x (psi(x) - log x)`, -1 at x = 0 and -1/2 at infinity, without subtracting large numbers."""
    large, log_small, inv = _split(log_x)
    x = jnp.exp(log_small)
    # psi(1 + x) comes from psi(4 + x) by the recurrence, so that all terms are small.
    above = 1 / (4 + x)
    gap = jnp.log(4 + x) - log_small - above * (0.5 + _odd_series(above, *_DIGAMMA))
    gap = gap - sum(1 / (x + j) for j in (1, 2, 3))
    return jnp.where(large, -0.5 - _odd_series(inv, *_DIGAMMA), x * gap - 1)


def scaled_trigamma_error(log_x: jax.Array) -> jax.Array:
    """`x (x psi'(x) - 1)`: 1 at x = 0, 1/2 at infinity."""
    large, log_small, inv = _split(log_x)
    x = jnp.exp(log_small)
    series = 0.5 + _odd_series(inv, *_TRIGAMMA)
    # psi'(1 + x) comes from psi'(4 + x) by the recurrence, because jax's polygamma is 20 times less
    # accurate.
    above = 1 / (4 + x)
    trigamma = above * (1 + above * (0.5 + _odd_series(above, *_TRIGAMMA)))
    trigamma = trigamma + sum((1 + x + j) ** -2 for j in range(3))
    return jnp.where(large, series, 1 + x * (x * trigamma - 1))


def digamma_of_exp(log_x: jax.Array) -> jax.Array:
    """`psi(x)`; about log x when large, -1/x when small (finite down to log x = -80)."""
    return log_x + scaled_digamma_error(log_x) * jnp.exp(-jnp.maximum(log_x, LOG_TINY))


stirling_error.defjvps(lambda g, _, log_x: g * (scaled_digamma_error(log_x) + 0.5))
scaled_digamma_error.defjvps(lambda g, y, log_x: g * (y + scaled_trigamma_error(log_x)))


def expm1_minus(x: jax.Array) -> jax.Array:
    """`exp(x) - 1 - x`, about x^2/2; for small x by a series, because expm1(x) - x cancels."""
    small = jnp.abs(x) < 0.5
    y = jnp.where(small, x, 0.0)
    series = 1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7 * (1 + y / 8)))))
    return jnp.where(small, 0.5 * y * y * series, jnp.expm1(x) - x)


def _minus_log1p(x: jax.Array) -> jax.Array:
    """`x - log(1 + x)`, about x^2/2; for small x by a series, because the difference cancels."""
    small = jnp.abs(x) < 1e-2
    y = jnp.where(small, x, 0.0)
    series = 0.5 - y * (1 / 3 - y * (1 / 4 - y * (1 / 5 - y / 6)))
    return jnp.where(small, y * y * series, x - jnp.log1p(x))


@jax.custom_jvp
def relative_entropy(log_share: jax.Array, change: jax.Array, times: jax.Array) -> jax.Array:
    """`KL(s || s e^c / Z) = log Z - sum s c`, `Z = sum s e^c`, over the last axis.

    The KL is later multiplied by pseudo-counts of up to 1e8, so a rounding error in `change` must
    not enter it in first order. It does not, because every term below is of second order in it (Z
    differs from 1 by rounding only).

    Args:
      log_share: log s; the shares sum to one, where entry i stands for `times_i` equal shares.
      change: c.
      times: how many shares an entry stands for. 0 removes it; its log_share and change must still
        be finite and below 80.
    """
    share = times * jnp.exp(log_share)
    large = change > 1.0  # here e^c may overflow, but s e^c, which is a share, does not
    curved = share * expm1_minus(jnp.where(large, 0.0, change))
    direct = times * jnp.exp(log_share + change) - share * (1 + change)
    gained = jnp.sum(_gained(log_share, change, times), axis=-1)
    return jnp.sum(jnp.where(large, direct, curved), axis=-1) - _minus_log1p(gained)


def _gained(log_share: jax.Array, change: jax.Array, times: jax.Array) -> jax.Array:
    """`s e^c - s`, with a small error relative to itself and not only relative to s."""
    share, large = times * jnp.exp(log_share), change > 1.0
    small = share * jnp.expm1(jnp.where(large, 0.0, change))
    return jnp.where(large, times * jnp.exp(log_share + change) - share, small)


def gained_share(log_share: jax.Array, change: jax.Array, times: jax.Array) -> jax.Array:
    """`s e^c / Z - s`, the derivative of `relative_entropy` by c."""
    log_z = jnp.log1p(jnp.sum(_gained(log_share, change, times), axis=-1, keepdims=True))
    return _gained(log_share, change - log_z, times)


@relative_entropy.defjvp
def _relative_entropy_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    log_share, change, times = primals
    log_share_dot, change_dot, _ = tangents
    share = times * jnp.exp(log_share)
    gained = gained_share(log_share, change, times)
    tangent = gained * change_dot + (gained + share - share * change) * log_share_dot
    return relative_entropy(*primals), jnp.sum(tangent, axis=-1)
