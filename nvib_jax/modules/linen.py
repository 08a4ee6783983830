"""For Flax Linen: `NVIB`, `DenoisingAttention` and `NVIBSelfAttention`, with Linen's variables.

They wrap the NNX modules by Flax's own bridge, so that there is only one implementation. The prior
is given as two numbers, because a Linen module has to be hashable; it is not a variable.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.nnx import bridge

from nvib_jax.attention import Memory
from nvib_jax.modules import attention, nvib
from nvib_jax.modules.self_attention import check_causal, mixture_of
from nvib_jax.types import Mixture, Posterior, Prior


class NVIB(linen.Module):
    """Linear maps from encoder states to means, log variances and pseudo-counts.

    Attributes:
      dim: D.
      prior_alpha: total pseudo-count of the Dirichlet process, alpha_0^p.
      alpha_delta: pseudo-counts that a token adds to it; sets the strength of the bottleneck.
      pseudo_count: "exp_linear", "exp_quadratic" or "relu" (`nvib_jax.log_pseudo_count`).
      initial_alpha: mean pseudo-count before training, as in `nvib_jax.modules.NVIB`.
      initial_kept: share of components present before training, for "relu".
      initial_variance: variance of every component before training.

    >>> layer = NVIB(8, alpha_delta=0.3)
    >>> x, mask = jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool)
    >>> variables = layer.init(jax.random.key(0), x, mask)
    >>> posterior = layer.apply(variables, x, mask)
    >>> posterior.mean.shape, kl_gaussian(posterior, layer.prior).shape
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
        """The prior of component 0 and of the KLs. It is rebuilt each time, not a variable."""
        return Prior.standard(self.dim, alpha=self.prior_alpha, alpha_delta=self.alpha_delta)

    def setup(self) -> None:
        """The NNX layer."""
        names = ("pseudo_count", "initial_alpha", "initial_kept", "initial_variance")
        options = {name: getattr(self, name) for name in names}
        self.layer = bridge.ToLinen(
            _NVIB,
            args=(self.dim,),
            kwargs={"made": (self.prior_alpha, self.alpha_delta), **options},
        )

    def __call__(
        self, x: jax.Array, mask: jax.Array, previous: Posterior | None = None
    ) -> Posterior:
        """Encoder states (B, N, D) and mask (B, N) -> `Posterior`; as `nvib_jax.modules.NVIB`."""
        return self.layer(x, mask, previous)


class _NVIB(nvib.PosteriorMaps):
    """The maps, with a prior that is rebuilt from two constants.

    If the prior were a Linen variable, it would be restored from a checkpoint and override the
    `alpha_delta` that the caller passes.
    """

    def __init__(self, dim: int, *, made: tuple[float, float], rngs: nnx.Rngs, **options: Any):
        self.dim, self.made = dim, made
        super().__init__(dim, prior=self.prior, rngs=rngs, **options)

    @property
    def prior(self) -> Prior:
        alpha, alpha_delta = self.made
        return Prior.standard(self.dim, alpha=alpha, alpha_delta=alpha_delta)


