"""Measures trained models on text that they have not seen; `protocol.py` runs all measurements.

reconstruction.py  BLEU, chrF, exact match, word accuracy of reconstructions
forms.py           the same for every way to read a posterior, and for several thresholds
usage.py           how many vectors were used, hard and soft, by length and by token
likelihood.py      ELBO and importance-weighted bound, nats, with standard errors
collapse.py        mutual information, active dimensions, KL by dimension and vector
samples.py         prior samples: in the language, like the data, like one another, memorised
language_model.py  the causal language model that scores samples; language_model_training.py
interpolation.py   paths of texts between two texts
embeddings.py      probes, retrieval and near-duplicates by embeddings and by a kernel of mixtures
sentence_tasks.py  STS and SentEval's files; sentence_scores.py scores embeddings on them
editing.py         how often an edit of a grammar sentence succeeds, told exactly
table.py, report/  runs side by side, as text and as a page
summary.py         the page that a training run ends with
"""

from nvib_jax.evaluation.collapse import collapse_report, mutual_information
from nvib_jax.evaluation.forms import compare_forms, compare_thresholds
from nvib_jax.evaluation.interpolation import (
    interpolate_pairs,
    interpolation_scores,
    mirrored_pairs,
)
from nvib_jax.evaluation.likelihood import evidence_bound, importance_bounds
from nvib_jax.evaluation.reconstruction import reconstruction_scores
from nvib_jax.evaluation.samples import language_scores, sample_scores
from nvib_jax.evaluation.summary import evaluate, summarize
from nvib_jax.evaluation.usage import attention_of, token_usage, usage_by_length, vector_usage

__all__ = [
    "attention_of",
    "collapse_report",
    "compare_forms",
    "compare_thresholds",
    "evaluate",
    "evidence_bound",
    "importance_bounds",
    "interpolate_pairs",
    "interpolation_scores",
    "language_scores",
    "mirrored_pairs",
    "mutual_information",
    "reconstruction_scores",
    "sample_scores",
    "summarize",
    "token_usage",
    "usage_by_length",
    "vector_usage",
]
