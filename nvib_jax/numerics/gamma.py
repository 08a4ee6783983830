"""The quantile function of the gamma distribution, as a smooth function of a standard normal.

It takes a log shape (at least log 2) and a normal deviate, and returns log x such that
`P(shape, x) = Phi(normal)`, where P is the regularised incomplete gamma function. With `a` the
shape and `lambda = x / a`, Temme's expansion is

    1/2 eta^2 = lambda - 1 - log lambda,    sign(eta) = sign(lambda - 1)
    eta = eta_0 + eps_1(eta_0)/a + eps_2(eta_0)/a^2 + ...,    eta_0 = normal / sqrt(a)

so `log lambda` is a power series in 1/a whose coefficients are smooth functions of eta_0. Here the
series is cut off after `a^-4` and the functions are polynomials, which leaves a table of numbers.

Source: N. M. Temme, Asymptotic inversion of incomplete gamma functions, Mathematics of Computation
58 (1992). The table is our own, the least-squares fit of tests/numerics/test_gamma.py. For every
a >= 2 and |normal| < 5.3, which is as far as a float32 uniform reaches, its error is at most 3e-5
in the normal and 1e-7 in probability. The derivative by log a has a relative error of 1e-5 (1e-4
beyond two standard deviations).
"""

import jax
import jax.numpy as jnp

LOG_SMALLEST_SHAPE = 0.6931471805599453  # log 2

# log lambda = sum_ij _TABLE[j][i] eta_0^i a^-j. Row 0 is eta - eta^2/6 + eta^3/36 - eta^4/270 + ...
# fmt: off
_TABLE = (
    (0.0, 1.0, -0.16666759, 0.027774959, -0.0037045805, 0.00023884327, 5.7687451e-05,
     -2.947331e-05, 5.9923445e-06, 5.173651e-07, -4.4727703e-07, 1.0415469e-08, 1.4209552e-08,
     -3.1860541e-10, -2.0532739e-10),
    (-0.33333204, 0.13889099, -0.036375616, 0.0059602341, -0.00012947592, -0.00031339009,
     0.000122558, -1.6346842e-05, -5.7638672e-06, 2.7641798e-06, -6.8550132e-08, -6.0485475e-08,
     4.8038737e-09),
    (-0.035846185, 0.01542679, -0.0023820588, -0.00089599864, 0.00088769376, -0.00027854965,
     1.8582674e-05, 8.6312708e-06, -3.5148817e-06, -1.3710497e-06, 1.9049788e-07),
    (0.0017903666, -0.0031254213, 0.003298008, -0.001241932, -0.00052942051, 0.00036176725,
     -5.22624e-05, 1.7986197e-05, 1.6087733e-06),
    (0.0010570619, -0.00021689736, -0.0014401106, 0.00077970355, 0.00053700643, -0.00030627168,
     -7.6263954e-06),
)
# fmt: on


def _horner(coefficients: tuple, x: jax.Array) -> jax.Array:
    """`c_0 + c_1 x + c_2 x^2 + ...`; the coefficients are numbers or arrays."""
    total = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def log_quantile(log_shape: jax.Array, normal: jax.Array) -> jax.Array:
    """The `Phi(normal)` quantile of `log x`, `x ~ Gamma(exp(log_shape), 1)`.

    It and its derivatives are smooth and finite up to log_shape = 300, where it equals log_shape.

    Args:
      log_shape: log of the shape parameter, at least `LOG_SMALLEST_SHAPE`.
      normal: standard normal deviates within 5.3, the shape of `log_shape`.

    Returns:
      float32, the shape of `log_shape`.

    Source: Temme (1992), see above.
    """
    root = jnp.exp(-0.5 * log_shape)  # a^-1/2
    eta_0 = normal * root
    return log_shape + _horner(tuple(_horner(row, eta_0) for row in _TABLE), root * root)