class DenoisingAttention(linen.Module):
    """Cross-attention to a `Mixture`, with projections.

    Attributes:
      dim: D.
      heads: H, a divisor of D.
      use_bias: biases on query, value and output (a key bias would cancel).
      form: form of attention, as in `nvib_jax.denoising_attention`.
      implementation: as in `nvib_jax.denoising_attention`.
      dtype: compute dtype of the products; softmax and biases stay float32.

    >>> prior, x = Prior.standard(8), jnp.ones((1, 2, 8))
    >>> drawn = sample_prior(jax.random.key(0), prior, jnp.array([3]), max_length=4)
    >>> layer = DenoisingAttention(8, heads=2)
    >>> layer.apply(layer.init(jax.random.key(1), x, drawn), x, drawn).shape
    (1, 2, 8)
    """

    dim: int
    heads: int
    use_bias: bool = False
    form: str = "exact"
    implementation: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """The NNX layer."""
        options = {n: getattr(self, n) for n in ("use_bias", "implementation", "dtype")}
        self.layer = bridge.ToLinen(
            attention.DenoisingAttention, args=(self.dim, self.heads), kwargs=options
        )

    def __call__(
        self, x: jax.Array, mixture: Mixture | Memory, *, causal: bool = False
    ) -> jax.Array:
        """Queries (B, T, D) and a mixture of S components, or its `memory` -> (B, T, D).

        With `causal`, query t sees component 0 and the components up to t + S - T.
        """
        return self.layer(x, self._memory_of(mixture), causal=causal)

    def memory(self, mixture: Mixture, form: str | None = None) -> Memory:
        """Keys, values and biases of a mixture; compute them once for any number of calls."""
        return self.layer(mixture, form or self.form, nnx_method="memory")

    def weights(self, x: jax.Array, mixture: Mixture | Memory) -> jax.Array:
        """The attention of every query over the components, float32, shape (B, H, T, S)."""
        return self.layer(x, self._memory_of(mixture), nnx_method="weights")

    def _memory_of(self, mixture: Mixture | Memory) -> Memory:
        return self.memory(mixture) if isinstance(mixture, Mixture) else mixture


class NVIBSelfAttention(linen.Module):
    """Self-attention whose keys and values are a mixture, as `nvib_jax.modules.NVIBSelfAttention`.

    Attributes:
      dim: D.
      heads: H, a divisor of D.
      prior_alpha: total pseudo-count of the Dirichlet process, alpha_0^p.
      alpha_delta: pseudo-counts that a token adds to it.
      pseudo_count: as in `NVIB`.
      initial_alpha: as in `NVIB`; 1 in a layer that is given `previous`.
      num_samples: K, the draws of each component in training; causal attention takes 1 only.
      use_bias: as in `DenoisingAttention`.
      implementation: likewise.
      dtype: compute dtype of attention; the posterior is float32.

    >>> layer = NVIBSelfAttention(8, heads=2, alpha_delta=0.3)
    >>> x, mask = jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool)
    >>> variables = layer.init(jax.random.key(0), x, mask)
    >>> out, posterior = layer.apply(variables, x, mask, key=jax.random.key(1))  # in training
    >>> out.shape, kl_gaussian(posterior, layer.prior).shape
    ((2, 5, 8), (2,))
    """

    dim: int
    heads: int
    prior_alpha: float = 1.0
    alpha_delta: float = 0.0
    pseudo_count: str = "exp_linear"
    initial_alpha: float | None = None
    num_samples: int = 1
    use_bias: bool = True
    implementation: str | None = None
    dtype: Any = jnp.float32

    @property
    def prior(self) -> Prior:
        """The prior of component 0 and of the KLs. It is rebuilt each time, not a variable."""
        return Prior.standard(self.dim, alpha=self.prior_alpha, alpha_delta=self.alpha_delta)

    def setup(self) -> None:
        """The two layers."""

        def mine(*names: str) -> dict[str, Any]:
            return {name: getattr(self, name) for name in names}

        self.nvib = NVIB(
            self.dim, **mine("prior_alpha", "alpha_delta", "pseudo_count", "initial_alpha")
        )
        self.attention = DenoisingAttention(
            self.dim, self.heads, **mine("use_bias", "implementation", "dtype")
        )

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        *,
        previous: Posterior | None = None,
        key: jax.Array | None = None,
        form: str = "expected_logit",
        causal: bool = False,
    ) -> tuple[jax.Array, Posterior]:
        """(what attention adds to x, (B, N, D); the posterior); as the NNX layer."""
        if causal:
            check_causal(self.num_samples)
        posterior = self.nvib(x, mask, previous)
        mixture, form = mixture_of(posterior, key, form, self.num_samples)
        return self.attention(x, self.attention.memory(mixture, form), causal=causal), posterior
