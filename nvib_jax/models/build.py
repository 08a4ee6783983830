"""From a config to a module: the only place that knows all families of models.

Training, checkpoints and generation hold a model as its static structure and a flat dict of arrays
(`nvib_jax.models.params`); `build` gives both without computing anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from nvib_jax.models.causal_lm import CausalLM
from nvib_jax.models.config import CausalConfig, DenoisingConfig, ModelConfig, NVAEConfig
from nvib_jax.models.denoising import DenoisingAutoencoder
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import Params, split
from nvib_jax.models.special_ids import SpecialIds

# Name of a family, as JSON has it -> (its config, its module). The module is called with the
# config and the keywords `vocab_size`, `max_length`, `special` and `rngs`.
FAMILIES: dict[str, tuple[type[ModelConfig], Callable[..., Any]]] = {
    "nvae": (NVAEConfig, NVAE),
    "denoising": (DenoisingConfig, DenoisingAutoencoder),
    "causal_lm": (CausalConfig, CausalLM),
}


@dataclass(frozen=True)
class Structure:
    """A module without its parameters.

    Attributes:
      module: its class.
      graph: its static structure.
      shapes: name -> shape and dtype of each parameter.
      init: makes the parameters, always the same ones; to be called inside jit.
    """

    module: Callable[..., Any]
    graph: nnx.GraphDef
    shapes: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], Params]


def build(
    config: ModelConfig,
    *,
    vocab_size: int,
    max_length: int,
    seed: int = 0,
    special: SpecialIds | None = None,
) -> Structure:
    """The structure of a config's module.

    The module is built once, with abstract arrays: `init` evaluates what was traced then.

    Args:
      config: of any family.
      vocab_size: V.
      max_length: longest sentence in tokens.
      seed: from which the parameters are drawn.
      special: the tokenizer's; None is those of this library's tokenizers.

    Raises:
      ValueError: a config of no family in `FAMILIES`.
    """
    graphs: list[nnx.GraphDef] = []
    module, ids = module_of(config), special or SpecialIds()

    def init() -> Params:
        made = module(
            config,
            vocab_size=vocab_size,
            max_length=max_length,
            special=ids,
            rngs=nnx.Rngs(seed),
        )
        graph, params = split(made)
        graphs.append(graph)
        return params

    traced, constants = jax.closure_convert(init)
    shapes = jax.eval_shape(traced, *constants)
    return Structure(module, graphs[0], shapes, lambda: traced(*constants))


def module_of(config: ModelConfig) -> Callable[..., Any]:
    """The module's class for a config.

    Raises:
      ValueError: a config of no family in `FAMILIES`.
    """
    for kind, module in FAMILIES.values():
        if type(config) is kind:
            return module
    raise ValueError(
        f"model is a {type(config).__name__}; wanted a config of the families {', '.join(FAMILIES)}"
    )


def family_of(config: ModelConfig) -> str:
    """The name of a config's family.

    Raises:
      ValueError: a config of no family in `FAMILIES`.
    """
    module_of(config)
    return next(name for name, (kind, _) in FAMILIES.items() if type(config) is kind)
