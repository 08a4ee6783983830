"""The primitive as Mosaic TPU kernels: one pass over the keys, forward and backward.

Enters a `Memory` and queries, leaves (B, T, H, E). With p = softmax(q.k + u*u . shared_key + bias)
over the keys and u = W_k q, a query pulled back into R^D,

    out = p v + W_v [ (p shared_value) * u ]

The softmax is taken online (Dao et al., 2022), a block of queries against a block of keys at a
time, so that nothing of size T x S, and no width-D query beyond one block, is ever in HBM. The
parts of width D are blocks of their own whose index has no head: they are read, never copied, per
head. The backward pass recomputes p from the row's maximum and sum, kept apart: a log-sum-exp of a
hundred has lost two digits of p. With g = W_v^T dout and
delta = sum_e dout out, which is sum_s p dp here too,

    dp = dout v + (g*u) shared_value            ds = p (dp - delta)
    dq = ds k + W_k^T du,                       du = g * (p shared_value) + 2u * (ds shared_key)
    dk = ds^T q      dv = p^T dout              dbias = sum_{h,t} ds
    dshared_key = sum_h ds^T (u*u)              dshared_value = sum_h p^T (g*u)

`_query_kernel` does the second line and the kernels' gradients, `_key_kernel` the last two.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import ManualAxisType

from nvib_jax.attention.blocks import Blocks, choose_blocks
from nvib_jax.attention.inputs import MASK_VALUE, Memory
from nvib_jax.shapes import vary_alike, varying

LANES = 128
LOWEST = float(jnp.finfo(jnp.float32).min)  # where a running maximum starts; below MASK_VALUE
Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class _Plan:
    """What is static: true sizes, blocks, causality, how to run."""

    queries: int
    keys: int
    blocks: Blocks
    causal: bool
    interpret: Any

    def visible(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """Whether query block i sees anything of key block j."""
        if not self.causal:
            return jnp.bool_(True)
        last = (i + 1) * self.blocks.queries - 1 + self.keys - self.queries
        return (j == 0) | (j * self.blocks.keys <= last)


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
      blocks: sizes of the blocks; None chooses by the TPU's generation (`blocks.py`).
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
    plan = _Plan(length, components, blocks.within(length, components), causal, interpret)
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
        arrays["pk"] = pad(memory.shared_key, 1, more_k)
    if memory.shared_value is not None:
        assert memory.key_kernel is not None
        assert memory.value_kernel is not None
        arrays["pv"] = pad(memory.shared_value, 1, more_k)
        arrays["wk"] = jnp.transpose(memory.key_kernel, (1, 2, 0))
        arrays["wv"] = jnp.transpose(memory.value_kernel, (1, 0, 2))
    hidden = None
    if mask is not None:
        hidden = pad(pad(mask.astype(jnp.int8), 1, more_q), 2, more_k)
    out = _attention(plan, vary_alike(arrays), hidden)[:, :, :length]
    return jnp.swapaxes(out, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: _Plan, arrays: Arrays, mask: jax.Array | None) -> jax.Array:
    return _forward(plan, arrays, mask)[0]


def _forward(plan: _Plan, arrays: Arrays, mask: jax.Array | None) -> tuple[jax.Array, Any]:
    q, v = arrays["q"], arrays["v"]
    rows, dim = plan.blocks.queries, _dim(arrays)
    scratch = {"m": (rows, LANES), "l": (rows, LANES), "acc": (rows, v.shape[-1])}
    scratch |= {"u": (rows, dim)} if "pk" in arrays else {}
    scratch |= {"kept": (rows, dim)} if "pv" in arrays else {}
    found = _call(
        plan,
        _forward_kernel,
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


def _backward(plan: _Plan, saved: tuple, d_out: jax.Array) -> tuple[Arrays, None]:
    arrays, mask, found = saved
    f32, rows, cols, dim = jnp.float32, plan.blocks.queries, plan.blocks.keys, _dim(arrays)
    delta = jnp.sum(d_out.astype(f32) * found["out"].astype(f32), axis=-1)[:, :, None]
    inputs = arrays | {"do": d_out, "top": found["top"], "sum": found["sum"], "delta": delta}
    inputs |= {} if mask is None else {"mask": mask}

    def like(*names: str, **others: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {n: arrays[n] for n in names if n in arrays}
        return {"d" + n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in shapes.items()} | {
            "d" + n: jax.ShapeDtypeStruct(shape, f32) for n, shape in others.items()
        }

    batch = arrays["q"].shape[:1]
    weights = {n: (*batch, *arrays[n].shape) for n in ("wk", "wv") if n in arrays}
    wide = {n: (rows, dim) for n in ("u", "g", "kept") if "pv" in arrays}
    wide |= {"moved": (rows, dim)} if "pk" in arrays else {}
    grads = _call(
        plan,
        _query_kernel,
        inputs,
        outputs=like("q", **weights),
        scratch={"dq_acc": (rows, arrays["q"].shape[-1]), **wide},
        keys_last=True,
    )
    scratch = {n + "_acc": (cols, arrays[n[1:]].shape[-1]) for n in ("dk", "dv")}
    scratch |= {"dbias_acc": (cols, LANES)}
    scratch |= {f"d{n}_acc": (cols, dim) for n in ("pk", "pv") if n in arrays}
    outputs = like("k", "v", "bias", "pk", "pv")
    grads |= _call(plan, _key_kernel, inputs, outputs=outputs, scratch=scratch, keys_last=False)
    for name in weights:
        grads["d" + name] = jnp.sum(grads["d" + name], axis=0).astype(arrays[name].dtype)
    return {name: grads["d" + name] for name in arrays}, None


_attention.defvjp(_forward, _backward)


# ---- the kernels. Refs have no batch or head axis; `r` holds them by name.


def _forward_kernel(plan: _Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, **_) -> None:
    @pl.when(j == 0)
    def _start():
        r.m[...] = jnp.full_like(r.m, LOWEST)
        for name in ("l", "acc", "kept"):
            _zero(r, name)
        if hasattr(r, "u"):
            r.u[...] = _dot(r.q[...], r.wk[...])

    @pl.when(plan.visible(i, j))
    def _block():
        logits = _dot(r.q[...], r.k[...], 1, 1) + r.bias[...]
        if hasattr(r, "pk"):
            logits = logits + _dot(jnp.square(r.u[...]), r.pk[...], 1, 1)
        logits = _hide(plan, r, logits, i, j)
        m = jnp.maximum(r.m[...], jnp.max(logits, axis=1, keepdims=True))
        shrink = jnp.exp(r.m[...] - m)[:, :1]
        p = jnp.exp(logits - m[:, :1])
        r.l[...] = r.l[...] * shrink + jnp.sum(p, axis=1, keepdims=True)
        r.m[...] = m
        r.acc[...] = r.acc[...] * shrink + _dot(p.astype(r.v.dtype), r.v[...])
        if hasattr(r, "pv"):
            r.kept[...] = r.kept[...] * shrink + _dot(p.astype(r.pv.dtype), r.pv[...])

    @pl.when(j == pl.num_programs(3) - 1)
    def _finish():
        scale = 1 / r.l[...][:, :1]
        out = r.acc[...] * scale
        if hasattr(r, "pv"):
            u = r.u[...] if hasattr(r, "u") else _dot(r.q[...], r.wk[...])
            out = out + _dot((r.kept[...] * scale * u).astype(r.wv.dtype), r.wv[...])
        r.out[...] = out.astype(r.out.dtype)
        r.top[...], r.sum[...] = _as_row(r.m[...]), _as_row(r.l[...])


def _query_kernel(plan: _Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, **_) -> None:
    @pl.when(j == 0)
    def _start():
        for name in ("dq_acc", "kept", "moved"):
            _zero(r, name)
        if hasattr(r, "pv"):
            r.u[...] = _dot(r.q[...], r.wk[...])
            r.g[...] = _dot(r.do[...], r.wv[...], 1, 1)

    @pl.when(plan.visible(i, j))
    def _block():
        logits = _dot(r.q[...], r.k[...], 1, 1) + r.bias[...]
        dp = _dot(r.do[...], r.v[...], 1, 1)
        if hasattr(r, "pk"):
            logits = logits + _dot(jnp.square(r.u[...]), r.pk[...], 1, 1)
        if hasattr(r, "pv"):
            dp = dp + _dot((r.g[...] * r.u[...]).astype(r.pv.dtype), r.pv[...], 1, 1)
        p = jnp.exp(_hide(plan, r, logits, i, j) - _as_column(r.top[...]))
        p = p / _as_column(r.sum[...])
        ds = p * (dp - _as_column(r.delta[...]))
        r.dq_acc[...] += _dot(ds.astype(r.k.dtype), r.k[...])
        if hasattr(r, "pv"):
            r.kept[...] += _dot(p.astype(r.pv.dtype), r.pv[...])
        if hasattr(r, "pk"):
            r.moved[...] += _dot(ds, r.pk[...])

    @pl.when(j == pl.num_programs(3) - 1)
    def _finish():
        dq = r.dq_acc[...]
        if hasattr(r, "pv"):
            u, kept = r.u[...], r.kept[...]
            du = r.g[...] * kept
            if hasattr(r, "pk"):
                du = du + 2 * u * r.moved[...]
            dq = dq + _dot(du.astype(r.wk.dtype), r.wk[...], 1, 1)

            @pl.when(i == 0)
            def _first():
                _zero(r, "dwk")
                _zero(r, "dwv")

            r.dwk[...] += _dot(r.q[...].astype(jnp.float32), du, 0, 0)
            r.dwv[...] += _dot(kept * u, r.do[...].astype(jnp.float32), 0, 0)
        r.dq[...] = dq.astype(r.dq.dtype)


def _key_kernel(
    plan: _Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, *, h: jax.Array, heads: int
) -> None:
    """Logits are transposed here, keys by queries, so that every product is a plain one."""
    first_query, last_query = i == 0, i == pl.num_programs(3) - 1

    @pl.when(first_query)
    def _start_head():
        _zero(r, "dk_acc")
        _zero(r, "dv_acc")

    @pl.when(first_query & (h == 0))
    def _start():
        for name in ("dbias_acc", "dpk_acc", "dpv_acc"):
            _zero(r, name)

    @pl.when(plan.visible(i, j))
    def _block():
        logits = _dot(r.k[...], r.q[...], 1, 1) + _as_column(r.bias[...])
        dp = _dot(r.v[...], r.do[...], 1, 1)
        if hasattr(r, "pv"):
            u = _dot(r.q[...], r.wk[...])
            gu = (_dot(r.do[...], r.wv[...], 1, 1) * u).astype(r.pv.dtype)
            dp = dp + _dot(r.pv[...], gu, 1, 1)
            if hasattr(r, "pk"):
                logits = logits + _dot(r.pk[...], jnp.square(u), 1, 1)
        p = jnp.exp(_hide(plan, r, logits, i, j, transposed=True) - r.top[...]) / r.sum[...]
        ds = p * (dp - r.delta[...])
        r.dk_acc[...] += _dot(ds.astype(r.q.dtype), r.q[...])
        r.dv_acc[...] += _dot(p.astype(r.do.dtype), r.do[...])
        r.dbias_acc[...] += jnp.sum(ds, axis=1, keepdims=True)
        if hasattr(r, "pv"):
            r.dpv_acc[...] += _dot(p.astype(gu.dtype), gu)
            if hasattr(r, "pk"):
                r.dpk_acc[...] += _dot(ds, jnp.square(u))

    @pl.when(last_query)
    def _finish_head():
        r.dk[...] = r.dk_acc[...].astype(r.dk.dtype)
        r.dv[...] = r.dv_acc[...].astype(r.dv.dtype)

    @pl.when(last_query & (h == heads - 1))
    def _finish():
        r.dbias[...] = _as_row(r.dbias_acc[...])
        for name in ("dpk", "dpv"):
            if hasattr(r, name):
                target = getattr(r, name)
                target[...] = getattr(r, name + "_acc")[...].astype(target.dtype)


def _zero(r: SimpleNamespace, name: str) -> None:
    if hasattr(r, name):
        ref = getattr(r, name)
        ref[...] = jnp.zeros_like(ref)


def _dot(a: jax.Array, b: jax.Array, of_a: int = 1, of_b: int = 0) -> jax.Array:
    """Product in float32. A pair of float32 operands takes no bfloat16 passes: squares of queries
    reach hundreds, and a logit that errs by a half is wrong."""
    exact = a.dtype == jnp.float32 and b.dtype == jnp.float32
    return jax.lax.dot_general(
        a,
        b,
        (((of_a,), (of_b,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _hide(
    plan: _Plan,
    r: SimpleNamespace,
    logits: jax.Array,
    i: jax.Array,
    j: jax.Array,
    transposed: bool = False,
) -> jax.Array:
    """MASK_VALUE where a query may not see a key."""
    if hasattr(r, "mask"):
        seen = r.mask[...].astype(jnp.float32)
        logits = jnp.where((seen.T if transposed else seen) > 0, logits, MASK_VALUE)
    if plan.causal:
        of_query, of_key = (1, 0) if transposed else (0, 1)
        iota = functools.partial(jax.lax.broadcasted_iota, jnp.int32, logits.shape)
        t, s = i * plan.blocks.queries + iota(of_query), j * plan.blocks.keys + iota(of_key)
        logits = jnp.where((s == 0) | (s <= t + (plan.keys - plan.queries)), logits, MASK_VALUE)
    return logits


def _as_row(column: jax.Array) -> jax.Array:
    """(n, LANES), all lanes equal -> (1, n)."""
    return column.T[:1]


def _as_column(row: jax.Array) -> jax.Array:
    """(1, n) -> (n, 1)."""
    return jnp.broadcast_to(row, (LANES, row.shape[-1])).T[:, :1]


# ---- from arrays to a grid


def _dim(arrays: Arrays) -> int:
    return arrays["pv"].shape[-1] if "pv" in arrays else 0


def _call(
    plan: _Plan,
    kernel: Callable[..., None],
    inputs: Arrays,
    *,
    outputs: dict[str, jax.ShapeDtypeStruct],
    scratch: dict[str, tuple[int, int]],
    keys_last: bool,
) -> Arrays:
    """Run a kernel over the grid (b, h, query block, key block), or (b, key block, h, query block).

    What is written last varies slowest: a gradient that sums over heads needs them inside it.
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
            # Gradients of the kernels accumulate over query blocks, those of keys over heads.
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.blocks.vmem_bytes,
        ),
        interpret=plan.interpret,
        name=kernel.__name__.strip("_"),
    )(*inputs.values())
    return dict(zip(outputs, found, strict=True))


