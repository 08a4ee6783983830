"""A config's module before it has parameters: its structure, their shapes, and what makes them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import Params, split


def structure(
    config: Any, vocab_size: int, max_length: int
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct], Callable[[], Params]]:
    """(static structure, shapes of the parameters, what makes them) of a config's module.

    Nothing is computed; what makes them draws from `train.seed` and is to be jitted.

    Args:
      config: an `nvib_jax.config.Config`.
      vocab_size: V.
      max_length: longest sentence in tokens.
    """
    graphs: list[nnx.GraphDef] = []

    def init() -> Params:
        rngs = nnx.Rngs(config.train.seed)
        model = NVAE(config.model, vocab_size=vocab_size, max_length=max_length, rngs=rngs)
        graph, params = split(model)
        graphs.append(graph)
        return params

    shapes = jax.eval_shape(init)
    return graphs[0], shapes, init
