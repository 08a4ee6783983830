"""What is minimised, and what is reported: the KLs as the loss sees them, and the bounds.

`bounds` has the sums over a sentence, `schedules` what the training loss makes of a KL, `aggregate`
what a batch costs as a whole, and `cross_entropy` an output layer's loss without its logits.
"""

from nvib_jax.objective.aggregate import mmd, sliced_wasserstein
from nvib_jax.objective.bounds import (
    elbo,
    elbo_weights,
    gaussian_log_density_ratio,
    iwae,
    log_density_ratio,
    log_likelihood,
    published_scale,
)
from nvib_jax.objective.schedules import SCHEDULES, anneal, budget

__all__ = [
    "SCHEDULES",
    "anneal",
    "budget",
    "elbo",
    "elbo_weights",
    "gaussian_log_density_ratio",
    "iwae",
    "log_density_ratio",
    "log_likelihood",
    "mmd",
    "published_scale",
    "sliced_wasserstein",
]