def _layout(
    name: str, shape: tuple[int, ...], blocks: Blocks
) -> tuple[tuple[int | None, ...], Callable[..., tuple]]:
    """Block shape (None: one, and no axis in the kernel) and block index by (b, h, i, j)."""
    rows, cols, width = blocks.queries, blocks.keys, shape[-1]
    match name.removeprefix("d") if name not in ("do", "delta") else name:
        case "q" | "o" | "do" | "out":
            return (None, None, rows, width), lambda b, h, i, j: (b, h, i, 0)
        case "top" | "sum" | "delta":
            return (None, None, 1, rows), lambda b, h, i, j: (b, h, 0, i)
        case "k" | "v":
            return (None, None, cols, width), lambda b, h, i, j: (b, h, j, 0)
        case "bias":
            return (None, 1, cols), lambda b, h, i, j: (b, 0, j)
        case "pk" | "pv":
            return (None, cols, width), lambda b, h, i, j: (b, j, 0)
        case "mask":
            return (None, rows, cols), lambda b, h, i, j: (b, i, j)
        case _ if len(shape) == 3:
            return (None, *shape[1:]), lambda b, h, i, j: (h, 0, 0)
        case _:
            return (None, None, *shape[2:]), lambda b, h, i, j: (b, h, 0, 0)
