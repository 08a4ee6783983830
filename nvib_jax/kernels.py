"""A kernel between mixtures: how alike two sets of vectors are, without one vector for either.

The kernel of two mixtures P and Q is the mean of a Gaussian kernel over a point of each. It is an
inner product of the two mixtures (of their kernel mean embeddings), so it gives a similarity, a
maximum mean discrepancy, and a Gram matrix for whatever takes one.
"""

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_number, check_shapes, concrete, described
from nvib_jax.random import log_normalize
from nvib_jax.types import Mixture, typed


def log_kernel(a: Mixture, b: Mixture, bandwidth: float | jax.Array) -> jax.Array:
    """The log of the mean Gaussian kernel between each mixture of `a` and each of `b`.

        k(P, Q) = E exp(-|x - y|^2 / (2 h^2))                            x ~ P, y ~ Q
                = sum_ij pi_i rho_j prod_d h / c_ijd exp(-(mu_id - nu_jd)^2 / (2 c_ijd^2))
                                                       c_ijd^2 = S_id + T_jd + h^2

    It is symmetric and at most 1, which equal impulses reach. Divided by (2 pi h^2)^(D/2) it is the
    mean of the normal density N(x - y; 0, h^2 I). In many dimensions it is tiny, so it is computed
    and returned as its logarithm. Everything is differentiable, the bandwidth too.

    Args:
      a: mixtures with S_a components, shape (B_a, S_a, D); their weights are normalised first.
      b: mixtures with S_b components, shape (B_b, S_b, D).
      bandwidth: h > 0, shape (), in the units of the vectors. Impulses in D dimensions are apart by
        about sqrt(2 D) standard deviations, so h = sqrt(D) is a place to begin.

    Returns:
      float32, shape (B_a, B_b); -inf for a mixture without a component. It takes B_a B_b S_a S_b D
      multiplications; if the mixtures of one side are impulses, these are products of matrices.

    Raises:
      ValueError: the widths differ, `bandwidth` is not a number above 0, or what comes is no
        mixture.

    Source: Gretton, Borgwardt, Rasch, Schoelkopf & Smola (2012), "A kernel two-sample test", for
    the use; the integral is Gaussian.

    >>> def points(*places):
    ...     x = jnp.array(places)[None, :, None]
    ...     return Mixture(x, None, jnp.zeros(x.shape[:2]), jnp.ones(x.shape[:2], bool))
    >>> print(jnp.exp(log_kernel(points(0.0), points(0.0, 2.0), 1.0)))  # (1 + exp(-2)) / 2
    [[0.5677]]
    """
    a, b = _checked("a", a, bandwidth), _checked("b", b, bandwidth)
    check_shapes(**{"a.mean": (a.mean, "A S D"), "b.mean": (b.mean, "B T D")})
    return _log_kernel(a, b, bandwidth)


def log_self_kernel(mixture: Mixture, bandwidth: float | jax.Array) -> jax.Array:
    """The log kernel of each mixture with itself: the diagonal of `log_kernel`.

    Args:
      mixture: mixtures, shape (B, S, D).
      bandwidth: as in `log_kernel`.

    Returns:
      float32, shape (B,).

    Raises:
      ValueError: as `log_kernel`.

    >>> x = jnp.array([[[0.0], [2.0]]])
    >>> two = Mixture(x, None, jnp.zeros((1, 2)), jnp.ones((1, 2), bool))
    >>> print(jnp.exp(log_self_kernel(two, 1.0)))  # (2 + 2 exp(-2)) / 4
    [0.5677]
    """
    return _log_self_kernel(_checked("mixture", mixture, bandwidth), bandwidth)


def log_similarity(a: Mixture, b: Mixture, bandwidth: float | jax.Array) -> jax.Array:
    """The log of the cosine of two mixtures: `k(P, Q) / sqrt(k(P, P) k(Q, Q))`.

    Args:
      a: mixtures, shape (B_a, S_a, D).
      b: mixtures, shape (B_b, S_b, D).
      bandwidth: as in `log_kernel`.

    Returns:
      float32, shape (B_a, B_b): at most 0 but for rounding, and 0 for equal mixtures.

    Raises:
      ValueError: as `log_kernel`.

    >>> x = jnp.array([[[0.0], [2.0]], [[0.0], [0.0]]])
    >>> two = Mixture(x, None, jnp.zeros((2, 2)), jnp.ones((2, 2), bool))
    >>> print(jnp.exp(log_similarity(two, two, 1.0)))
    [[1.     0.7534]
     [0.7534 1.    ]]
    """
    ends = log_self_kernel(a, bandwidth)[:, None], log_self_kernel(b, bandwidth)[None]
    return log_kernel(a, b, bandwidth) - 0.5 * (ends[0] + ends[1])


