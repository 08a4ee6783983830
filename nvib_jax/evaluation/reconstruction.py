"""Scores of reconstructions: exact sentences, BLEU, chrF, words at their places, word edits.

Words are separated by whitespace. BLEU and chrF are sacrebleu's, which has its own tokens.
"""

import math
from collections.abc import Sequence


def reconstruction_scores(references: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """Compare outputs with the texts they should be.

    All but "exact" and "empty" are corpus scores: counts are summed over sentences, then divided.
    A score is nan if it would be divided by 0.

    Args:
      references: the sentences that were encoded; one may be empty.
      outputs: the reconstructions, in the same order; one may be empty.

    Returns:
      "exact": share of identical sentences, 0 to 1.
      "bleu": see `corpus_bleu`, 0 to 100.
      "chrf": corpus chrF2 (character 1- to 6-grams, no spaces) of sacrebleu, 0 to 100.
      "token_accuracy": the number of words that equal the reference's at the same place, over the
      number of words of the longer sentence, 0 to 1. If the first word is lost, all words after it
      are at wrong places; a word too many at the end costs only itself. nan if neither side has a
      word.
      "word_error_rate": `word_edit_distance` over the number of the references' words, 0 or more;
      it may be above 1 if outputs are too long. nan if no reference has a word.
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
    """Corpus BLEU of sacrebleu, 0 to 100, with its tokens (13a), its smoothing, and one reference.

    It is 0 if no output has four tokens, even if all are exact, because there is no 4-gram.
    """
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(outputs), [list(references)]).score)


def word_edit_distance(a: str, b: str) -> int:
    """Fewest words to insert, delete or replace to turn `a` into `b` (Levenshtein 1966)."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(a.split(), b.split())
