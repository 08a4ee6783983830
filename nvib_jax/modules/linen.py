"""The two modules for Flax Linen: `NVIB` and `DenoisingAttention`, with Linen's variables.

The NNX modules do the work through Flax's own bridge, so that there is one implementation; the
prior is a number or two here, not arrays, since Linen's modules have to be hashable.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.nnx import bridge

from nvib_jax.modules import attention, nvib
from nvib_jax.types import Mixture, Posterior, Prior


class NVIB(linen.Module):
    """Linear maps from encoder states to means, log variances and pseudo-counts.

    Attributes:
      dim: D.
      prior_alpha: total pseudo-count of the Dirichlet process, alpha_0^p.
      alpha_delta: pseudo-counts that a token adds to it: the knob of the bottleneck.
      pseudo_count: "exp_linear", "exp_quadratic" or "relu" (`nvib_jax.log_pseudo_count`).
      initial_alpha: as in `nvib_jax.modules.NVIB`, like the two below.
      initial_kept: for "relu".
      initial_variance: of every component before training.

    >>> layer = nvib_jax.modules.linen.NVIB(8, alpha_delta=0.3)
    >>> x, mask = jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool)
    >>> variables = layer.init(jax.random.key(0), x, mask)
    >>> posterior = layer.apply(variables, x, mask)
    >>> posterior.mean.shape, nvib_jax.kl_gaussian(posterior, layer.prior).shape
    ((2, 6, 8), (2,))
    """

    dim: int
    prior_alpha: float = 1.0
    alpha_delta: float = 0.0
    pseudo_count: str = "exp_linear"
    initial_alpha: float | None = None
    initial_kept: float = 0.5
    initial_variance: float = 0.1

    @property
    def prior(self) -> Prior:
        """What the KLs are taken to."""
        return Prior.standard(self.dim, alpha=self.prior_alpha, alpha_delta=self.alpha_delta)

    @linen.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, previous: Posterior | None = None
    ) -> Posterior:
        """Encoder states (B, N, D) and mask (B, N) -> `Posterior`; as `nvib_jax.modules.NVIB`."""
        options = ("pseudo_count", "initial_alpha", "initial_kept", "initial_variance")
        layer = bridge.ToLinen(
            nvib.NVIB,
            args=(self.dim,),
            kwargs={"prior": self.prior, **{name: getattr(self, name) for name in options}},
            name="nvib",
        )
        return layer(x, mask, previous)


class DenoisingAttention(linen.Module):
    """Cross-attention to a `Mixture`, with projections.

    Attributes:
      dim: D.
      heads: H, a divisor of D.
      use_bias: biases on query, value and output (a key bias would cancel).
      form: of denoising attention, as in `nvib_jax.denoising_attention`.
      implementation: likewise.
      dtype: compute dtype of the products; softmax and biases stay float32.

    >>> prior, x = nvib_jax.Prior.standard(8), jnp.ones((1, 2, 8))
    >>> drawn = nvib_jax.sample_prior(jax.random.key(0), prior, jnp.array([3]), max_length=4)
    >>> layer = nvib_jax.modules.linen.DenoisingAttention(8, heads=2)
    >>> layer.apply(layer.init(jax.random.key(1), x, drawn), x, drawn).shape
    (1, 2, 8)
    """

    dim: int
    heads: int
    use_bias: bool = False
    form: str = "exact"
    implementation: str | None = None
    dtype: Any = jnp.float32

    @linen.compact
    def __call__(self, x: jax.Array, mixture: Mixture) -> jax.Array:
        """Queries (B, T, D) and a mixture of S components -> (B, T, D)."""
        layer = bridge.ToLinen(
            attention.DenoisingAttention,
            args=(self.dim, self.heads),
            kwargs={name: getattr(self, name) for name in ("use_bias", "implementation", "dtype")},
            name="attention",
        )
        return layer(x, mixture, self.form, nnx_method=_attend)


def _attend(
    module: attention.DenoisingAttention, x: jax.Array, mixture: Mixture, form: str
) -> jax.Array:
    return module(x, module.memory(mixture, form))
