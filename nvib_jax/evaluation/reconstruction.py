"""How much of a text comes back: exact match and BLEU."""

from collections.abc import Sequence


def reconstruction_scores(references: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """Compare outputs with the texts they should be.

    Args:
      references: the sentences that were encoded.
      outputs: what came back, in the same order.

    Returns:
      "exact": share of identical sentences, 0 to 1; "bleu": corpus BLEU of sacrebleu, 0 to 100,
      on its own tokens (13a), no smoothing beyond its default.

    Raises:
      ValueError: different numbers of sentences, or none.
    """
    import sacrebleu

    if len(references) != len(outputs) or not references:
        raise ValueError(
            f"{len(outputs)} outputs for {len(references)} references; wanted as many, at least 1"
        )
    same = sum(a == b for a, b in zip(references, outputs, strict=True))
    bleu = sacrebleu.corpus_bleu(list(outputs), [list(references)])
    return {"exact": same / len(references), "bleu": float(bleu.score)}
