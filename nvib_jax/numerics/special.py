"""Special functions of a *log* argument, accurate in float32 from exp(-80) to exp(300).

Enters `log x`, leaves a function of x that stays finite where `exp(log x)` would overflow. Above
x = 4 the asymptotic series is exact to float32; below it the recurrence leads there, with the pole
at 0 written out. Derivatives are closed forms: what autodiff makes of the branches is neither
finite nor accurate.
"""

import jax
import jax.numpy as jnp

LOG_TINY = -80.0  # below, x is as good as 0 and 1/x still fits float32
LOG_HUGE = 80.0  # likewise: exp() of anything more is capped here
_LOG_SPLIT = 1.3862943611198906  # log 4
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132)
_TRIGAMMA = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66)


def _split(log_x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(is x large, log x where small else log 4, 1/x where large else 1/4): all stay finite."""
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
    # rho(x) = rho(x + 1) + (x + 1/2) log(1 + 1/x) - 1, four times: every term is small, while
    # jax's gammaln errs by 1e-6, too much for a sum over thousands of atoms.
    direct = _odd_series(1 / (4 + x), *_STIRLING)
    direct = direct + (x + 0.5) * (jnp.log1p(x) - log_small) - 1
    for j in (1, 2, 3):
        direct = direct + (x + (j + 0.5)) * jnp.log1p(1 / (x + j)) - 1
    return jnp.where(large, series, direct)


@jax.custom_jvp
def scaled_digamma_error(log_x: jax.Array) -> jax.Array:
    """`x (psi(x) - log x)`: -1 at x = 0, -1/2 at infinity, never a difference of large numbers."""
    large, log_small, inv = _split(log_x)
    x = jnp.exp(log_small)
    # psi(1 + x) by recurrence up to 4 + x, for the same reason.
    above = 1 / (4 + x)
    gap = jnp.log(4 + x) - log_small - above * (0.5 + _odd_series(above, *_DIGAMMA))
    gap = gap - sum(1 / (x + j) for j in (1, 2, 3))
    return jnp.where(large, -0.5 - _odd_series(inv, *_DIGAMMA), x * gap - 1)


def scaled_trigamma_error(log_x: jax.Array) -> jax.Array:
    """`x (x psi'(x) - 1)`: 1 at x = 0, 1/2 at infinity."""
    large, log_small, inv = _split(log_x)
    x = jnp.exp(log_small)
    series = 0.5 + _odd_series(inv, *_TRIGAMMA)
    # psi'(1 + x) by recurrence up to 4 + x; jax's polygamma is 20 times less accurate.
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
    """`exp(x) - 1 - x`, about x^2/2: the difference of two numbers of size x is never taken."""
    small = jnp.abs(x) < 0.5
    y = jnp.where(small, x, 0.0)
    series = 1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7 * (1 + y / 8)))))
    return jnp.where(small, 0.5 * y * y * series, jnp.expm1(x) - x)


def _minus_log1p(x: jax.Array) -> jax.Array:
    """`x - log(1 + x)`, about x^2/2."""
    small = jnp.abs(x) < 1e-2
    y = jnp.where(small, x, 0.0)
    series = 0.5 - y * (1 / 3 - y * (1 / 4 - y * (1 / 5 - y / 6)))
    return jnp.where(small, y * y * series, x - jnp.log1p(x))


@jax.custom_jvp
def relative_entropy(log_share: jax.Array, change: jax.Array, times: jax.Array) -> jax.Array:
    """`KL(s || s e^c / Z) = log Z - sum s c`, `Z = sum s e^c`, over the last axis.

    It must be right even multiplied by a pseudo-count of 1e8, so the rounding of `change` may not
    enter in first order. It does not: every term below is of second order, for Z is 1 but for it.

    Args:
      log_share: log s; the shares sum to one, entry i standing for `times_i` of them.
      change: c.
      times: 0 removes an entry, whose log_share and change need only be finite and below 80.
    """
    share = times * jnp.exp(log_share)
    large = change > 1.0  # there c may overflow exp(), but s e^c, a share, does not
    curved = share * expm1_minus(jnp.where(large, 0.0, change))
    direct = times * jnp.exp(log_share + change) - share * (1 + change)
    gained = jnp.sum(_gained(log_share, change, times), axis=-1)
    return jnp.sum(jnp.where(large, direct, curved), axis=-1) - _minus_log1p(gained)


def _gained(log_share: jax.Array, change: jax.Array, times: jax.Array) -> jax.Array:
    """`s e^c - s`, relative to itself and not to s."""
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
