"""What is fitted to the latents of a trained model, and how."""

from dataclasses import dataclass, fields
from typing import Literal

from nvib_jax.fields import check_fields


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """A prior over the mixtures of a trained model, and its fitting."""

    kind: Literal["flow", "gaussians"] = "flow"
    """flow is flow matching on sets; gaussians draws every vector by itself from one mixture of
    Gaussians (Ghosh et al. 2020)."""
    noise: float = 0.4
    """Standard deviation of the noise that blurs each point, whose own is 1: the prior is a density
    of blurred points, since one of the points themselves would be highest at the training texts."""
    variance_share: float = 0.98
    """Share of the points' variance that the directions kept hold."""
    components: int = 64
    """gaussians: how many."""
    dim: int = 128
    """flow: width of its Transformer."""
    heads: int = 4
    """flow: heads of its attention."""
    hidden: int = 512
    """flow: width of its feed-forward layers."""
    layers: int = 3
    """flow: its layers."""
    label_dropout: float = 0.2
    """flow: share of the training sets whose labels are hidden, so that it knows texts without."""
    steps: int = 1500
    """Steps of fitting."""
    batch_size: int = 256
    """Texts a step."""
    learning_rate: float = 2e-3
    """Peak of the learning rate."""
    average: float = 0.998
    """Decay of the running mean of its parameters, which is what is kept."""
    seed: int = 0
    """Seed of parameters, batches and noise."""

    def __post_init__(self) -> None:
        check_fields(self, "prior")

        def check(right: bool, name: str, wanted: str) -> None:
            if not right:
                raise ValueError(f"prior.{name} is {getattr(self, name)}; wanted {wanted}")

        for name in ("components", "dim", "hidden", "layers", "steps", "batch_size"):
            check(getattr(self, name) >= 1, name, "at least 1")
        check(self.noise > 0, "noise", "more than 0")
        check(0 < self.variance_share <= 1, "variance_share", "0 < variance_share <= 1")
        fits = self.heads >= 1 and self.dim % self.heads == 0
        check(fits, "heads", f"a divisor of prior.dim, {self.dim}")
        check(0 <= self.label_dropout < 1, "label_dropout", "0 <= label_dropout < 1")
        check(self.learning_rate > 0, "learning_rate", "more than 0")
        check(0 <= self.average < 1, "average", "0 <= average < 1")


# Fields that matter for one kind only -> that kind.
_OF_ONE_KIND = {
    "components": "gaussians",
    **dict.fromkeys(("dim", "heads", "hidden", "layers", "label_dropout"), "flow"),
}


def check_effects(config: PriorConfig) -> None:
    """Refuse a field that was set and does nothing for this kind.

    It is asked before a fit, and not of a config that is read, whose defaults may be an older
    version's.

    Raises:
      ValueError: there is one.
    """
    for field in fields(config):
        value, kind = getattr(config, field.name), _OF_ONE_KIND.get(field.name, config.kind)
        if kind != config.kind and value != field.default:
            raise ValueError(
                f"prior.{field.name} is {value}, which has no effect on prior.kind "
                f"{config.kind}; wanted prior.kind {kind}"
            )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How sets are drawn from a flow, and how its density is integrated."""

    steps: int = 20
    """Steps of the integration."""
    method: Literal["euler", "midpoint"] = "midpoint"
    """euler is of first order, one evaluation a step; midpoint of second, two."""
    guidance: float = 1.0
    """How strongly labels count: 0 ignores them, 1 takes them as the data have them, more
    exaggerates them."""

    def __post_init__(self) -> None:
        check_fields(self, "sampling")
        if self.steps < 1 or self.guidance < 0:
            raise ValueError(
                f"steps, guidance are {self.steps}, {self.guidance}; wanted steps >= 1, "
                "guidance >= 0"
            )
