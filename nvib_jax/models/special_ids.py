"""The ids that stand for no text; they belong to the tokenizer, and every model is given them."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialIds:
    """Ids of padding, beginning and end of a sentence, of unknown words, and of a lone space.

    The defaults are those of the tokenizers that `nvib_jax` trains; `space` depends on the text,
    and is -1 where spaces have no id of their own.
    """

    pad: int = 0
    bos: int = 1
    eos: int = 2
    unk: int = 3
    space: int = -1

    @property
    def unwritable(self) -> tuple[int, ...]:
        """The ids that no decoder may choose: padding and beginning-of-sentence."""
        return tuple({self.pad, self.bos})


PAD, BOS, EOS, UNK, _ = dataclasses.astuple(SpecialIds())
