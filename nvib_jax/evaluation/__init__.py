"""What a trained model is worth: reconstruction, use of the bottleneck, likelihood, samples.

reconstruction.py  exact match and BLEU of what comes back
usage.py           how many vectors were used, hard and soft
likelihood.py      the evidence lower bound, nats
samples.py         share of prior samples in the language, where the language is known
summary.py         all of it on held-out sentences, and a page for a person
"""

from nvib_jax.evaluation.likelihood import evidence_bound
from nvib_jax.evaluation.reconstruction import reconstruction_scores
from nvib_jax.evaluation.samples import language_scores
from nvib_jax.evaluation.summary import evaluate, summarize
from nvib_jax.evaluation.usage import vector_usage

__all__ = [
    "evaluate",
    "evidence_bound",
    "language_scores",
    "reconstruction_scores",
    "summarize",
    "vector_usage",
]
