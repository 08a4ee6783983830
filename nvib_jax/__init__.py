"""nvib_jax: the Nonparametric Variational Information Bottleneck in JAX.

It treats the set of vectors that attention reads as a mixture distribution with a Dirichlet-process
prior. The functions imported here need jax and numpy only; `nvib_jax.models`, `.data`, `.training`
and the `nvib` command need `pip install "nvib-jax[train]"`.
"""

from nvib_jax import random
from nvib_jax.attention import attend, denoising_attention, make_memory
from nvib_jax.kl import kl_dirichlet, kl_gaussian, vector_count
from nvib_jax.mixture import expected, interpolate, read, sample, sample_prior
from nvib_jax.posterior import add_skip, keep_largest, log_pseudo_count, make_posterior
from nvib_jax.types import Mixture, Posterior, Prior

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
