"""The kinds of latent: the NVIB and its rivals, by the names that `model.kind` has for them."""

from typing import Any

from nvib_jax.models.latents.dirichlet import DirichletLatent
from nvib_jax.models.latents.rivals import (
    GaussianLatent,
    PlainLatent,
    PooledLatent,
    QueriesLatent,
    StridedLatent,
)

__all__ = ["LATENTS", "DirichletLatent"]

LATENTS: dict[str, type[Any]] = {
    "NVAE": DirichletLatent,
    "T": PlainLatent,
    "VTV": GaussianLatent,
    "VTP": PooledLatent,
    "VTS": StridedLatent,
    "VTQ": QueriesLatent,
}
