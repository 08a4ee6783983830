"""How far the mixtures of a batch of texts are from draws of the prior, as a whole.

A KL holds every single posterior to the prior. What matters for samples is less: that the texts'
mixtures *together* are distributed as the prior's draws are (Tolstikhin et al., 2018, "Wasserstein
Auto-Encoders", arXiv 1711.01558). The distances here compare the two. Each is a number for the
batch, returned as a cost of every sentence whose mean it is.
"""

import math

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_choice, check_key, check_shapes
from nvib_jax.kernels import log_kernel, log_self_kernel
from nvib_jax.random import log_normalize
from nvib_jax.types import Mixture, typed

COMPARED = ("sets", "vectors")


def mmd(
    a: Mixture,
    b: Mixture,
    real: jax.Array,
    *,
    bandwidth: float | None = None,
    of: str = "sets",
) -> jax.Array:
    """The squared maximum mean discrepancy between two samples of mixtures, without bias.

        h_ij = k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i)        mean over i != j

    where k is the kernel between mixtures of `nvib_jax.kernels`, the mean Gaussian kernel over a
    point of each ("vectors"), which is linear in the mixtures, so that only their mean counts; or
    ("sets") a Gaussian kernel of the distance of two mixtures in it,

        exp(-|P - Q|^2 / (2 s^2))        |P - Q|^2 = k(P, P) + k(Q, Q) - 2 k(P, Q)

    with s^2 the mean of that distance over pairs of `b`, which tells apart any two distributions of
    mixtures (Christmann & Steinwart, 2010).

    Args:
      a: B mixtures, shape (B, S_a, D).
      b: B mixtures, shape (B, S_b, D), draws of the prior.
      real: bool, shape (B,), the rows that count.
      bandwidth: of the kernel between vectors; None is sqrt(D).
      of: "sets" or "vectors".

    Returns:
      float32, shape (B,): the mean of h_ij over the other rows j, 0 for rows that do not count. The
      mean over real rows is the discrepancy, which may be below 0. The order of a mixture's
      components does not matter. Source: Gretton et al. (2012), "A kernel two-sample test".

    Raises:
      ValueError: an unknown `of`, or arguments that do not fit.

    >>> x = jnp.arange(6.0).reshape(3, 2, 1)
    >>> sets = Mixture(x, None, jnp.zeros((3, 2)), jnp.ones((3, 2), bool))
    >>> print(mmd(sets, sets, jnp.ones(3, bool)))
    [0. 0. 0.]
    """
    check_choice("of", of, COMPARED)
    width = math.sqrt(_checked(a, b, real)) if bandwidth is None else bandwidth

    def kernel(p: Mixture, q: Mixture) -> jax.Array:
        return jnp.exp(log_kernel(p, q, width))

    aa, bb, ab = kernel(a, a), kernel(b, b), kernel(a, b)
    others = real[:, None] & real[None] & ~jnp.eye(len(real), dtype=bool)
    if of == "sets":
        own_a, own_b = (jnp.exp(log_self_kernel(m, width)) for m in (a, b))

        def squared(k: jax.Array, p: jax.Array, q: jax.Array) -> jax.Array:
            return jnp.maximum(p[:, None] + q[None] - 2 * k, 0.0)

        apart = squared(bb, own_b, own_b)
        pairs = jnp.maximum(jnp.sum(others), 1).astype(jnp.float32)
        scale = jax.lax.stop_gradient(2 * jnp.sum(jnp.where(others, apart, 0.0)) / pairs)
        scale = jnp.where(scale > 0, scale, 1.0)
        aa = jnp.exp(-squared(aa, own_a, own_a) / scale)
        ab = jnp.exp(-squared(ab, own_a, own_b) / scale)
        bb = jnp.exp(-apart / scale)
    count = jnp.maximum(jnp.sum(real) - 1, 1).astype(jnp.float32)
    return jnp.sum(jnp.where(others, aa + bb - ab - ab.T, 0.0), axis=1) / count


