"""The primitive as Mosaic TPU kernels: one pass over the keys, forward and backward.

With p = softmax(q.k + u*u . shared_key + bias) over the keys, and u = W_k q, the query mapped back
into R^D,

    out = p v + W_v [ (p shared_value) * u ]

The softmax is computed online (Dao et al., 2022), a block of queries against a block of keys at a
time, so that neither an array of size T x S nor the width-D queries are ever in HBM. The arrays of
width D have no head axis; every head reads the same blocks, without a copy. The backward pass
recomputes p from each row's maximum and sum. They are stored separately, because a log-sum-exp in
the hundreds would lose two digits of p. With g = W_v^T dout and delta = sum_e dout out, which
equals sum_s p dp here too,

    dp = dout v + (g*u) shared_value            ds = p (dp - delta)
    dq = ds k + W_k^T du,                       du = g * (p shared_value) + 2u * (ds shared_key)
    dk = ds^T q      dv = p^T dout              dbias = sum_{h,t} ds
    dshared_key = sum_h ds^T (u*u)              dshared_value = sum_h p^T (g*u)

`query_gradient_kernel` (tpu_kernels.py) computes the second line and the gradients of W_k and W_v,
`key_gradient_kernel` the last two lines.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import ManualAxisType

from nvib_jax.attention.blocks import LANES, Blocks, choose_blocks
from nvib_jax.attention.inputs import MASK_VALUE, Memory
from nvib_jax.attention.tpu_kernels import (
    Plan,
    forward_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from nvib_jax.checks import vary_alike, varying

Arrays = dict[str, jax.Array]


def attend(
    query: jax.Array,
    memory: Memory,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    blocks: Blocks | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Attend to a memory.

    Args:
      query: projected, unscaled, float32 or bfloat16, shape (B, T, H, E).
      memory: from `make_memory`.
      mask: bool, shape (B, T, S), or None.
      causal: query t sees component 0 and components up to t + S - T.
      blocks: sizes of the blocks; None chooses them by the TPU's generation (`blocks.py`).
      interpret: True or `pltpu.InterpretParams()` to run without a TPU.

    Returns:
      shape (B, T, H, E), the query's dtype, without the value bias.

    Raises:
      NotImplementedError: a dtype, or sizes whose blocks do not fit in the TPU's vector memory.
    """
    length, components = query.shape[1], memory.key.shape[2]
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(
            f"query has dtype {query.dtype}; the TPU kernel takes float32 and bfloat16"
        )
    if blocks is None:
        blocks = choose_blocks(query, memory)
    plan = Plan(
        queries=length,
        keys=components,
        blocks=blocks.within(length, components),
        causal=causal,
        masked=mask is not None,
        moves=memory.shared_key is not None,
        keeps=memory.shared_value is not None,
        interpret=interpret,
    )
    more_q, more_k = (-length % plan.blocks.queries, -components % plan.blocks.keys)

    def pad(x: jax.Array, axis: int, by: int, value: float = 0) -> jax.Array:
        widths = [(0, by if a == axis % x.ndim else 0) for a in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=value) if by else x

    arrays = {
        "q": pad(jnp.swapaxes(query, 1, 2), 2, more_q),
        "k": pad(memory.key, 2, more_k),
        "v": pad(memory.value, 2, more_k),
        "bias": pad(memory.bias[:, None], -1, more_k, MASK_VALUE),
    }
    if memory.shared_key is not None:
        arrays["shared_key"] = pad(memory.shared_key, 1, more_k)
    if memory.shared_value is not None:
        assert memory.key_kernel is not None
        assert memory.value_kernel is not None
        arrays["shared_value"] = pad(memory.shared_value, 1, more_k)
        arrays["key_kernel"] = jnp.transpose(memory.key_kernel, (1, 2, 0))
        arrays["value_kernel"] = jnp.transpose(memory.value_kernel, (1, 0, 2))
    hidden = None
    if mask is not None:
        hidden = pad(pad(mask.astype(jnp.int8), 1, more_q), 2, more_k)
    out = _attention(plan, vary_alike(arrays), hidden)[:, :, :length]
    return jnp.swapaxes(out, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, arrays: Arrays, mask: jax.Array | None) -> jax.Array:
    return _forward(plan, arrays, mask)[0]


