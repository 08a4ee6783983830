"""Texts as ids that fit a model: what does not fit is refused by a sentence, and never cut off."""

import dataclasses
from collections.abc import Callable, Sequence

from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.decoding import Decoding
from nvib_jax.pretrained.tokenizer import PretrainedTokenizer
from nvib_jax.text.engine import check_texts

Rows = list[list[int]]


def encoded(
    about: Architecture,
    tokenizer: PretrainedTokenizer,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
) -> tuple[Rows, Rows | None]:
    """The ids of texts and of their targets, None where there are none.

    A classifier's targets are one id each, the label's; it reads texts without them too.

    Raises:
      ValueError: targets where there should be none, or the reverse; a text of no tokens, or of
        more than there are positions; a label that the model does not know.
    """
    if targets is None and about.kind == "seq2seq":
        raise ValueError(f"a {about.family} model needs targets, one for each text")
    if targets is not None and not about.has_targets:
        raise ValueError(f"a {about.family} model takes no targets")
    rows = sources_of(about, tokenizer, texts)
    if targets is None:
        return rows, None
    if about.kind == "classifier":
        others = [[_label(about, i, target)] for i, target in enumerate(targets)]
    else:
        others = _ids(about, targets, tokenizer.encode_target, "targets")
    if len(others) != len(rows):
        raise ValueError(f"{len(rows)} texts have {len(others)} targets; wanted as many")
    return rows, others


def sources_of(about: Architecture, tokenizer: PretrainedTokenizer, texts: Sequence[str]) -> Rows:
    """The ids of texts to read."""
    return _ids(about, texts, tokenizer.encode_source, "texts")


def with_room(about: Architecture, rows: Rows, rules: Decoding) -> tuple[Decoding, int | None]:
    """The rules with no more new tokens than there are positions for, and the widest batch.

    Args:
      about: a model that writes.
      rows: ids to write after, or to read.
      rules: of decoding.

    Raises:
      ValueError: a prompt that leaves no position for a token more.
    """
    most = about.max_length
    if most is None:
        return rules, None
    room = most
    if about.kind == "causal":
        longest = max(map(len, rows))
        if most <= longest:
            raise ValueError(
                f"a text has {longest} tokens, and {about.family} has positions for {most}; wanted "
                "room for a token more"
            )
        widest = max(most - rules.max_new_tokens, longest)
        most, room = widest, most - widest
    new = min(rules.max_new_tokens, room)
    return dataclasses.replace(rules, max_new_tokens=new), most


def _ids(
    about: Architecture, texts: Sequence[str], encode: Callable[[str], list[int]], name: str
) -> Rows:
    check_texts(texts)
    rows, most = [encode(text) for text in texts], about.max_length
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"{name}[{i}] has no tokens; wanted at least 1")
        if most is not None and len(row) > most:
            raise ValueError(
                f"{name}[{i}], {texts[i][:40]!r}, has {len(row)} tokens; wanted at most "
                f"{most}, for which there are positions"
            )
    return rows


def _label(about: Architecture, index: int, label: str) -> int:
    if label not in about.labels:
        raise ValueError(
            f"targets[{index}] is {label!r}; wanted one of the labels {', '.join(about.labels)}"
        )
    return about.labels.index(label)
