"""The configuration of each family of models, a dataclass each."""

from dataclasses import dataclass
from typing import Literal

from nvib_jax.checks import check_choice
from nvib_jax.fields import check_fields
from nvib_jax.models.latents import LATENTS


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a run asks of any model's config; each family of models extends it with its own fields.

    `nvib_jax.models.build.FAMILIES` says which module belongs to which config.
    """

    @property
    def width(self) -> int:
        """Width of the latent vectors, by which the published units divide the Gaussian KL."""
        return 1

    def head_counts(self) -> dict[str, int]:
        """Fields that count heads -> their values; a mesh's `tensor` axis must divide them."""
        return {}

    def bytes_per_token(self) -> int:
        """Memory that the backward pass cannot do without for each token of a batch."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NVAEConfig(ModelConfig):
    """Architecture and bottleneck of an `NVAE`."""

    kind: str = "NVAE"
    """The latent: the NVIB, or a rival of `nvib_jax.models.latents`: T plain, VTV a Gaussian per
    vector, VTP pooled to one, VTS a fixed share of the vectors, VTQ pooled by learned queries, VQ
    a fixed share, each one of a codebook, AAE pooled to one without noise, with a discriminator."""
    pool: Literal["mean", "max", "first"] = "mean"
    """VTP, AAE: how the states become one vector."""
    stride_share: float = 0.5
    """VTS, VQ: share of a sentence's vectors that are kept, at least one."""
    latent_queries: int = 1
    """VTQ: learned queries, each a vector."""
    codes: int = 512
    """VQ: vectors in the codebook."""
    code_decay: float = 0.99
    """VQ: what is left after a step of a code's moving averages, from which the code is learned."""
    code_gradient: Literal["rotation", "straight_through"] = "rotation"
    """VQ: how the decoder's gradient passes the quantiser: turned and scaled as the vector is that
    becomes its code, or as it is."""
    commitment: float = 0.25
    """VQ: weight of |z - e|^2 for each vector, which holds the encoder to its codes."""
    prior_layers: int = 2
    """VQ: layers of the causal Transformer that learns the distribution of the codes."""
    adversary: float = 10.0
    """AAE: weight of the discriminator's verdict on a sentence's vector."""
    dim: int = 256
    """Width D of the model and of the latent vectors."""
    heads: int = 4
    """Heads of self-attention."""
    latent_heads: int = 1
    """Heads of the decoder's denoising attention."""
    hidden: int = 1024
    """Width of the feed-forward layers."""
    encoder_layers: int = 1
    """Encoder layers."""
    decoder_layers: int = 1
    """Decoder layers."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before (pre) or after (post) each residual."""
    dropout: float = 0.1
    """Dropout rate in training."""
    tied: bool = False
    """Use the decoder's embedding as the output matrix."""
    latent_bias: bool = False
    """Biases in the denoising attention's projections."""
    pseudo_count: Literal["exp_linear", "exp_quadratic", "relu"] = "exp_linear"
    """Map from encoder states to pseudo-counts."""
    gate: Literal["none", "surprise", "pace"] = "none"
    """What decides which vectors are there: none leaves it to the pseudo-counts, surprise keeps
    those of the words that the words before them do not foretell, pace has one for every so many
    nats of text (`nvib_jax.models.gate`)."""
    gate_share: float = 0.45
    """Share of the words whose vectors the gate keeps."""
    gate_window: int = 3
    """Words before a word that its surprise depends on."""
    keep_from: float | None = None
    """In training each sentence keeps a share of its vectors drawn from this to 1, evenly on a
    log scale, so that one model serves every budget; None keeps all, or what the gate leaves."""
    initial_alpha: float | None = None
    """Mean pseudo-count of a vector before training; None is alpha_delta, or 1 where that is 0."""
    initial_kept: float = 0.5
    """Share of the vectors that are not empty before training, for relu."""
    initial_variance: float = 0.1
    """Variance of each vector before training."""
    prior_alpha: float = 1.0
    """Total pseudo-count of the Dirichlet process, alpha_0^p."""
    alpha_delta: float = 0.3
    """Prior pseudo-counts a token adds: the knob of the bottleneck."""
    num_samples: int = 1
    """Draws per component in training, K."""
    evaluation_form: Literal[
        "exact", "published", "simplified", "expected_logit", "drawn", "average"
    ] = "expected_logit"
    """How a posterior is read when not training: a form of denoising attention, one draw, or the
    average of eight."""
    threshold: float | None = None
    """Drop components with a pseudo-count at most this when evaluating; None keeps all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, softmax, biases and KLs stay float32."""
    attention: Literal["auto", "xla", "pallas", "pallas_tpu", "pallas_gpu", "cudnn"] = "auto"
    """Implementation of denoising attention; auto takes the fastest measured on the device."""
    remat: bool = False
    """Recompute each layer for its gradient: less memory, a third more work."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        check_choice("model.kind", self.kind, tuple(LATENTS))

        def check(right: bool, name: str, wanted: str) -> None:
            if not right:
                raise ValueError(f"model.{name} is {getattr(self, name)}; wanted {wanted}")

        for name in (
            "dim",
            "hidden",
            "decoder_layers",
            "num_samples",
            "latent_queries",
            "gate_window",
            "codes",
            "prior_layers",
        ):
            check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("encoder_layers", "alpha_delta", "commitment", "adversary"):
            check(getattr(self, name) >= 0, name, "at least 0")
        for name in ("initial_variance", "prior_alpha"):
            check(getattr(self, name) > 0, name, "more than 0")
        check(self.initial_alpha is None or self.initial_alpha > 0, "initial_alpha", "more than 0")
        check(0 < self.stride_share <= 1, "stride_share", "0 < stride_share <= 1")
        check(0 <= self.code_decay < 1, "code_decay", "0 <= code_decay < 1")
        least = self.keep_from
        check(least is None or 0 < least < 1, "keep_from", "0 < keep_from < 1")
        check(0 < self.gate_share < 1, "gate_share", "0 < gate_share < 1")
        check(0 < self.initial_kept < 1, "initial_kept", "0 < initial_kept < 1")
        for name in ("heads", "latent_heads"):
            heads = getattr(self, name)
            check(heads >= 1 and self.dim % heads == 0, name, f"a divisor of model.dim, {self.dim}")
        check(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")

    @property
    def width(self) -> int:
        """D."""
        return self.dim

    def head_counts(self) -> dict[str, int]:
        """The heads of self-attention and of the decoder's denoising attention, if several."""
        several = {"latent_heads": self.latent_heads} if self.latent_heads > 1 else {}
        return {"heads": self.heads, **several}

    def bytes_per_token(self) -> int:
        """One state of width D for each layer."""
        itemsize = 2 if self.dtype == "bfloat16" else 4
        return itemsize * self.dim * (self.encoder_layers + self.decoder_layers)


