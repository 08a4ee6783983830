"""The configuration: frozen dataclasses, one field one meaning; `presets` reads and writes it.

A preset file defines `config() -> Config`; the command line overrides single fields
(`--train.steps 100`); the resolved config is saved in the run and in every checkpoint.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from nvib_jax.data.config import DataConfig
from nvib_jax.fields import INFINITE, check_fields
from nvib_jax.models.config import ModelConfig, NVAEConfig


def _at_least(section: str, config: Any, least: int, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= least:
            raise ValueError(
                f"{section}.{name} is {getattr(config, name)}; wanted at least {least}"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss: cross-entropy plus two weighted, annealed KLs (`nvib_jax.objective`)."""

    units: Literal["published", "elbo"] = "published"
    """published: mean cross-entropy a token + lambda_G KL_G/(S D) + lambda_D KL_D/S;
    elbo: (negative log-likelihood + lambda_G KL_G + lambda_D KL_D) / tokens, 1 and 1 the bound."""
    lambda_gaussian: float = 1e-3
    """Weight of the Gaussian KL."""
    lambda_dirichlet: float = 1.0
    """Weight of the Dirichlet KL."""
    vector_price: float = 0.0
    """Nats for each vector that is there, from the first step: -log p(m) of a geometric prior over
    their number (elbo units; published divides it by S)."""
    free_vectors: float = 0.0
    """Vectors that have no price, as a share of the tokens: with a price, how many are kept."""
    gaussian_form: Literal["expected_count", "exact"] = "expected_count"
    """Form of the Gaussian KL in the loss; reported bounds always use exact."""
    dirichlet_form: Literal["expected_count", "exact"] = "expected_count"
    """Form of the Dirichlet KL in the loss; reported bounds always use exact."""
    anneal: Literal["constant", "linear", "cosine", "cyclic"] = "constant"
    """Schedule of the KLs' common factor."""
    anneal_start: int = 0
    """Steps at factor 0 before the ramp."""
    anneal_steps: int = 0
    """Steps of the ramp."""
    dirichlet_from_start: bool = False
    """Anneal the Gaussian KL only: vectors compete for pseudo-counts from the first step."""
    anneal_cycle: int = 0
    """Steps of a cycle, for cyclic."""
    alpha_delta_start: float | None = None
    """The Dirichlet KL's alpha_delta at step 0; model.alpha_delta from alpha_delta_steps on."""
    alpha_delta_steps: int = 0
    """Steps from alpha_delta_start to model.alpha_delta, on a line."""
    free_gaussian: float = 0.0
    """Free bits: nats a token below which the Gaussian KL costs nothing."""
    free_dirichlet: float = 0.0
    """Free bits: nats a token below which the Dirichlet KL costs nothing."""
    capacity_gaussian: float | None = None
    """Capacity: |KL_G - C(t)| instead of KL_G, C in nats a token; None is none."""
    capacity_dirichlet: float | None = None
    """Capacity: |KL_D - C(t)| instead of KL_D, C in nats a token; None is none."""
    capacity_steps: int = 0
    """Steps from capacity 0 to the capacity, on a line."""
    lambda_mmd: float = 0.0
    """Weight of the maximum mean discrepancy between a batch's mixtures and draws of the prior,
    beside the cross-entropy of a sentence (elbo units) or of a token (published)."""
    mmd_of: Literal["sets", "vectors"] = "sets"
    """What the discrepancy compares: how whole mixtures are distributed, or their vectors alone."""
    mmd_bandwidth: float | None = None
    """Width of the kernel between vectors; None is the root of their dimensions."""
    lambda_sliced: float = 0.0
    """Weight of the squared sliced Wasserstein distance between the vectors of a batch and those of
    draws of the prior, in the units of lambda_mmd."""
    encoder_noise: float = 0.0
    """Share of the encoder's input words that are replaced by the unknown word in training."""
    word_dropout: float = 0.0
    """Share of the decoder's input words that are replaced by the unknown word in training."""

    def __post_init__(self) -> None:
        check_fields(self, "objective")
        names = "lambda_gaussian lambda_dirichlet vector_price free_vectors free_gaussian "
        names += "free_dirichlet anneal_start anneal_steps alpha_delta_steps capacity_steps "
        names += "lambda_mmd lambda_sliced"
        _at_least("objective", self, 0, *names.split())
        for name in ("alpha_delta_start", "capacity_gaussian", "capacity_dirichlet"):
            if getattr(self, name) is not None:
                _at_least("objective", self, 0, name)
        if self.mmd_bandwidth is not None and not self.mmd_bandwidth > 0:
            raise ValueError(f"objective.mmd_bandwidth is {self.mmd_bandwidth}; wanted more than 0")
        for part in ("gaussian", "dirichlet"):
            if getattr(self, f"free_{part}") and getattr(self, f"capacity_{part}") is not None:
                raise ValueError(
                    f"objective.free_{part} and objective.capacity_{part} are both given; "
                    "wanted one"
                )
        for name in ("encoder_noise", "word_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; wanted 0 to 1")
        if self.anneal == "cyclic":
            _at_least("objective", self, max(self.anneal_steps, 1), "anneal_cycle")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices share the work; a run may go on with another mesh than it began with."""

    data: int = 0
    """Ways the batch is split with parameters whole on each; 0 takes what fsdp and tensor leave."""
    fsdp: int = 1
    """Ways the batch, the parameters and their moments are split; gathered where they are used."""
    tensor: int = 1
    """Ways heads, feed-forward layers and vocabulary are split, the work on one sentence."""

    def __post_init__(self) -> None:
        check_fields(self, "mesh")
        _at_least("mesh", self, 0, "data")
        _at_least("mesh", self, 1, "fsdp", "tensor")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimiser, length, and what is written when."""

    run_dir: str = ""
    """Where checkpoints, metrics and the summary go; empty is runs/PRESET or the next free name."""
    seed: int = 0
    """Seed of parameters, draws, dropout and batch order."""
    steps: int = 1000
    """Optimiser steps."""
    optimizer: Literal["adam", "adamw", "radam"] = "adamw"
    """Optimiser."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Decay after warm-up: none, or to a hundredth of the peak at the last step."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices (adamw only)."""
    clip: float = field(default=1.0, metadata=INFINITE)
    """Gradients are clipped to this global norm; inf never clips."""
    accumulate: int = 1
    """Parts a batch is worked off in, one after the other: less memory; other draws, same mean."""
    log_every: int = 50
    """Steps between log lines."""
    eval_every: int = 500
    """Steps between evaluations on held-out data, each followed by a checkpoint."""
    eval_sentences: int = 512
    """Held-out sentences in an evaluation during training and in the summary."""
    keep_checkpoints: int = 2
    """Last checkpoints that are kept: were one damaged, the one before it is read."""
    keep_best: int = 1
    """Checkpoints with the lowest loss on held-out data that are kept beside them."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps are kept for good; 0 keeps none of them."""
    bad_step: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is no finite number, or a spike, is never taken: stop there, or
    skip its batch (and stop after `log_every` in a row)."""
    spike: float = 0.0
    """A loss this many times its running mean is a spike; 0 is never."""
    watchdog: float = 600.0
    """Say so when nothing has moved for this many seconds; 0 never does."""

    def __post_init__(self) -> None:
        check_fields(self, "train")
        names = "steps log_every eval_every eval_sentences keep_checkpoints accumulate"
        _at_least("train", self, 1, *names.split())
        names = "seed warmup_steps weight_decay keep_best keep_every watchdog"
        _at_least("train", self, 0, *names.split())
        if self.seed >= 2**32:  # jax keeps the last 32 bits, and 2^32 would be seed 0 again
            raise ValueError(f"train.seed is {self.seed}; wanted less than {2**32}")
        if self.spike and not self.spike > 1:
            raise ValueError(f"train.spike is {self.spike}; wanted 0, or more than 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}; wanted more than 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on."""

    data: DataConfig = field(default_factory=DataConfig)
    """Text to batches."""
    model: ModelConfig = field(default_factory=NVAEConfig)
    """Architecture and bottleneck: the config of one of the families of models."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimiser and run."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        check_fields(self, "")
