"""The structure of a config's module and the shapes of its parameters, without computing them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import Params, split


def structure(
    config: Any, vocab_size: int, max_length: int
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct], Callable[[], Params]]:
    """(static structure, shapes of the parameters, function that makes them) of a config's module.

    Nothing is computed. The function draws the parameters from `train.seed`; callers should jit it.

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