@dataclass(frozen=True, kw_only=True)
class StackConfig(ModelConfig):
    """Architecture of a stack of plain layers with NVIB layers above them (`models.stack`)."""

    dim: int = 256
    """Width D of the model."""
    heads: int = 1
    """Heads of every attention."""
    hidden: int = 512
    """Width of the feed-forward layers."""
    plain_layers: int = 3
    """Layers with plain self-attention, below the others."""
    nvib_layers: int = 3
    """Layers whose self-attention reads a mixture; 0 is a plain Transformer."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before (pre) or after (post) each residual."""
    dropout: float = 0.1
    """Dropout rate in training."""
    pseudo_count: Literal["exp_linear", "exp_quadratic"] = "exp_linear"
    """Map from states to pseudo-counts; those of the NVIB layer below are multiplied in."""
    initial_alpha: float | None = None
    """Mean pseudo-count before training; None is alpha_delta, or 1 where that is 0."""
    initial_variance: float = 0.1
    """Variance of each vector before training."""
    prior_alpha: float = 1.0
    """Total pseudo-count of each Dirichlet process, alpha_0^p."""
    alpha_delta: float = 0.25
    """Prior pseudo-counts a token adds: the knob of the bottlenecks."""
    layer_weights: Literal["depth", "uniform"] = "depth"
    """Shares of the KLs of the NVIB layers in the loss: in proportion to depth, or all alike."""
    evaluation_form: Literal["exact", "published", "simplified", "expected_logit"] = (
        "expected_logit"
    )
    """How the posteriors are read when not training, a form of denoising attention."""
    threshold: float = 0.1
    """The pseudo-count above which a vector counts as kept."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, softmax, biases and KLs stay float32."""
    remat: bool = False
    """Recompute each layer for its gradient: less memory, a third more work."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        for name in ("dim", "hidden"):
            self._check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("plain_layers", "nvib_layers", "alpha_delta", "threshold"):
            self._check(getattr(self, name) >= 0, name, "at least 0")
        self._check(self.plain_layers + self.nvib_layers >= 1, "plain_layers", "at least 1 layer")
        for name in ("initial_variance", "prior_alpha"):
            self._check(getattr(self, name) > 0, name, "more than 0")
        start = self.initial_alpha
        self._check(start is None or start > 0, "initial_alpha", "more than 0")
        fits = self.heads >= 1 and self.dim % self.heads == 0
        self._check(fits, "heads", f"a divisor of model.dim, {self.dim}")
        self._check(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")

    def _check(self, right: bool, name: str, wanted: str) -> None:
        if not right:
            raise ValueError(f"model.{name} is {getattr(self, name)}; wanted {wanted}")

    @property
    def width(self) -> int:
        """D."""
        return self.dim

    def head_counts(self) -> dict[str, int]:
        """The heads of every attention, if several."""
        return {"heads": self.heads} if self.heads > 1 else {}

    def bytes_per_token(self) -> int:
        """One state of width D for each layer."""
        itemsize = 2 if self.dtype == "bfloat16" else 4
        return itemsize * self.dim * (self.plain_layers + self.nvib_layers)


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(StackConfig):
    """Architecture of a `DenoisingAutoencoder`: its encoder is the stack."""

    decoder_layers: int = 2
    """Decoder layers."""
    deletion: float = 0.1
    """Share of the tokens that are deleted from the input in training; a lone space never is."""
    num_samples: int = 1
    """Draws per component in training, K."""
    cross_mask: Literal["never", "evaluation", "always"] = "never"
    """When the decoder is not given the vectors whose pseudo-count is at most `threshold`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoder_layers", "num_samples"):
            self._check(getattr(self, name) >= 1, name, "at least 1")
        self._check(0 <= self.deletion < 1, "deletion", "0 <= deletion < 1")

    def bytes_per_token(self) -> int:
        """One state of width D for each layer, the decoder's too."""
        layers = self.plain_layers + self.nvib_layers
        return super().bytes_per_token() * (layers + self.decoder_layers) // layers


@dataclass(frozen=True, kw_only=True)
class CausalConfig(StackConfig):
    """Architecture of a `CausalLM`: the stack, in which a token sees only those before it."""


def nvae_config(config: ModelConfig) -> NVAEConfig:
    """The config, if it is an NVAE's.

    Raises:
      ValueError: the model is of another family.
    """
    if not isinstance(config, NVAEConfig):
        raise ValueError(f"the model is a {type(config).__name__}; wanted an NVAEConfig, a latent")
    return config
