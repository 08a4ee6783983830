"""The forward pass of the primitive as a Mosaic GPU kernel (Hopper); `xla` computes its gradient.

One warpgroup takes 64 queries of a head and goes over all keys, 64 at a time. The next block's
keys, values and biases are copied to shared memory while the current block is worked on, and the
logits never leave the registers. Two things here are in no library kernel: a bias of one float32
per key, and values that are wider than the keys. Form "published" needs such values for its term
of width D (s2/t, the same for all heads). They take a second pass, `WIDTH` columns at a time,
with values that have no head axis.

The kernel has never run on a GPU so far; it was checked in Pallas's simulation of a GPU and by
lowering it. So `choice.py` never picks it, and it runs only when a caller names it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from nvib_jax.attention import xla
from nvib_jax.attention.inputs import MASK_VALUE, Memory
from nvib_jax.checks import vary_alike

ROWS, KEYS, WIDTH = 64, 64, 128  # queries per warpgroup, keys per block, value columns per pass
WIDEST = 384  # largest head width whose keys and queries fit in a Hopper's shared memory
SLOTS = 2  # blocks of keys in shared memory: the current one and the next
LOWEST = float(jnp.finfo(jnp.float32).min)
CHUNK = 1024  # queries at a time if they have to be mapped back into R^D, which takes memory


def attend(
    query: jax.Array,
    memory: Memory,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    interpret: Any = None,
) -> jax.Array:
    """Attend to a memory; shapes as in `nvib_jax.attention.xla.attend`.

    Args:
      query: projected, unscaled, bfloat16, shape (B, T, H, E).
      memory: from `make_memory`, of any form but "exact".
      mask: None.
      causal: query t sees component 0 and components up to t + S - T.
      interpret: Mosaic GPU's interpret parameters, to run without a GPU.

    Returns:
      shape (B, T, H, E), bfloat16, without the value bias.

    Raises:
      NotImplementedError: another dtype, a head width beyond 384, form "exact", or a mask.
    """
    arrays = {"query": query, "memory.key": memory.key, "memory.value": memory.value}
    for name, array in arrays.items():
        if array.dtype != jnp.bfloat16:
            raise NotImplementedError(
                f"{name} has dtype {array.dtype}; the GPU kernel takes bfloat16"
            )
    if query.shape[-1] > WIDEST:
        raise NotImplementedError(
            f"query has head width {query.shape[-1]}; the GPU kernel's shared memory holds {WIDEST}"
        )
    if memory.shared_key is not None:
        raise NotImplementedError(
            "the GPU kernel has no float32 product of width D, which form 'exact' needs; use 'xla'"
        )
    if mask is not None:
        raise NotImplementedError("the GPU kernel takes no mask of size T x S; use 'xla'")
    return _attend(causal, interpret, *vary_alike((query, memory)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(causal: bool, interpret: Any, query: jax.Array, memory: Memory) -> jax.Array:
    run = functools.partial(_run, length=query.shape[1], causal=causal, interpret=interpret)
    if memory.shared_value is None or query.shape[1] <= CHUNK:
        return run(query, memory, start=0)
    parts = [
        run(query[:, start : start + CHUNK], memory, start=start)
        for start in range(0, query.shape[1], CHUNK)
    ]
    return jnp.concatenate(parts, axis=1)


def _forward(causal: bool, interpret: Any, query: jax.Array, memory: Memory) -> tuple:
    return _attend(causal, interpret, query, memory), (query, memory)


def _backward(causal: bool, interpret: Any, saved: tuple, d_out: jax.Array) -> tuple:
    return jax.vjp(lambda q, m: xla.attend(q, m, causal=causal), *saved)[1](d_out)


_attend.defvjp(_forward, _backward)


def _run(
    query: jax.Array, memory: Memory, *, start: int, length: int, causal: bool, interpret: Any
) -> jax.Array:
    """Attend with the given queries, which are the ones from `start` on of `length` in all."""
    f32, components = jnp.float32, memory.key.shape[2]
    shift = start + components - length if causal else None
    q = _pad(jnp.swapaxes(query, 1, 2), (2, ROWS), (3, 64))
    k = _pad(jnp.swapaxes(memory.key, 2, 3), (2, 64), (3, KEYS))
    bias = _pad(memory.bias, (1, KEYS), value=MASK_VALUE)
    softmax_times = functools.partial(_softmax_times, q, k, bias, shift=shift, interpret=interpret)
    rows, width = query.shape[1], memory.value.shape[-1]
    values = _pad(memory.value, (2, KEYS), (3, 64))
    out = jnp.swapaxes(softmax_times(values)[:, :, :rows, :width], 1, 2)
    if memory.shared_value is not None:
        assert memory.key_kernel is not None
        assert memory.value_kernel is not None
        dim = memory.shared_value.shape[-1]
        shared = _pad(memory.shared_value[:, None], (2, KEYS), (3, 64))
        kept = jnp.swapaxes(softmax_times(shared)[:, :, :rows, :dim], 1, 2)
        pulled = jnp.einsum("bthe,dhe->bthd", query, memory.key_kernel, preferred_element_type=f32)
        kept = (kept * pulled).astype(query.dtype)
        out = out + jnp.einsum(
            "bthd,dhe->bthe", kept, memory.value_kernel, preferred_element_type=f32
        )
    return out.astype(query.dtype)


def _softmax_times(
    q: jax.Array, k: jax.Array, bias: jax.Array, v: jax.Array, *, shift: int | None, interpret: Any
) -> jax.Array:
    """`softmax(q k + bias) v`: (B, H, T, E), (B, H, E, S), (B, S), (B, H or 1, S, W) -> float32.

    Sizes are multiples of 64. The values are taken `WIDTH` at a time, each with its own pass.
    """
    batch, heads, length, depth = q.shape
    width = next(w for w in (WIDTH, 64) if v.shape[-1] % w == 0)
    body = functools.partial(
        _kernel,
        blocks=k.shape[-1] // KEYS,
        width=width,
        shared=v.shape[1] == 1,
        shift=shift,
        simulated=interpret is not None,
    )
    # Rows of 128 bytes are swizzled, because the tensor cores then read shared memory without
    # bank conflicts.
    bf16 = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    f32 = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
    run: Callable[..., jax.Array] = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((batch, heads, length, v.shape[-1]), jnp.float32),
        grid=(batch, heads, length // ROWS, v.shape[-1] // width),
        grid_names=("b", "h", "i", "c"),
        scratch_types=[
            plgpu.SMEM((ROWS, depth), jnp.bfloat16, transforms=bf16),
            plgpu.SMEM((SLOTS, depth, KEYS), jnp.bfloat16, transforms=bf16),
            plgpu.SMEM((SLOTS, KEYS), jnp.float32),
            plgpu.SMEM((SLOTS, KEYS, width), jnp.bfloat16, transforms=bf16),
            plgpu.SMEM((ROWS, KEYS), jnp.bfloat16, transforms=bf16),
            plgpu.SMEM((ROWS, width), jnp.float32, transforms=f32),
            plgpu.Barrier(num_arrivals=1),
            plgpu.Barrier(num_arrivals=3, num_barriers=SLOTS),
        ],
        **({} if interpret is None else {"interpret": interpret}),
    )
    # The kernel's result has lost which mesh axes it varies over; `vary_alike` copies them from q.
    return vary_alike((run(q, k, bias, v), q))[0]


def _kernel(
    q_all, k_all, bias_all, v_all, out_all, q, k, bias, v, weights, out, q_here, block_here,
    *, blocks: int, width: int, shared: bool, shift: int | None, simulated: bool,
) -> None:  # fmt: skip
    b, h, i, c = (lax.axis_index(name) for name in "bhic")
    rows, columns = pl.ds(i * ROWS, ROWS), pl.ds(c * width, width)
    layout = plgpu.Layout.WGMMA

    def cast(x: jax.Array, to: Any) -> jax.Array:
        """Set which register holds which number; the simulation has no registers to set."""
        return x if simulated else plgpu.layout_cast(x, to)

    def iota(axis: int) -> jax.Array:
        if simulated:
            return lax.broadcasted_iota(jnp.int32, (ROWS, KEYS), axis)
        return plgpu.broadcasted_iota(jnp.int32, (ROWS, KEYS), axis, layout=layout)

    def across(x: jax.Array, axis: int, size: int) -> jax.Array:
        return lax.broadcast_in_dim(x, (ROWS, size), (axis,))

    def fetch(j: jax.Array) -> None:
        slot, keys = lax.rem(j, SLOTS), pl.ds(j * KEYS, KEYS)
        arrived = block_here.at[slot]
        plgpu.copy_gmem_to_smem(k_all.at[b, h, :, keys], k.at[slot], arrived)
        plgpu.copy_gmem_to_smem(bias_all.at[b, keys], bias.at[slot], arrived)
        head = 0 if shared else h
        plgpu.copy_gmem_to_smem(v_all.at[b, head, keys, columns], v.at[slot], arrived)

    def product(left: Any, right: Any, size: int) -> jax.Array:
        def run(accumulator):
            plgpu.wgmma(accumulator, left, right)
            return accumulator[...]

        return pl.run_scoped(run, plgpu.ACC((ROWS, size), jnp.float32))

    def block(j: jax.Array, carry: tuple) -> tuple:
        acc, m, total = carry
        slot = lax.rem(j, SLOTS)

        @pl.when(j + 1 < blocks)
        def _():
            fetch(j + 1)

        plgpu.barrier_wait(block_here.at[slot])
        logits = product(q, k.at[slot], KEYS)
        logits = logits + across(cast(bias.at[slot][...], layout.reduce(0)), 1, KEYS)
        if shift is not None:
            t, s = iota(0) + i * ROWS, iota(1) + j * KEYS
            logits = jnp.where((s == 0) | (s <= t + shift), logits, MASK_VALUE)
        higher = jnp.maximum(m, jnp.max(logits, axis=1))
        shrink = jnp.exp(m - higher)
        p = jnp.exp(logits - across(higher, 0, KEYS))
        total = total * shrink + jnp.sum(p, axis=1)
        # The weights go through shared memory, because the simulation reads left operands from
        # nowhere else, and the code that is tested should be the code that runs. Reading them from
        # registers would save this copy.
        weights[...] = p.astype(jnp.bfloat16)
        plgpu.commit_smem()
        moved = product(weights, v.at[slot], width)
        return acc * across(shrink, 0, width) + moved, higher, total

    plgpu.copy_gmem_to_smem(q_all.at[b, h, rows], q, q_here)
    fetch(jnp.int32(0))
    plgpu.barrier_wait(q_here)
    start = (
        cast(jnp.zeros((ROWS, width), jnp.float32), layout),
        cast(jnp.full((ROWS,), LOWEST, jnp.float32), layout.reduce(1)),
        cast(jnp.zeros((ROWS,), jnp.float32), layout.reduce(1)),
    )
    acc, _, total = lax.fori_loop(0, blocks, block, start)
    out[...] = acc / across(total, 0, width)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out, out_all.at[b, h, rows, columns])
    plgpu.wait_smem_to_gmem(0)


def _pad(x: jax.Array, *sizes: tuple[int, int], value: float = 0) -> jax.Array:
    """Pad axes at their end; each of `sizes` is (axis, the number its size must be a multiple of).

    New entries are `value`.
    """
    widths = [(0, 0)] * x.ndim
    for axis, of in sizes:
        widths[axis] = (0, -x.shape[axis] % of)
    return jnp.pad(x, widths, constant_values=value)
