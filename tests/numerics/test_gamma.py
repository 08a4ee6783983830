"""The gamma quantile map against scipy and mpmath, and the table against the fit that made it.

No test here draws anything: the map is deterministic.
"""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import special, stats

from nvib_jax.numerics.gamma import _TABLE, LOG_SMALLEST_SHAPE, log_quantile

REACH = 5.3  # of a normal made of a float32 uniform: Phi^-1(2^-24)
SHAPES = (2.0, 2.1, 2.5, 3.0, 5.0, 12.0, 40.0, 300.0)


def log_ratio(a, normal):
    """log(x / a) of the quantile x, in float64; each tail from its own side."""
    below = special.gammaincinv(a, special.ndtr(normal))
    above = special.gammainccinv(a, special.ndtr(-normal))
    return np.log(np.where(normal < 0, below, above) / a)


@jax.jit
def value_and_slope(log_shape, normal):
    """The float32 map and its derivative by log_shape."""
    one = jnp.ones_like(log_shape)
    return jax.jvp(lambda a: log_quantile(a, normal), (log_shape,), (one,))


def mapped(a, normal):
    """(the shape that the float32 logarithm really names, value, slope), in float64."""
    log_shape = np.full(np.shape(normal), np.log(a), np.float32)
    y, slope = value_and_slope(log_shape, np.float32(normal))
    return np.exp(np.float64(log_shape)), np.float64(y), np.float64(slope)


@pytest.mark.parametrize("a", SHAPES)
def test_quantile_against_scipy(a):
    """Put back through scipy's cdf: 3e-5 in the normal, 1.2e-7 in probability, and rounding."""
    normal = np.float64(np.linspace(-REACH, REACH, 1001, dtype=np.float32))
    shape, y, _ = mapped(a, normal)
    x = np.exp(y)
    lower = special.ndtri(special.gammainc(shape, x))
    upper = -special.ndtri(special.gammaincc(shape, x))
    error = np.abs(np.where(normal < 0, lower, upper) - normal)
    rounding = 1.2e-7 * (1 + np.abs(y)) * np.sqrt(a)  # 2 ulp of log x, in standard deviations
    assert np.all(error < 3e-5 + rounding)
    density = stats.norm.pdf(normal)
    assert np.all(error * density < 1.2e-7 + density * rounding)


@pytest.mark.parametrize(("a", "normal"), [(2.0, -5.0), (2.0, 0.0), (2.5, 4.0), (30.0, -1.0)])
def test_quantile_against_mpmath(a, normal):
    shape, y, _ = mapped(a, normal)
    got = mp.gammainc(float(shape), 0, mp.exp(float(y)), regularized=True)
    want = mp.ncdf(normal)
    assert abs(got - want) < 2e-4 * min(want, 1 - want)


@pytest.mark.parametrize("a", SHAPES)
def test_slope_is_the_implicit_gradient(a):
    """-(dF/d log a) / (x pdf): 1e-5 within 2 standard deviations, 1e-4 within 4."""
    normal = np.linspace(-4, 4, 9)
    shape, _, slope = mapped(a, normal)
    for i, n in enumerate(normal):
        s, x = mp.mpf(shape[i]), mp.mpf(shape[i] * np.exp(log_ratio(shape[i], n)))
        by_shape = mp.diff(lambda t, x=x: mp.gammainc(t, 0, x, regularized=True), s)
        want = -by_shape * s / (mp.exp(s * mp.log(x) - x) / mp.gamma(s))
        assert abs(slope[i] / float(want) - 1) < (1e-5 if abs(n) <= 2 else 1e-4), n


def test_huge_shapes():
    """log x = log a + normal/sqrt(a), with slope 1, where exp(log a) overflows."""
    log_shape = jnp.float32([30.0, 88.0, 300.0])
    for n in (-REACH, 0.0, REACH):
        y, slope = value_and_slope(log_shape, jnp.full(3, n, jnp.float32))
        np.testing.assert_allclose(y, log_shape, rtol=1e-6)
        np.testing.assert_allclose(slope, 1.0, rtol=2e-6)


# The recipe of the table. Its weights want the error small in the normal, the more so where the
# normal often is.


def powers(normal, root):
    """Every `eta_0^i a^-j` of the table but the first two, which are known: 0 and eta_0."""
    eta_0 = normal * root
    terms = [(i, j) for j, row in enumerate(_TABLE) for i in range(len(row))]
    return np.stack([eta_0**i * root ** (2 * j) for i, j in terms[2:]], -1)


def chebyshev(count):
    return np.cos(np.pi * (np.arange(count) + 0.5) / count)


def fit_table():
    largest = np.exp(-0.5 * LOG_SMALLEST_SHAPE)
    root = np.maximum(0.5 + 0.5 * chebyshev(21), 0.02) * largest
    normal, root = (g.ravel() for g in np.meshgrid(5.35 * chebyshev(61), root))
    a, step = root**-2, 1e-4
    slope = (log_ratio(a, normal + step) - log_ratio(a, normal - step)) / (2 * step)
    weight = np.maximum(stats.norm.pdf(normal), 3e-3) / slope
    columns = powers(normal, root) * weight[:, None]
    scale = np.abs(columns).max(0)
    target = (log_ratio(a, normal) - normal * root) * weight
    return np.linalg.lstsq(columns / scale, target, rcond=1e-15)[0] / scale


def test_table_is_the_fit():
    """As functions: single numbers of an ill-conditioned fit may differ."""
    assert _TABLE[0][:2] == (0.0, 1.0)
    table = np.concatenate([np.array(row) for row in _TABLE])[2:]
    largest = np.exp(-0.5 * LOG_SMALLEST_SHAPE)
    normal, root = np.meshgrid(np.linspace(-REACH, REACH, 31), np.linspace(0.01, 1, 9) * largest)
    basis = powers(normal, root)
    np.testing.assert_allclose(basis @ table, basis @ fit_table(), rtol=0, atol=1e-6)


def test_table_begins_with_temmes_series():
    """log lambda = eta - eta^2/6 + eta^3/36 - eta^4/270 + ..., and eps_1(0) = -1/3."""
    np.testing.assert_allclose(_TABLE[0][2:5], [-1 / 6, 1 / 36, -1 / 270], rtol=1e-3)
    np.testing.assert_allclose(_TABLE[1][0], -1 / 3, rtol=1e-5)
