"""How a reconstruction suffers when characters of the input are wrong.

Each character is deleted, preceded by a random one, replaced by one, or swapped with the next, with
a probability p; the text that should come out is the clean one. Changes from p = 0 alone mislead,
because a model that is bad already loses little: levels stand beside them. Source of the protocol:
Behjati, Fehr & Henderson (2023), section 5.3.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nvib_jax.evaluation.reconstruction import reconstruction_scores
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.text_model import TextModel

KINDS = ("delete", "insert", "substitute", "swap")
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def corrupt(
    text: str, kind: str, share: float, rng: np.random.Generator, alphabet: Sequence[str]
) -> str:
    """A text with noise of one kind in each character with probability `share`.

    Args:
      text: at least one character.
      kind: one of `KINDS`.
      share: 0 to 1.
      rng: draws which characters, and the new ones.
      alphabet: what new characters are drawn from.

    Returns:
      The text; of one that would lose all characters, the first is left.

    >>> corrupt("abc", "swap", 1.0, np.random.default_rng(0), "xyz")
    'bac'
    """
    hit = rng.random(len(text)) < share
    new = [alphabet[i] for i in rng.integers(len(alphabet), size=len(text))]
    pairs = list(zip(text, hit, new, strict=True))
    match kind:
        case "delete":
            return "".join(c for c, h, _ in pairs if not h) or text[0]
        case "insert":
            return "".join(n + c if h else c for c, h, n in pairs)
        case "substitute":
            return "".join(n if h else c for c, h, n in pairs)
        case "swap":
            letters, i = list(text), 0
            while i + 1 < len(letters):
                if hit[i]:
                    letters[i], letters[i + 1] = letters[i + 1], letters[i]
                    i += 1  # a character moves once
                i += 1
            return "".join(letters)
    raise ValueError(f"kind is {kind!r}; wanted one of {', '.join(KINDS)}")


def noise_table(
    model: TextModel,
    texts: Sequence[str],
    *,
    shares: Sequence[float] = SHARES,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Reconstructions of noisy texts, a row for each kind and share.

    Args:
      model: its tokens are characters or bytes.
      texts: clean held-out sentences.
      shares: probabilities of noise in a character.
      kinds: of `KINDS`.
      seed: of the noise, which is the same for every model.

    Returns:
      Rows with "kind", "share", "nats" (cross-entropy of a character of the clean text under
      teacher forcing, its end counted), "chrf", "bleu" (0 to 100), "exact" (0 to 1).
    """
    alphabet = sorted(set("".join(texts)) - {" "})
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        for share in shares:
            known = next((r for r in rows if share == 0 and r["share"] == 0), None)
            if known:  # no noise is the same of every kind
                rows.append({**known, "kind": kind})
                continue
            rng = np.random.default_rng([seed, KINDS.index(kind), round(1000 * share)])
            noisy = [corrupt(text, kind, share, rng, alphabet) for text in texts]
            noisy = [shortened(model, text) for text in noisy]
            found = reconstruction_scores(texts, model.reconstruct(noisy, clean=False))
            rows.append(
                {
                    "kind": kind,
                    "share": share,
                    "nats": rewriting_nats(model, noisy, texts),
                    **{name: found[name] for name in ("chrf", "bleu", "exact")},
                }
            )
    return rows


def noise_scores(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over kinds: "noise_chrf_20" and "noise_nats_20" at a share of .2, and so on."""
    scores = {}
    for share in dict.fromkeys(row["share"] for row in table):
        same = [row for row in table if row["share"] == share]
        for name in ("chrf", "nats"):
            mean = float(np.mean([row[name] for row in same]))
            scores[f"noise_{name}_{round(100 * share)}"] = mean
    return scores


def rewriting_nats(model: TextModel, inputs: Sequence[str], outputs: Sequence[str]) -> float:
    """Cross-entropy of a token of the outputs, given the inputs, in nats."""
    rows, wanted = model.tokenize(inputs), model.tokenize(outputs)
    run, total, count = model.compiled(_nats), 0.0, 0
    for part, tokens, mask in model.batches(rows):
        out = model.padded([wanted[i] for i in part], model.max_length, len(tokens))
        found = jax.device_get(run(model.params, tokens, mask, *out))
        total, count = total + float(found[0]), count + int(found[1])
    return total / count


def shortened(model: TextModel, text: str) -> str:
    """The text without the characters at its end for which the model has no positions."""
    while len(model.tokenizer.encode(text)) > model.max_length:
        text = text[:-1]
    return text


def _nats(
    model: Any, tokens: jax.Array, mask: jax.Array, wanted: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(nats, summed over the batch; how many tokens)."""
    inputs, targets, counted = decoder_io(wanted, valid, model.special)
    memories = model.remember(tokens, mask)
    return model.cross_entropy(memories, inputs, targets, counted), counted.sum()