def _forward(plan: Plan, arrays: Arrays, mask: jax.Array | None) -> tuple[jax.Array, Any]:
    q, v = arrays["q"], arrays["v"]
    rows, dim = plan.blocks.queries, _dim(arrays)
    scratch = {"m": (rows, LANES), "l": (rows, LANES), "acc": (rows, v.shape[-1])}
    scratch |= {"u": (rows, dim)} if plan.moves else {}
    scratch |= {"kept": (rows, dim)} if plan.keeps else {}
    found = _call(
        plan,
        forward_kernel,
        arrays | ({} if mask is None else {"mask": mask}),
        outputs={
            "out": jax.ShapeDtypeStruct((*q.shape[:3], v.shape[-1]), q.dtype),
            "top": jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[2]), jnp.float32),
            "sum": jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[2]), jnp.float32),
        },
        scratch=scratch,
        keys_last=True,
    )
    return found["out"], (arrays, mask, found)


def _backward(plan: Plan, saved: tuple, d_out: jax.Array) -> tuple[Arrays, None]:
    arrays, mask, found = saved
    f32, rows, cols, dim = jnp.float32, plan.blocks.queries, plan.blocks.keys, _dim(arrays)
    delta = jnp.sum(d_out.astype(f32) * found["out"].astype(f32), axis=-1)[:, :, None]
    inputs = arrays | {"d_out": d_out, "top": found["top"], "sum": found["sum"], "delta": delta}
    inputs |= {} if mask is None else {"mask": mask}

    def like(*names: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the gradients of these arrays, leaving out names that `arrays` lacks."""
        found = {name: arrays[name] for name in names if name in arrays}
        return {f"d_{n}": jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in found.items()}

    # W_k and W_v are shared by all sentences. The kernel writes one gradient per sentence, because
    # grid points of different sentences run in parallel; the sum over the batch is taken below.
    kernels = [name for name in ("key_kernel", "value_kernel") if plan.keeps]
    batch = arrays["q"].shape[:1]
    outputs = like("q") | {
        f"d_{name}": jax.ShapeDtypeStruct((*batch, *arrays[name].shape), f32) for name in kernels
    }
    scratch = {"d_q_acc": (rows, arrays["q"].shape[-1])}
    scratch |= {name: (rows, dim) for name in ("u", "g", "kept") if plan.keeps}
    scratch |= {"moved": (rows, dim)} if plan.moves else {}
    grads = _call(
        plan, query_gradient_kernel, inputs, outputs=outputs, scratch=scratch, keys_last=True
    )

    outputs = like("k", "v", "bias", "shared_key", "shared_value")
    scratch = {f"d_{name}_acc": (cols, arrays[name].shape[-1]) for name in ("k", "v")}
    scratch |= {"d_bias_acc": (cols, LANES)}
    scratch |= {"d_shared_key_acc": (cols, dim)} if plan.moves else {}
    scratch |= {"d_shared_value_acc": (cols, dim)} if plan.keeps else {}
    grads |= _call(
        plan, key_gradient_kernel, inputs, outputs=outputs, scratch=scratch, keys_last=False
    )
    for name in kernels:
        grads[f"d_{name}"] = jnp.sum(grads[f"d_{name}"], axis=0).astype(arrays[name].dtype)
    return {name: grads[f"d_{name}"] for name in arrays}, None


_attention.defvjp(_forward, _backward)


# ---- calling a kernel over a grid


def _dim(arrays: Arrays) -> int:
    return arrays["shared_value"].shape[-1] if "shared_value" in arrays else 0


def _call(
    plan: Plan,
    kernel: Callable[..., None],
    inputs: Arrays,
    *,
    outputs: dict[str, jax.ShapeDtypeStruct],
    scratch: dict[str, tuple[int, int]],
    keys_last: bool,
) -> Arrays:
    """Run a kernel over the grid (b, h, query block, key block), or (b, key block, h, query block).

    The block that is written must vary slower than every axis that is summed into it. `keys_last`
    is the first order; gradients of keys also sum over heads, so they need the second.
    """
    batch, heads, length, _ = inputs["q"].shape
    grid_q, grid_k = length // plan.blocks.queries, inputs["k"].shape[2] // plan.blocks.keys

    def indices(*grid: jax.Array) -> tuple[jax.Array, ...]:
        """(b, h, i, j) of a grid point."""
        return grid if keys_last else (grid[0], grid[2], grid[3], grid[1])

    def spec(name: str, shape: tuple[int, ...]) -> pl.BlockSpec:
        block, pick = _layout(name, shape, plan.blocks)
        return pl.BlockSpec(block, lambda *grid: pick(*indices(*grid)))

    names = [*inputs, *outputs, *scratch]

    def body(*refs: Any) -> None:
        _, h, i, j = indices(*(pl.program_id(axis) for axis in range(4)))
        kernel(plan, SimpleNamespace(**dict(zip(names, refs, strict=True))), i, j, h=h, heads=heads)

    axes = ManualAxisType(varying=varying(inputs))
    found = pl.pallas_call(
        body,
        grid=(batch, heads, grid_q, grid_k) if keys_last else (batch, grid_k, heads, grid_q),
        in_specs=[spec(name, x.shape) for name, x in inputs.items()],
        out_specs=[spec(name, x.shape) for name, x in outputs.items()],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=axes) for x in outputs.values()
        ],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        compiler_params=pltpu.CompilerParams(
            # The last two axes are sequential ("arbitrary"), because gradients of W_k and W_v add
            # up over query blocks, and those of shared keys over heads and query blocks.
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.blocks.vmem_bytes,
        ),
        interpret=plan.interpret,
        name=kernel.__name__,
    )(*inputs.values())
    return dict(zip(outputs, found, strict=True))


# The axes of every array of the kernels, one letter each: b is batch, h head, t queries, s keys,
# "1" an axis of size 1, and "." an axis that is not cut. A kernel sees one b and one h at a time,
# and one block of t and s.
_AXES = {
    "q": "bht.",
    "d_q": "bht.",
    "out": "bht.",
    "d_out": "bht.",
    # The three with "1t" are each row's maximum, sum and delta, with the queries along the lanes.
    "top": "bh1t",
    "sum": "bh1t",
    "delta": "bh1t",
    "k": "bhs.",
    "d_k": "bhs.",
    "v": "bhs.",
    "d_v": "bhs.",
    "bias": "b1s",
    "d_bias": "b1s",
    "shared_key": "bs.",
    "d_shared_key": "bs.",
    "shared_value": "bs.",
    "d_shared_value": "bs.",
    "mask": "bts",
    "key_kernel": "h..",
    "value_kernel": "h..",
    "d_key_kernel": "bh..",
    "d_value_kernel": "bh..",
}


def _layout(
    name: str, shape: tuple[int, ...], blocks: Blocks
) -> tuple[tuple[int | None, ...], Callable[..., tuple]]:
    """The shape of an array's block, and the function from (b, h, i, j) to the block's index.

    None in the shape means a block of size 1 whose axis the kernel does not see.
    """
    axes = _AXES[name]
    sizes = {"b": None, "h": None, "t": blocks.queries, "s": blocks.keys, "1": 1}
    block = tuple(sizes.get(axis, size) for axis, size in zip(axes, shape, strict=True))

    def index(b: Any, h: Any, i: Any, j: Any) -> tuple:
        place = {"b": b, "h": h, "t": i, "s": j}
        return tuple(place.get(axis, 0) for axis in axes)

    return block, index
