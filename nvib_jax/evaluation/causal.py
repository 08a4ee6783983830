"""What a causal language model with NVIB is worth: perplexity, what its layers keep, samples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nvib_jax.data import PreparedData
from nvib_jax.evaluation.layers import layer_table, page_head
from nvib_jax.evaluation.likelihood import held_out_terms, ratio, token_counts
from nvib_jax.evaluation.samples import language_scores, sample_scores
from nvib_jax.generate import DecodingConfig
from nvib_jax.text_model import TextModel

SHOWN = 12  # samples that are kept for a person to read


def measure_causal(
    model: TextModel,
    data: PreparedData,
    texts: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Scores and tables of a causal language model.

    Args:
      model: the model.
      data: its data; samples are compared with the training sentences.
      texts: held-out sentences.
      samples: how many sentences are written.
      seed: of the samples.
      progress: called with a line of text about what is being measured.

    Returns:
      "scores": one flat dict, with "nats" a token (end-of-sentence is one), its standard error over
      sentences, "perplexity", the KLs of each layer in nats a sentence, and scores of the samples;
      "layers", the rows of `layer_table`; "samples", some of them.
    """
    progress(f"scoring {len(texts)} sentences")
    log_p = model.score(texts, clean=False)
    nats, error = ratio(-log_p, token_counts(model, texts))
    scores = {"nats": nats, "nats_error": error, "perplexity": float(np.exp(nats))}
    terms = held_out_terms(model, texts, seed=seed)
    scores |= {name: value for name, value in terms.items() if name.startswith("kl_")}
    found: dict[str, Any] = {"layers": layer_table(model, texts)}
    for row in found["layers"]:
        scores |= {f"{name}_{row['layer']}": row[name] for name in ("kept", "effective")}
    if samples:
        progress(f"drawing {samples} samples")
        written = model.sample(samples, decoding=DecodingConfig(method="sample"), seed=seed)
        known = sample_scores(written, training=data.sentences("train"), seed=seed)
        scores |= {f"sample_{name}": value for name, value in known.items()}
        if model.config.data.source == "grammar":
            scores |= language_scores(written)
        found["samples"] = written[:SHOWN]
    return {"scores": scores, **found}


def page(found: dict[str, Any]) -> str:
    """A page of text: perplexity, what the layers keep, samples."""
    lines = page_head(found, _ROWS)
    lines += ["", "Samples"] + [f"  {text}" for text in found.get("samples", [])]
    return "\n".join(lines)


_ROWS = (  # metric, its description on the page, format
    ("nats", "cross-entropy a token, nats", "{:.3f}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("in_language", "samples in the language", "{:.1%}"),
)
