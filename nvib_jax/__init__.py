"""nvib_jax: the Nonparametric Variational Information Bottleneck in JAX.

It treats the set of vectors that attention reads as a mixture distribution with a Dirichlet-process
prior. The functions of `__all__` need jax and numpy only. `train`, `evaluate`, `load`, `TextModel`
and the configs are here too, and `import nvib_jax` leaves them alone: their modules are imported
when they are first asked for. They, `nvib_jax.data` and the `nvib` command need
`pip install "nvib-jax[train]"`.
"""

import importlib
import operator
from typing import TYPE_CHECKING, Any

from nvib_jax import random
from nvib_jax.attention import attend, denoising_attention, make_memory
from nvib_jax.kl import kl_dirichlet, kl_gaussian, vector_count
from nvib_jax.mixture import expected, interpolate, read, sample, sample_prior
from nvib_jax.posterior import add_skip, keep_largest, log_pseudo_count, make_posterior
from nvib_jax.types import Mixture, Posterior, Prior

if TYPE_CHECKING:  # the same names for editors and type checkers
    from nvib_jax.config import Config as Config
    from nvib_jax.config import MeshConfig as MeshConfig
    from nvib_jax.config import ObjectiveConfig as ObjectiveConfig
    from nvib_jax.config import TrainConfig as TrainConfig
    from nvib_jax.data.config import DataConfig as DataConfig
    from nvib_jax.evaluation.protocol import EvaluationConfig as EvaluationConfig
    from nvib_jax.evaluation.protocol import evaluate_run
    from nvib_jax.generate import DecodingConfig as DecodingConfig
    from nvib_jax.models.config import NVAEConfig as NVAEConfig
    from nvib_jax.runs import Run as Run
    from nvib_jax.runs import train as train
    from nvib_jax.text_model import TextModel as TextModel

    evaluate, load = evaluate_run, TextModel.load

__version__ = "0.1.0"

__all__ = [
    "Mixture",
    "Posterior",
    "Prior",
    "add_skip",
    "attend",
    "denoising_attention",
    "expected",
    "interpolate",
    "keep_largest",
    "kl_dirichlet",
    "kl_gaussian",
    "log_pseudo_count",
    "make_memory",
    "make_posterior",
    "random",
    "read",
    "sample",
    "sample_prior",
    "vector_count",
]

# Public names whose modules need more than jax and numpy -> (module, name there). They are not in
# `__all__`, because `from nvib_jax import *` would then import all of it.
_LATER = {
    "Config": ("config", "Config"),
    "DataConfig": ("data.config", "DataConfig"),
    "DecodingConfig": ("generate", "DecodingConfig"),
    "EvaluationConfig": ("evaluation.protocol", "EvaluationConfig"),
    "MeshConfig": ("config", "MeshConfig"),
    "NVAEConfig": ("models.config", "NVAEConfig"),
    "ObjectiveConfig": ("config", "ObjectiveConfig"),
    "Run": ("runs", "Run"),
    "TextModel": ("text_model", "TextModel"),
    "TrainConfig": ("config", "TrainConfig"),
    "evaluate": ("evaluation.protocol", "evaluate_run"),
    "load": ("text_model", "TextModel.load"),
    "train": ("runs", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _LATER[name]
    try:
        found = operator.attrgetter(there)(importlib.import_module(f"{__name__}.{module}"))
    except ModuleNotFoundError as error:
        raise ImportError(
            f"nvib_jax.{name} cannot be used: {error}; pip install 'nvib-jax[train]' has it"
        ) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
