"""What of a KL the loss sees at a step: its annealing, and the part that costs nothing."""

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_choice, check_number, check_shapes

SCHEDULES = ("constant", "linear", "cosine", "cyclic")


def anneal(
    step: jax.Array | int, *, schedule: str, start: int = 0, steps: int = 0, cycle: int = 0
) -> jax.Array:
    """The KLs' factor a(t) in [0, 1]: 0 before `start`, 1 from `start + steps` on.

    Args:
      step: the optimiser step.
      schedule: "constant" (always 1), "linear", "cosine", or "cyclic": a linear ramp of `steps`
        that starts again every `cycle` steps (Fu et al., 2019).
      start: steps at 0 before the ramp.
      steps: length of the ramp; without one the factor is 1 from `start` on.
      cycle: length of a cycle, for "cyclic" only.

    Returns:
      float32, the shape of `step`.

    Raises:
      ValueError: an unknown schedule, negative `steps`, or a cycle shorter than its ramp.

    >>> steps = jnp.array([0, 10, 15, 20, 99])
    >>> print(anneal(steps, schedule="linear", start=10, steps=10))
    [0.  0.  0.5 1.  1. ]
    """
    check_choice("schedule", schedule, SCHEDULES)
    if schedule == "cyclic" and cycle < max(steps, 1):
        raise ValueError(f"cycle is {cycle} steps; wanted at least the ramp's {max(steps, 1)}")
    if steps < 0:
        raise ValueError(f"steps is {steps}; wanted at least 0")
    step = jnp.asarray(step, jnp.float32) - start
    if schedule == "constant":
        return jnp.ones_like(step)
    inside = jnp.where(step >= 0, step % cycle, step) if schedule == "cyclic" else step
    ramp = jnp.clip(inside / steps, 0.0, 1.0) if steps else (inside >= 0).astype(jnp.float32)
    return 0.5 - 0.5 * jnp.cos(jnp.pi * ramp) if schedule == "cosine" else ramp


def budget(
    kl: jax.Array,
    tokens: jax.Array,
    *,
    free: float | jax.Array = 0.0,
    capacity: float | jax.Array | None = None,
) -> jax.Array:
    """What of a KL the loss sees, against posterior collapse.

        max(KL, free n)        free bits: below the budget the KL costs nothing
        |KL - capacity n|      a capacity target, from both sides

    A budget is in nats a token, so that a sentence of n tokens has n times as much; per sentence,
    so that it does not depend on the batch. Source: Kingma et al. (2016); Burgess et al. (2018).

    Args:
      kl: nats, shape (B,).
      tokens: n, shape (B,).
      free: nats a token.
      capacity: nats a token, or None for none.

    Returns:
      nats, shape (B,).

    >>> print(budget(jnp.array([1.0, 9.0]), jnp.array([4, 4]), free=0.5))
    [2. 9.]
    """
    check_shapes(kl=(kl, "float B"), tokens=(tokens, "B"))
    for name, value in (("free", free), ("capacity", 0.0 if capacity is None else capacity)):
        check_number(name, value, None)
    kl, tokens = kl.astype(jnp.float32), tokens.astype(jnp.float32)
    if capacity is None:
        return jnp.maximum(kl, jnp.asarray(free, jnp.float32) * tokens)
    return jnp.abs(kl - jnp.asarray(capacity, jnp.float32) * tokens)
