"""Ragged ids in a few static shapes, so that a function compiles a few times only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

ROWS = 32  # texts of a batch
FEW = 1024  # so many texts all have the widest shape, because another takes longer to compile
# Padded lengths.
WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What a model of one or two stacks is given.

    Attributes:
      tokens, mask: what is read, shape (R, N); for a model of one stack all there is.
      target, target_mask: what is written, shape (R, T), without the token to start from; None for
        a model of one stack.
    """

    tokens: jax.Array
    mask: jax.Array
    target: jax.Array | None = None
    target_mask: jax.Array | None = None


def batches(
    rows: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]] | None = None,
    *,
    pad: int,
    most: int | None,
    left: bool = False,
    whole: bool = False,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches of texts of about the same length: (their indices, the batch).

    Args:
      rows: ids of each text.
      targets: of what belongs to each, or None.
      pad: id of padding.
      most: longest width, or None.
      left: whether padding comes first, as a text that is to be continued needs it.
      whole: whether missing texts are copies of the last; otherwise they are all padding.
    """
    lengths = np.array([len(row) for row in rows])
    others = np.array([len(row) for row in targets]) if targets is not None else 0 * lengths
    few = len(rows) <= FEW
    widths = np.array([_width(lengths.max() if few else n, most) for n in lengths])
    other_widths = np.array([_width(others.max() if few else n, most) for n in others])
    shapes = sorted(set(zip(widths.tolist(), other_widths.tolist(), strict=True)))
    count = min(ROWS, 1 << (len(rows) - 1).bit_length())
    for width, other in shapes:
        members = np.flatnonzero((widths == width) & (other_widths == other))
        for start in range(0, len(members), count):
            part = members[start : start + count]
            filled = [*part, *[part[-1]] * (count - len(part))] if whole else list(part)
            tokens = padded([rows[i] for i in filled], width, count, pad, left)
            if targets is None:
                yield part, Batch(*tokens)
            else:
                yield (
                    part,
                    Batch(*tokens, *padded([targets[i] for i in filled], other, count, pad)),
                )


def padded(
    rows: Sequence[Sequence[int]], width: int, count: int, pad: int, left: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Ragged ids -> tokens int32 and mask bool, each (count, width)."""
    tokens = np.full((count, width), pad, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, where], mask[i, where] = row, True
    return jnp.asarray(tokens), jnp.asarray(mask)


def _width(length: int, most: int | None) -> int:
    found = next((width for width in WIDTHS if width >= length), length)
    return found if most is None else min(found, most)
