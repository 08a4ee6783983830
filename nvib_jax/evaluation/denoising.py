"""What a denoising autoencoder is worth: noise, segments, probes, and what its layers keep.

The counterpart of `nvib_jax.evaluation.protocol` for models whose bottlenecks are in the encoder's
self-attention. A model without NVIB layers, the plain Transformer, is measured alike.
"""

from collections.abc import Callable, Sequence
from typing import Any

from nvib_jax.evaluation.character_noise import SHARES, noise_scores, noise_table, rewriting_nats
from nvib_jax.evaluation.layers import layer_table, page_head
from nvib_jax.evaluation.likelihood import held_out_terms
from nvib_jax.evaluation.probes import probe_table
from nvib_jax.evaluation.reconstruction import reconstruction_scores
from nvib_jax.evaluation.segments import attended, runs, segment_scores
from nvib_jax.text_model import TextModel

NOISED = 512  # most sentences that noise is added to, each in twenty ways
SHOWN = 12  # sentences whose segments and reconstructions are kept for a person to read


def measure_denoising(
    model: TextModel,
    texts: Sequence[str],
    *,
    seed: int = 0,
    quick: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Scores and tables of a denoising autoencoder.

    Args:
      model: the model.
      texts: held-out sentences.
      seed: of the noise and of the random segments.
      quick: noise of one share only, and no probes.
      progress: called with a line of text about what is being measured.

    Returns:
      "scores": one flat dict; "reconstructions"; "noise", the rows of `noise_table`; "segments",
      texts with the component of each character; "layers", the rows of `layer_table`; "probes", the
      rows of `probe_table` (if the texts are the grammar's). Noise, segments and probes are for
      models whose tokens are characters.
    """
    grammar = model.config.data.source == "grammar"
    characters = model.config.data.pieces == "characters"
    progress(f"reconstructing {len(texts)} sentences")
    outputs = model.reconstruct(texts, clean=False)
    scores = reconstruction_scores(texts, outputs)
    scores["nats"] = rewriting_nats(model, texts, texts)
    terms = held_out_terms(model, texts, seed=seed)
    scores |= {name: value for name, value in terms.items() if name.startswith("kl_")}
    pairs = list(zip(texts, outputs, strict=True))[:SHOWN]
    found: dict[str, Any] = {"reconstructions": [{"text": a, "output": b} for a, b in pairs]}
    found["layers"] = layer_table(model, texts)
    for row in found["layers"]:
        scores |= {f"{name}_{row['layer']}": row[name] for name in ("kept", "effective")}
    if characters:
        progress("adding noise to characters")
        shares = (0.0, 0.2) if quick else SHARES
        found["noise"] = noise_table(model, texts[:NOISED], shares=shares, seed=seed)
        scores |= noise_scores(found["noise"])
        progress("comparing segments with words")
        scores |= segment_scores(model, texts, seed=seed)
        shown = texts[:SHOWN]
        found["segments"] = [
            {"text": text, "owners": owner.tolist(), "segments": runs(owner)}
            for text, owner in zip(shown, attended(model, shown), strict=True)
        ]
        if grammar and not quick:
            progress("fitting linear probes")
            found["probes"] = probe_table(model)
            for row in found["probes"]:
                scores[f"probe_{row['label']}"] = row["layers"][-1]
    return {"scores": scores, **found}


def page(found: dict[str, Any]) -> str:
    """A page of text: the scores, then sentences, then segments."""
    lines = page_head(found, _ROWS)
    lines += ["", "Reconstructions of held-out sentences (= is exact)"]
    for row in found["reconstructions"][:6]:
        same = "=" if row["text"] == row["output"] else "~"
        lines += [f"  in   {row['text']}", f"  {same} out {row['output']}"]
    if "segments" in found:
        lines += ["", "Segments: characters that attend to the same component"]
        for row in found["segments"][:6]:
            parts = [row["text"][a:b] for a, b in row["segments"]]
            lines.append("  " + "|".join(parts))
    return "\n".join(lines)


_ROWS = (  # metric, its description on the page, format
    ("exact", "sentences reconstructed exactly", "{:.1%}"),
    ("chrf", "reconstruction chrF (sacrebleu)", "{:.1f}"),
    ("nats", "cross-entropy a token, nats", "{:.3f}"),
    ("noise_chrf_20", "chrF with noise in a fifth of the characters", "{:.1f}"),
    ("segments_word_f1", "segments that are words, F1", "{:.2f}"),
    ("fixed_word_f1", "  segments of the best fixed width", "{:.2f}"),
    ("random_word_f1", "  as many at random", "{:.2f}"),
)
