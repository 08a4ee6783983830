"""The step of a codebook: moving averages, and codes that nobody takes put to use again.

`nvib_jax.models.latents.vq` says why these averages are a gradient descent, and what the two
gradients are: for the codes `c e - s`, for their use `-c`.

A code that is taken less than `DEAD` of an equal share is dead: it may lie where no vector ever is.
It is put beside one that is taken often, whose use the two then share, so that its vectors are
divided between them. This is the splitting of Linde, Buzo & Gray (1980), "An algorithm for vector
quantizer design". It needs no vector of the batch, so the gradients are all that a step knows;
Dhariwal et al. (2020), arXiv 2005.00341, take a vector of the batch instead.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nvib_jax.models.params import Params

BOOK, USE = "codebook", "code_use"  # the last parts of the two parameters' names
DEAD = 0.03  # of an equal share of the vectors
APART = 0.01  # how far a split code is from the other, of the latter's size


class CodebookState(NamedTuple):
    """The number of steps, (), and the state of the optimiser of all other parameters."""

    step: jax.Array
    inner: Any


def with_codebook(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """An optimiser that moves codebooks by their averages, and everything else as before.

    Neither their gradients nor they themselves are clipped, decayed or scheduled with the rest.

    Args:
      optimizer: of the other parameters.
      decay: what is left of an average after a step, 0 to 1.
    """

    def init(params: Any) -> CodebookState:
        return CodebookState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(
        grads: Params, state: CodebookState, params: Params | None = None
    ) -> tuple[Params, CodebookState]:
        assert params is not None
        own: Params = {}
        for i, book in enumerate(sorted(n for n in grads if n.rpartition(".")[2] == BOOK)):
            use = book.removesuffix(BOOK) + USE
            codes, used = averaged(params[book], params[use], grads[book], grads[use], decay)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(i), 0), state.step)
            codes, used = revived(key, codes, used)
            own |= {book: codes - params[book], use: used - params[use]}
        others = {n: jnp.zeros_like(g) if n in own else g for n, g in grads.items()}
        updates, inner = optimizer.update(others, state.inner, params)
        return {**updates, **own}, CodebookState(state.step + 1, inner)

    return optax.GradientTransformation(init, update)


def averaged(
    codes: jax.Array, use: jax.Array, pull: jax.Array, taken: jax.Array, decay: float
) -> tuple[jax.Array, jax.Array]:
    """One step of the averages: `n' = decay n + (1 - decay) c`, `e' = e - (1 - decay)/n' (ce - s)`.

    Args:
      codes: e, shape (K, D).
      use: n, shape (K,).
      pull: c e - s, shape (K, D).
      taken: -c, shape (K,).
      decay: 0 to 1.

    Returns:
      (e', n'). A code that was never taken stays.
    """
    now = decay * use - (1 - decay) * taken
    rate = jnp.where(now > 0, (1 - decay) / jnp.where(now > 0, now, 1.0), 0.0)
    return codes - rate[:, None] * pull, now


def revived(key: jax.Array, codes: jax.Array, use: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The codes (K, D) and their use (K,), the dead ones beside those that are used most.

    The one that is used most is split first. None is split twice in a step, so that after many
    deaths the codes in use double from step to step.
    """
    dead = use <= DEAD * jnp.mean(use)
    order = jnp.argsort(-jnp.where(dead, -1.0, use), stable=True)  # those in use, then the dead
    rank = jnp.cumsum(dead) - 1  # the number of a dead code among the dead
    back = dead & (rank < jnp.sum(~dead))
    source = order[jnp.where(back, rank, 0)]
    noise = jax.random.normal(key, codes.shape, jnp.float32)
    size = jnp.sqrt(jnp.mean(jnp.square(codes), axis=-1, keepdims=True))
    beside = (codes + APART * size * noise)[source]
    split = jnp.zeros_like(dead).at[jnp.where(back, source, len(use))].set(True, mode="drop")
    halves = jnp.where(split, 0.5, 1.0) * use
    codes = jnp.where(back[:, None], beside, codes)
    return codes, jnp.where(back, halves[source], halves)