def _checked(name: str, mixture: Mixture, bandwidth: float | jax.Array) -> Mixture:
    mixture = typed(name, mixture, Mixture)
    mixture.check()
    check_number("bandwidth", bandwidth, None)
    if jnp.ndim(bandwidth):
        raise ValueError(f"bandwidth is {described(bandwidth)}; wanted one number")
    known = concrete(bandwidth)
    if known is not None and not known > 0:
        raise ValueError(f"bandwidth is {known}; wanted more than 0")
    return mixture


@jax.jit
def _log_self_kernel(mixture: Mixture, bandwidth: jax.Array) -> jax.Array:
    def one(row: Mixture) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], row)
        return _log_kernel(alone, alone, bandwidth)[0, 0]

    return jax.vmap(one)(mixture)


@jax.jit
def _log_kernel(a: Mixture, b: Mixture, bandwidth: jax.Array) -> jax.Array:
    h2 = jnp.square(jnp.asarray(bandwidth, jnp.float32))
    if a.log_variance is None or b.log_variance is None:
        return _of_points(a, b, h2) if a.log_variance is None else _of_points(b, a, h2).T
    return _of_gaussians(a, b, h2)


def _of_points(a: Mixture, b: Mixture, h2: jax.Array) -> jax.Array:
    """`_log_kernel` if `a` has no variances: the square is multiplied out."""
    (x, _, log_pi), (y, variance, log_rho) = _filled(a), _filled(b)
    one, other = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    flat = (h2 / (variance + h2)).reshape(other.shape)

    # One product for both terms, and not two: jaxlib 0.10 fuses two for CPUs and, where `flat` is
    # one number broadcast, returns memory that nothing has written. Large terms cancel, so full
    # precision is asked for: a TPU's default is bfloat16.
    left = jnp.concatenate([jnp.square(one), one], axis=-1)
    right = jnp.concatenate([flat, -2 * other * flat], axis=-1)
    across = jnp.dot(left, right.T, precision=jax.lax.Precision.HIGHEST)
    square = jnp.maximum(across + jnp.sum(jnp.square(other) * flat, axis=-1)[None], 0.0)
    log_k = 0.5 * (jnp.sum(jnp.log(flat), axis=-1)[None] - square / h2)
    log_k = log_k.reshape(*log_pi.shape, *log_rho.shape)
    return _log_sum(log_k + log_pi[:, :, None, None] + log_rho[None, None], (1, 3))


def _of_gaussians(a: Mixture, b: Mixture, h2: jax.Array) -> jax.Array:
    """`_log_kernel` of components with variances, one component of `a` after the other.

    A square over the sum of two variances is no product of matrices.
    """
    (x, variance, log_pi), (y, other, log_rho) = _filled(a), _filled(b)

    # The gradient computes each component's terms again, because together they are S_a times as
    # large as the mixtures of a batch pair.
    @jax.checkpoint
    def component(_: None, part: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        mean, spread, log_weight = part
        ratio = h2 / (spread[:, None, None] + other[None] + h2)  # (B_a, B_b, S_b, D)
        square = jnp.square(mean[:, None, None] - y[None]) / h2
        log_k = 0.5 * jnp.sum(jnp.log(ratio) - ratio * square, axis=-1)
        return None, _log_sum(log_k + log_weight[:, None, None] + log_rho[None], (2,))

    parts = tuple(jnp.moveaxis(array, 1, 0) for array in (x, variance, log_pi))
    _, found = jax.lax.scan(component, None, parts)
    return _log_sum(found, (0,))


def _filled(mixture: Mixture) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means, variances (of impulses 0) and normalised log weights, all float32.

    What is not present has mean 0, because a NaN there would reach the gradient.
    """
    present = mixture.present[..., None]
    mean = jnp.where(present, mixture.mean.astype(jnp.float32), 0.0)
    log_weights = log_normalize(mixture.log_weights, mixture.mask)
    if mixture.log_variance is None:
        return mean, jnp.zeros_like(mean), log_weights
    log_variance = jnp.where(present, mixture.log_variance.astype(jnp.float32), 0.0)
    return mean, jnp.exp(log_variance), log_weights


def _log_sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`logsumexp` with gradient 0 where all terms are -inf."""
    there = ~jnp.isneginf(x)
    return jax.nn.logsumexp(jnp.where(there, x, 0.0), axis=axes, where=there)