def sliced_wasserstein(
    a: Mixture,
    b: Mixture,
    real: jax.Array,
    key: jax.Array,
    *,
    directions: int = 32,
    levels: int = 128,
) -> jax.Array:
    """The squared sliced Wasserstein distance between the means of two samples of mixtures.

    The vectors of all mixtures, each with its weight, are projected to random directions. In one
    dimension the distance is between quantiles, the mean of |Q_a(t) - Q_b(t)|^2. It compares how
    the vectors are distributed, and not which are together.

    Args:
      a: B mixtures of impulses, shape (B, S_a, D).
      b: B mixtures of impulses, shape (B, S_b, D), draws of the prior.
      real: bool, shape (B,), the rows that count.
      key: PRNG key of the directions.
      directions: how many.
      levels: how many quantiles.

    Returns:
      float32, shape (B,): the distance for rows that count, 0 for the others. It is that of a
      direction, so two clouds that are x apart in one of D dimensions have x^2 / D.
      Source: Kolouri, Pope, Martin & Rohde (2019), "Sliced-Wasserstein Auto-Encoders".

    Raises:
      ValueError: arguments that do not fit, or components with a variance.

    >>> x = jnp.arange(6.0).reshape(3, 2, 1)
    >>> at, away = (Mixture(y, None, jnp.zeros((3, 2)), jnp.ones((3, 2), bool)) for y in (x, x + 2))
    >>> print(sliced_wasserstein(at, away, jnp.array([True, True, False]), jax.random.key(0)))
    [4. 4. 0.]
    """
    check_key(key)
    width = _checked(a, b, real)
    for name, mixture in (("a", a), ("b", b)):
        if mixture.log_variance is not None:
            raise ValueError(f"{name} has variances; wanted impulses, such as a draw")
    ways = jax.random.normal(key, (directions, width), jnp.float32)
    ways = ways / jnp.linalg.norm(ways, axis=-1, keepdims=True)
    at = (jnp.arange(levels, dtype=jnp.float32) + 0.5) / levels
    apart = _quantiles(a, real, ways, at) - _quantiles(b, real, ways, at)
    return jnp.where(real, jnp.mean(jnp.square(apart)), 0.0)


def _quantiles(mixture: Mixture, real: jax.Array, ways: jax.Array, at: jax.Array) -> jax.Array:
    """Quantiles at these levels (Q,) of the mean of the real mixtures along each direction (R, D):
    shape (R, Q).
    """
    weights = jnp.exp(log_normalize(mixture.log_weights.astype(jnp.float32), mixture.mask))
    weights = jnp.where(real[:, None], weights, 0.0).reshape(-1)
    there = (mixture.present & real[:, None]).reshape(-1)
    x = jnp.where(there[:, None], mixture.mean.astype(jnp.float32).reshape(len(there), -1), 0.0)

    def along(way: jax.Array) -> jax.Array:
        places = x @ way
        order = jnp.argsort(jnp.where(there, places, jnp.inf))
        # Which vector is at a level is a step function of the weights, and has no gradient.
        summed = jax.lax.stop_gradient(jnp.cumsum(weights[order]))
        total = jnp.where(summed[-1] > 0, summed[-1], 1.0)
        found = jnp.searchsorted(summed / total, at)
        return places[order][jnp.minimum(found, jnp.maximum(jnp.sum(there) - 1, 0))]

    return jax.vmap(along)(ways)


def _checked(a: Mixture, b: Mixture, real: jax.Array) -> int:
    """Check the arguments; returns D."""
    for name, mixture in (("a", a), ("b", b)):
        typed(name, mixture, Mixture).check()
    found = check_shapes(
        **{"a.mean": (a.mean, "B S D"), "b.mean": (b.mean, "B T D"), "real": (real, "bool B")}
    )
    return found["D"]
