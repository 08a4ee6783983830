"""How much of a text comes back: sentences, BLEU, characters, words in their places, edits.

Words are what whitespace separates; BLEU and chrF are sacrebleu's, on their own tokens.
"""

import math
from collections.abc import Sequence


def reconstruction_scores(references: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """Compare outputs with the texts they should be.

    All but "exact" and "empty" are of the corpus: counts are summed over sentences, then divided.
    Where there is nothing to divide by, the score is nan.

    Args:
      references: the sentences that were encoded; one may be empty.
      outputs: what came back, in the same order; one may be empty.

    Returns:
      "exact": share of identical sentences, 0 to 1.
      "bleu": see `corpus_bleu`, 0 to 100.
      "chrf": corpus chrF2 (character 1- to 6-grams, no spaces) of sacrebleu, 0 to 100.
      "token_accuracy": words that equal the reference's at the same place, over the longer of both
      sentences, 0 to 1: a lost first word costs all that follow, a word too many costs itself. nan
      if neither side has a word.
      "word_error_rate": see `word_edit_distance`, over the references' words, 0 or more; above 1
      where outputs are too long. nan if no reference has a word.
      "empty": share of outputs without a word, 0 to 1.

    Raises:
      ValueError: different numbers of sentences, or none.

    >>> scores = reconstruction_scores(["the dog sees a cat"], ["the dog sees a bird"])
    >>> scores["exact"], scores["token_accuracy"], scores["word_error_rate"]
    (0.0, 0.8, 0.2)
    """
    import sacrebleu

    if len(references) != len(outputs) or not references:
        raise ValueError(
            f"{len(outputs)} outputs for {len(references)} references; wanted as many, at least 1"
        )
    pairs = [(a.split(), b.split()) for a, b in zip(references, outputs, strict=True)]
    in_place = sum(v == w for a, b in pairs for v, w in zip(a, b, strict=False))
    places = sum(max(len(a), len(b)) for a, b in pairs)
    edits = sum(map(word_edit_distance, references, outputs))
    words = sum(len(a) for a, _ in pairs)
    same = sum(a == b for a, b in zip(references, outputs, strict=True))
    return {
        "exact": same / len(references),
        "bleu": corpus_bleu(references, outputs),
        "chrf": float(sacrebleu.corpus_chrf(list(outputs), [list(references)]).score),
        "token_accuracy": in_place / places if places else math.nan,
        "word_error_rate": edits / words if words else math.nan,
        "empty": sum(not b for _, b in pairs) / len(pairs),
    }


def corpus_bleu(references: Sequence[str], outputs: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu, 0 to 100: its tokens (13a) and smoothing, one reference each.

    0 where no output has four tokens, even if all are identical: there is no 4-gram to match.
    """
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(outputs), [list(references)]).score)


def word_edit_distance(a: str, b: str) -> int:
    """Fewest words to insert, delete or replace that make `b` of `a` (Levenshtein 1966)."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(a.split(), b.split())
