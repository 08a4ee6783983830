"""Special functions of a *log* argument, accurate in float32 from exp(-80) to exp(300).

Enters `log x`, leaves a function of x that stays finite where `exp(log x)` would overflow. Above
x = 8 the asymptotic series is exact to float32; below it the library function is.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

_HALF_LOG_2PI = 0.9189385332046727
_LOG_SPLIT = 2.0794415416798357  # log 8
_LOG_TINY = -80.0  # below, x is as good as 0 and 1/x still fits float32


def split(log_x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(is x large, x where small else 8, 1/x where large else 1/8): both branches stay finite."""
    log_x = jnp.maximum(log_x, _LOG_TINY)
    large = log_x > _LOG_SPLIT
    return (
        large,
        jnp.exp(jnp.where(large, _LOG_SPLIT, log_x)),
        jnp.exp(-jnp.where(large, log_x, _LOG_SPLIT)),
    )


def stirling_error(log_x: jax.Array) -> jax.Array:
    """`rho(x) = log Gamma(x) - ((x - 1/2) log x - x + 1/2 log 2 pi)`, about 1/(12 x) for large x."""
    large, x, inv = split(log_x)
    inv2 = inv * inv
    series = inv * (1 / 12 - inv2 * (1 / 360 - inv2 * (1 / 1260 - inv2 / 1680)))
    direct = gammaln(x) - ((x - 0.5) * jnp.log(x) - x + _HALF_LOG_2PI)
    return jnp.where(large, series, direct)


def scaled_digamma_error(log_x: jax.Array) -> jax.Array:
    """`x (psi(x) - log x)`: -1 at x = 0, -1/2 at infinity, never a difference of large numbers."""
    large, x, inv = split(log_x)
    inv2 = inv * inv
    series = -0.5 - inv * (1 / 12 - inv2 * (1 / 120 - inv2 * (1 / 252 - inv2 / 240)))
    direct = x * (digamma(x) - jnp.log(x))
    return jnp.where(large, series, direct)


def digamma_of_exp(log_x: jax.Array) -> jax.Array:
    """`psi(x)`; about log x when large, -1/x when small (finite down to log x = -80)."""
    large, x, inv = split(log_x)
    inv2 = inv * inv
    series = log_x - inv * (0.5 + inv * (1 / 12 - inv2 * (1 / 120 - inv2 / 252)))
    return jnp.where(large, series, digamma(x))
