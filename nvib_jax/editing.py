"""What one does with a latent: move its vectors, draw around it, take vectors away.

All are pure functions of posteriors. Several texts are merged by interpolating between their
mixtures one after the other, so a union needs no function of its own.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_number, check_shapes, concrete, described
from nvib_jax.random import log_normalize
from nvib_jax.types import Mixture, Posterior, typed


def without_prior(posterior: Posterior) -> Posterior:
    """The posterior without the prior's component, which is the same for every text.

    Args:
      posterior: S components.

    Returns:
      A `Posterior` whose component 0 has a log pseudo-count of -inf.

    >>> x, mask = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    >>> posterior = make_posterior(x, x, x[..., 0], mask, Prior.standard(4))
    >>> print(without_prior(posterior).present)
    [[False  True  True]]
    """
    posterior = typed("posterior", posterior, Posterior)
    posterior.check()
    log_alpha = posterior.log_alpha.at[:, 0].set(-jnp.inf)
    return dataclasses.replace(posterior, log_alpha=log_alpha)


def temper(posterior: Posterior, temperature: float | jax.Array) -> Posterior:
    """The posterior with more or less noise: its draws are paraphrases, near or far.

        s2 -> tau^2 s2,    alpha -> alpha / tau^2

    Draws of the vectors have tau times the standard deviation, and those of the weights, whose
    variance is E[pi] (1 - E[pi]) / (1 + alpha_0), about as much. At tau = 1 it is the posterior, as
    tau goes to 0 its mean mixture. Expected weights do not change.

    Args:
      posterior: S components.
      temperature: tau > 0, shape () or (B,).

    Returns:
      A `Posterior`.

    Raises:
      ValueError: `temperature` is not above 0, or of another shape.

    >>> x, mask = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    >>> posterior = make_posterior(x, x, x[..., 0], mask, Prior.standard(4))
    >>> calm = temper(posterior, 0.5)
    >>> print(jnp.exp(calm.log_variance[0, 1]), jnp.exp(calm.log_alpha[0]))
    [0.25 0.25 0.25 0.25] [4. 4. 4.]
    """
    posterior = typed("posterior", posterior, Posterior)
    posterior.check()
    tau = _positive("temperature", temperature, posterior)
    log_square = jnp.broadcast_to(2 * jnp.log(tau), posterior.mean.shape[:1])
    return dataclasses.replace(
        posterior,
        log_variance=posterior.log_variance.astype(jnp.float32) + log_square[:, None, None],
        log_alpha=posterior.log_alpha.astype(jnp.float32) - log_square[:, None],
    )


def each_left_out(posterior: Posterior) -> Posterior:
    """One text's posterior once for each of its components, which is missing there.

    Args:
      posterior: of one text, shape (1, S, ...).

    Returns:
      A `Posterior` of S rows; row i lacks component i, so row 0 lacks the prior's. A row whose
      component was not present is the posterior itself.

    Raises:
      ValueError: there are several texts.

    >>> x, mask = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    >>> posterior = make_posterior(x, x, x[..., 0], mask, Prior.standard(4))
    >>> print(each_left_out(posterior).present.astype(int))
    [[0 1 1]
     [1 0 1]
     [1 1 0]]
    """
    posterior = typed("posterior", posterior, Posterior)
    sizes = posterior.check()
    if sizes["B"] != 1:
        raise ValueError(f"posterior is of {sizes['B']} texts; wanted one")
    rows = jax.tree.map(lambda x: jnp.repeat(x, sizes["S"], axis=0), posterior)
    own = jnp.eye(sizes["S"], dtype=bool)
    return dataclasses.replace(rows, log_alpha=jnp.where(own, -jnp.inf, rows.log_alpha))


def shift(
    posterior: Posterior,
    towards: Mixture,
    away: Mixture,
    *,
    strength: float | jax.Array = 1.0,
    bandwidth: float | jax.Array | None = None,
) -> Posterior:
    """Move every vector from what one set of mixtures has towards what another has.

        mu_i -> mu_i + strength (m_T(mu_i) - m_A(mu_i))
        m(x) = sum_j w_j exp(-|x - nu_j|^2 / 2 h^2) nu_j / sum_j w_j exp(-|x - nu_j|^2 / 2 h^2)

    over the components of all mixtures of a set, each mixture weighing as much. Without a bandwidth
    m is the mean of the set: the arithmetic of attributes, where all vectors move alike. With one,
    a vector moves by what is different near it, and the step is strength times h^2 times the
    gradient of log(p_T / p_A) of the sets' kernel density estimates: where both sets have the same
    vectors, say those of nouns if the tense is to change, nothing moves.

    Args:
      posterior: B texts of S components; the prior's does not move.
      towards: the mixtures of texts that have what is wanted, shape (., ., D). Their variances are
        not read. Leave the prior's component out (`without_prior`).
      away: those of texts that have the opposite.
      strength: shape () or (B,); 0 changes nothing.
      bandwidth: h > 0, shape () or (B,); None is without bound.

    Returns:
      A `Posterior` with the same variances and pseudo-counts.

    Raises:
      ValueError: widths differ, a number has another shape, or `bandwidth` is not above 0.

    Source: difference vectors, Mikolov, Yih & Zweig (2013), of autoencoders, Larsen et al. (2016),
    arXiv 1512.09300; the local mean is mean shift, Fukunaga & Hostetler (1975). To use it for a
    latent that is a set is ours.

    >>> def points(*places):
    ...     x = jnp.array(places)[None, :, None]
    ...     return Mixture(x, None, jnp.zeros(x.shape[:2]), jnp.ones(x.shape[:2], bool))
    >>> x, mask = jnp.array([[[0.0], [9.0]]]), jnp.ones((1, 2), bool)
    >>> posterior = make_posterior(x, x, x[..., 0], mask, Prior.standard(1))
    >>> print(shift(posterior, points(1.0, 9.0), points(0.0, 9.0)).mean[0, :, 0])
    [0.  0.5 9.5]
    >>> near = shift(posterior, points(1.0, 9.0), points(0.0, 9.0), bandwidth=1.0)
    >>> print(near.mean[0, :, 0])
    [0. 1. 9.]
    """
    posterior = typed("posterior", posterior, Posterior)
    towards, away = typed("towards", towards, Mixture), typed("away", away, Mixture)
    for value in (posterior, towards, away):
        value.check()
    check_shapes(
        **{
            "posterior.mean": (posterior.mean, "B S D"),
            "towards.mean": (towards.mean, "T Q D"),
            "away.mean": (away.mean, "A R D"),
        }
    )
    check_number("strength", strength, None)
    if jnp.shape(strength) not in ((), posterior.mean.shape[:1]):
        raise ValueError(f"strength is {described(strength)}; wanted a number, or one a text")
    if bandwidth is not None:
        bandwidth = _positive("bandwidth", bandwidth, posterior)
    return _shift(posterior, towards, away, jnp.asarray(strength, jnp.float32), bandwidth)


@jax.jit
def _shift(
    posterior: Posterior,
    towards: Mixture,
    away: Mixture,
    strength: jax.Array,
    bandwidth: jax.Array | None,
) -> Posterior:
    mean = posterior.mean.astype(jnp.float32)
    rows = mean.shape[:1]
    wide = None if bandwidth is None else jnp.broadcast_to(bandwidth, rows)
    moved = _mean_near(mean, wide, towards) - _mean_near(mean, wide, away)
    there = posterior.present.at[:, 0].set(False)[..., None]
    step = jnp.broadcast_to(strength, rows)[:, None, None] * moved
    return dataclasses.replace(posterior, mean=mean + jnp.where(there, step, 0.0))


def _mean_near(x: jax.Array, bandwidth: jax.Array | None, of: Mixture) -> jax.Array:
    """`m` of `shift` at x (B, S, D), which it gives the shape of."""
    width = x.shape[-1]
    log_weights = log_normalize(of.log_weights, of.mask).reshape(-1)
    points = jnp.where(of.present[..., None], of.mean.astype(jnp.float32), 0.0).reshape(-1, width)
    high = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    if bandwidth is None:
        mean = high(jnp.exp(log_normalize(log_weights)), points)
        return jnp.broadcast_to(mean[None, None], x.shape)
    norms = jnp.sum(jnp.square(points), axis=-1)

    def row(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, h = given
        # |x|^2 is left out, because it is the same for all points.
        near = (high(x, points.T) - 0.5 * norms[None]) / jnp.square(h)
        return high(jax.nn.softmax(near + log_weights[None], axis=-1), points)

    return jax.lax.map(row, (x, bandwidth))


def _positive(name: str, value: float | jax.Array, posterior: Posterior) -> jax.Array:
    """A number above 0 for all texts, or one for each, as float32."""
    check_number(name, value, None)
    if jnp.shape(value) not in ((), posterior.mean.shape[:1]):
        raise ValueError(f"{name} is {described(value)}; wanted a number, or one a text")
    known = concrete(value)
    if known is not None and not (known > 0).all():
        raise ValueError(f"{name} is {known.tolist()}; wanted more than 0")
    return jnp.asarray(value, jnp.float32)
