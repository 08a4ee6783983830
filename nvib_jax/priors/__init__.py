"""Priors that are fitted to the latents of a trained model, so that its samples are like its texts.

The standard prior of a good reconstructor has holes: regions where no text's posterior lies, so
that what is written from there is no text. A learned prior draws where posteriors are.

    points      posterior <-> a set of points, in the few directions that differ
    flow        flow matching on sets: loss, integration, likelihood, as functions of a velocity
    network     the velocity, a Transformer without positions
    densities   what may be fitted: the flow, or a mixture of Gaussians for single vectors
    fit         training texts -> `LearnedPrior`
    prior       `LearnedPrior`: draw, save, load
    texts       the rival that has no density: what a language model writes, encoded
"""

from nvib_jax.priors.config import PriorConfig, Sampling
from nvib_jax.priors.fit import fit_prior
from nvib_jax.priors.prior import LearnedPrior, write_learned

__all__ = ["LearnedPrior", "PriorConfig", "Sampling", "fit_prior", "write_learned"]
