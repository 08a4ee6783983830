"""Flow matching on sets: the loss, the integration and the likelihood, as functions of a velocity.

A flow carries noise to data along an ordinary differential equation:

    dx/dt = v(x, t)        x(0) ~ N(0, 1),  x(1) ~ data

x is a set of vectors, (B, S, R), of which a mask (B, S) says which are valid. If v commutes with
permutations of a set's vectors, the density of x(1) is one of sets: it does not depend on the order
in which they are listed. Nothing here assumes a particular v.

Source: Lipman et al. (2023), arXiv 2210.02747, with the straight path of Liu et al. (2023), arXiv
2209.03003; the change of variables is that of Chen et al. (2018), arXiv 1806.07366.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_choice, check_count

Velocity = Callable[[jax.Array, jax.Array], jax.Array]  # x (B, S, R), t (B,) -> (B, S, R)
METHODS = ("euler", "midpoint")


def matching_loss(
    velocity: Velocity, data: jax.Array, mask: jax.Array, key: jax.Array, *, stop: float = 1.0
) -> jax.Array:
    """The flow-matching loss: how far v is from the direction of the straight path to the data.

        x_t = (1 - t) x_0 + t x_1        loss = |v(x_t, t) - (x_1 - x_0)|^2

    with x_0 ~ N(0, 1), x_1 the data, and t the logistic of a standard normal, because the
    directions are hardest to tell in the middle (Esser et al. 2024, arXiv 2403.03206).

    Args:
      velocity: v.
      data: x_1, shape (B, S, R).
      mask: which vectors are valid, bool (B, S).
      key: PRNG key.

    Returns:
      The mean over the coordinates of all valid vectors, shape ().
    """
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, data.shape, jnp.float32)
    t = stop * jax.nn.sigmoid(jax.random.normal(time_key, data.shape[:1], jnp.float32))
    share = t[:, None, None]
    missed = velocity((1 - share) * noise + share * data, t) - (data - noise)
    squares = jnp.where(mask[..., None], jnp.square(missed), 0.0)
    return jnp.sum(squares) / (jnp.maximum(jnp.sum(mask), 1) * data.shape[-1]).astype(jnp.float32)


def integrate(
    velocity: Velocity, noise: jax.Array, *, steps: int, method: str, stop: float = 1.0
) -> jax.Array:
    """x(1) from x(0) = noise, (B, S, R), in equal steps.

    Args:
      velocity: v.
      noise: x(0).
      steps: at least 1.
      method: "euler", first order, one v a step; or "midpoint", second order, two.

    Raises:
      ValueError: an unknown method, or `steps < 1`.

    >>> print(integrate(lambda x, t: x, jnp.ones((1, 1, 1)), steps=100, method="midpoint"))  # e
    [[[2.7182]]]
    """
    return _solve(lambda x, t: velocity(x, _times(t, x)), noise, (0.0, stop), steps, method)


def log_density(
    velocity: Velocity,
    data: jax.Array,
    mask: jax.Array,
    *,
    steps: int,
    method: str = "midpoint",
    key: jax.Array | None = None,
    probes: int = 1,
    stop: float = 1.0,
) -> jax.Array:
    """log p(x(1)) of sets as ordered tuples, nats, by the change of variables.

        log p(x(1)) = log N(x(0); 0, 1) - int_0^1 div v(x(t), t) dt

    x(0) and the integral come from solving the equation backwards. The equation itself is solved in
    steps, so there is an error which falls with their number.

    Args:
      velocity: v; of vectors that are not valid it may be anything.
      data: x(1), shape (B, S, R).
      mask: which vectors are valid, bool (B, S).
      steps: of the solution.
      method: as in `integrate`.
      key: for the divergence's estimate by `probes` random directions (Hutchinson), which is
        unbiased; None computes it exactly, with one derivative for each of the S R coordinates.
      probes: how many directions.

    Returns:
      float32, shape (B,).

    Raises:
      ValueError: an unknown method, `steps < 1` or `probes < 1`.

    >>> x, there = jnp.zeros((1, 1, 1)), jnp.ones((1, 1), bool)
    >>> print(log_density(lambda x, t: x, x, there, steps=10))  # N(0; 0, e^2)
    [-1.9189]
    """
    valid = mask[..., None].astype(jnp.float32)
    if key is None:
        directions = jnp.eye(math.prod(data.shape[1:]), dtype=jnp.float32)
        directions = directions.reshape(-1, 1, *data.shape[1:]) * valid[None]
        shares = 1.0
    else:
        check_count("probes", probes)
        signs = jax.random.rademacher(key, (probes, *data.shape), jnp.float32)
        directions, shares = signs * valid[None], 1.0 / probes

    def both(state: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[jax.Array, jax.Array]:
        def moved(x: jax.Array) -> jax.Array:
            return velocity(x, _times(t, x)) * valid

        def along(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, slope = jax.jvp(moved, (state[0],), (direction,))
            return value, jnp.sum(slope * direction, axis=(1, 2))

        value, slopes = jax.vmap(along, out_axes=(None, 0))(directions)
        return value, shares * jnp.sum(slopes, axis=0)

    start = (data * valid, jnp.zeros(data.shape[:1], jnp.float32))
    # The integral from 1 to 0 is minus the one from 0 to 1.
    noise, divergence = _solve(both, start, (stop, 0.0), steps, method)
    normal = jnp.square(noise) + jnp.float32(math.log(2 * math.pi))
    return divergence - 0.5 * jnp.sum(normal * valid, axis=(1, 2))


def _times(t: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(t, x.shape[:1])


def _solve(slope, state, ends: tuple[float, float], steps: int, method: str):
    """The state at the second end, from the one at the first."""
    check_choice("method", method, METHODS)
    step = jnp.float32((ends[1] - ends[0]) / check_count("steps", steps))

    def moved(state, slope, step):
        return jax.tree.map(lambda x, v: x + step * v, state, slope)

    def one(state, index: jax.Array):
        t = ends[0] + step * index.astype(jnp.float32)
        first = slope(state, t)
        if method == "midpoint":
            first = slope(moved(state, first, step / 2), t + step / 2)
        return moved(state, first, step), None

    return jax.lax.scan(one, state, jnp.arange(steps, dtype=jnp.int32))[0]
