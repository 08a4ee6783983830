"""How much of what should have been written was: BLEU, chrF and ROUGE, each from 0 to 100."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial


def bleu(said: Sequence[str], wanted: Sequence[str]) -> float:
    """BLEU of all texts together, as sacrebleu counts it."""
    from sacrebleu import corpus_bleu

    return corpus_bleu(list(said), [list(wanted)], force=True).score


def chrf(said: Sequence[str], wanted: Sequence[str]) -> float:
    """chrF of all texts together, as sacrebleu counts it."""
    from sacrebleu import corpus_chrf

    return corpus_chrf(list(said), [list(wanted)]).score


def rouge(said: Sequence[str], wanted: Sequence[str], *, kind: str) -> float:
    """ROUGE (Lin 2004): the mean over texts of the F1 of what both have, in percent.

    Words are runs of letters and digits in lower case, and are not stemmed. On English text that is
    what the package rouge-score counts, which keeps no letters but a to z.

    Args:
      said: what was written.
      wanted: what should have been.
      kind: "1" and "2" count words and pairs of words, "L" the longest common subsequence.

    >>> print(rouge(["the cat sat"], ["the cat sat down"], kind="1"))
    85.71428571428571
    """
    shares = [_f1(_words(a), _words(b), kind) for a, b in zip(said, wanted, strict=True)]
    return 100 * sum(shares) / len(shares)


# Figures of what is written, by the names that they go by; more is better.
SCORES: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "bleu": bleu,
    "chrf": chrf,
    **{f"rouge{kind}": partial(rouge, kind=kind) for kind in ("1", "2", "L")},
}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _f1(said: list[str], wanted: list[str], kind: str) -> float:
    if kind == "L":
        both, ours, theirs = _common(said, wanted), len(said), len(wanted)
    else:
        n = int(kind)
        a, b = (Counter(zip(*(t[i:] for i in range(n)), strict=False)) for t in (said, wanted))
        both, ours, theirs = (a & b).total(), a.total(), b.total()
    return 2 * both / (ours + theirs) if both else 0.0


def _common(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for j, other in enumerate(b):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
    return row[-1]
