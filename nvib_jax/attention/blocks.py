"""How many queries and keys a TPU kernel takes at a time, by TPU generation and array sizes.

Larger blocks are faster, because every key is read from memory once for each block of queries, and
because the matrix unit has more work between the softmax's passes of the vector unit. Vector
memory limits them. So the first of `CANDIDATES` whose buffers fit into it is chosen.
"""

from dataclasses import dataclass

import jax

from nvib_jax.attention.inputs import Memory
from nvib_jax.mesh import device

MIB = 1 << 20
LANES = 128
# Device kind -> bytes of vector memory that the buffers may take. A core has 128 MiB on v5e and
# v6e, 64 on v5p and 7x (jax's own table, `pltpu.get_tpu_info`); a quarter of it is left for what
# the compiler spills. v4 and older are not supported, because their 16 MiB are too little for some
# sizes that the kernel has to support. None stands for compilation on a machine without a TPU: the
# smallest entry, so that the kernel runs on all of them.
VMEM = {
    "TPU v5 lite": 96 * MIB,
    "TPU v5e": 96 * MIB,
    "TPU v5": 48 * MIB,
    "TPU v5p": 48 * MIB,
    "TPU v6 lite": 96 * MIB,
    "TPU v6e": 96 * MIB,
    "TPU7x": 48 * MIB,
    None: 48 * MIB,
}
# (queries, keys) of a block, largest first. There are at least as many keys as queries, because the
# softmax is rescaled once per block of keys. Nothing is larger than 512 by 1,024, because beyond
# that the float32 logits alone are more than the vector registers can be kept supplied from.
CANDIDATES = ((512, 1024), (512, 512), (256, 512), (256, 256), (128, 256), (128, 128))


@dataclass(frozen=True)
class Blocks:
    """Block sizes of the TPU kernels.

    Attributes:
      queries: queries per block, a multiple of 128.
      keys: keys per block, a multiple of 128.
      vmem_bytes: vector memory the compiler may use.
    """

    queries: int
    keys: int
    vmem_bytes: int = 16 * MIB

    def __post_init__(self) -> None:
        for name in ("queries", "keys"):
            size = getattr(self, name)
            if size < LANES or size % LANES:
                raise ValueError(f"blocks.{name} is {size}; wanted a multiple of {LANES}")

    def within(self, queries: int, keys: int) -> "Blocks":
        """These blocks, but no larger than an array's sizes rounded up to a multiple of 128."""
        return Blocks(
            min(self.queries, _round(queries)), min(self.keys, _round(keys)), self.vmem_bytes
        )


def choose_blocks(query: jax.Array, memory: Memory, kind: str | None = None) -> Blocks:
    """The largest candidate whose buffers fit.

    Args:
      query: shape (B, T, H, E).
      memory: what is attended to.
      kind: device kind. None is the current TPU; without one, the smallest entry of `VMEM`.

    Raises:
      NotImplementedError: a TPU older than those of `VMEM`, or not even the smallest blocks fit.
    """
    if kind is None and device()[0] == "tpu":
        kind = device()[1]
    if kind in ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite"):
        raise NotImplementedError(f"the TPU kernel wants a TPU v5e or newer; this is a {kind}")
    have = VMEM.get(kind, VMEM[None])
    length, components = query.shape[1], memory.key.shape[2]
    for rows, cols in CANDIDATES:
        blocks = Blocks(rows, cols, have).within(length, components)
        need = buffer_bytes(blocks, query, memory)
        if need <= have:
            return blocks
    width = 0 if memory.shared_value is None else memory.shared_value.shape[-1]
    raise NotImplementedError(
        f"the TPU kernel needs {need / MIB:.0f} MiB of vector memory at E = {query.shape[-1]}, "
        f"D = {width}, {query.dtype}; {kind or 'a TPU'} has {have / MIB:.0f} to use"
    )


def buffer_bytes(blocks: Blocks, query: jax.Array, memory: Memory) -> int:
    """Bytes that the larger of the two backward kernels needs.

    Blocks count twice, because the next one is loaded while one is worked on; scratch counts once.
    """
    arrays = (query, memory.key, memory.value, memory.shared_value, memory.key_kernel)
    size = max(a.dtype.itemsize for a in arrays if a is not None)  # the dtypes may differ
    rows, cols = blocks.queries, blocks.keys
    key, value = (_round(x.shape[-1]) for x in (memory.key, memory.value))
    heads = rows * (key + value) + cols * (key + value)
    blocks_in, logits = 2 * size * heads, 4 * 4 * rows * cols
    by_query = 2 * size * rows * key + 4 * rows * key
    by_key = (2 * size + 4) * cols * (key + value) + 4 * LANES * cols
    if memory.shared_value is not None:
        dim = _round(memory.shared_value.shape[-1])
        shared = cols * dim * (size + (4 if memory.shared_key is not None else 0))
        kernels = dim * (key + value)
        blocks_in += 2 * shared + 2 * size * kernels
        by_query += 2 * 4 * kernels + (4 + 3) * 4 * rows * dim  # 4 scratch arrays, 3 temporaries
        by_key += 2 * shared + 2 * 4 * cols * dim + 4 * 4 * rows * dim
    return blocks_in + logits + max(by_query, by_key)


def _round(size: int) -> int:
    return -(-size // LANES) * LANES
