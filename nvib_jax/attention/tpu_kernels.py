"""The bodies of the TPU kernels: a block of queries against a block of keys.

`r` holds references to blocks in vector memory, without batch and head axes. Their names are those
of `pallas_tpu`, whose head has the equations and whose `_AXES` lists all names. `plan` says which
terms the form has: `plan.moves` is the term of u*u in the logits (form exact), `plan.keeps` the
term of u in the values (forms exact and published). References that only an absent term needs do
not exist.
"""

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from nvib_jax.attention.blocks import LANES, Blocks
from nvib_jax.attention.inputs import MASK_VALUE

LOWEST = float(jnp.finfo(jnp.float32).min)  # the first running maximum, which is below MASK_VALUE


@dataclass(frozen=True)
class Plan:
    """What is known when a kernel is compiled.

    Attributes:
      queries: T, without the padding to whole blocks.
      keys: S, without that padding.
      blocks: the block sizes.
      causal: whether query t sees component 0 and components up to t + S - T only.
      masked: whether there is a mask.
      moves: whether logits have the term u*u . shared_key; if so, `keeps` is True too.
      keeps: whether values have the term W_v (shared_value * u).
      interpret: how to run without a TPU, as in `pallas_tpu.attend`.
    """

    queries: int
    keys: int
    blocks: Blocks
    causal: bool
    masked: bool
    moves: bool
    keeps: bool
    interpret: Any

    def visible(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """Whether any query of block i may see any key of block j."""
        if not self.causal:
            return jnp.bool_(True)
        last = (i + 1) * self.blocks.queries - 1 + self.keys - self.queries
        return (j == 0) | (j * self.blocks.keys <= last)


def forward_kernel(plan: Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, **_) -> None:
    """Compute `out` and each row's maximum and sum. The grid's key axis varies fastest."""

    @pl.when(j == 0)
    def _start():
        r.m[...] = jnp.full_like(r.m, LOWEST)
        _zero(r.l, r.acc)
        if plan.keeps:
            _zero(r.kept)
        if plan.moves:
            r.u[...] = _dot(r.q[...], r.key_kernel[...])

    @pl.when(plan.visible(i, j))
    def _block():
        logits = _dot(r.q[...], r.k[...], 1, 1) + r.bias[...]
        if plan.moves:
            logits = logits + _dot(jnp.square(r.u[...]), r.shared_key[...], 1, 1)
        logits = _hide(plan, r, logits, i, j)
        m = jnp.maximum(r.m[...], jnp.max(logits, axis=1, keepdims=True))
        shrink = jnp.exp(r.m[...] - m)[:, :1]
        p = jnp.exp(logits - m[:, :1])
        r.l[...] = r.l[...] * shrink + jnp.sum(p, axis=1, keepdims=True)
        r.m[...] = m
        r.acc[...] = r.acc[...] * shrink + _dot(p.astype(r.v.dtype), r.v[...])
        if plan.keeps:
            r.kept[...] = r.kept[...] * shrink + _dot(
                p.astype(r.shared_value.dtype), r.shared_value[...]
            )

    @pl.when(j == pl.num_programs(3) - 1)
    def _finish():
        scale = 1 / r.l[...][:, :1]
        out = r.acc[...] * scale
        if plan.keeps:
            u = r.u[...] if plan.moves else _dot(r.q[...], r.key_kernel[...])
            out = out + _dot(
                (r.kept[...] * scale * u).astype(r.value_kernel.dtype), r.value_kernel[...]
            )
        r.out[...] = out.astype(r.out.dtype)
        r.top[...], r.sum[...] = _as_row(r.m[...]), _as_row(r.l[...])


def query_gradient_kernel(plan: Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, **_) -> None:
    """Compute dq and the gradients of W_k and W_v. The grid's key axis varies fastest."""

    @pl.when(j == 0)
    def _start():
        _zero(r.d_q_acc)
        if plan.moves:
            _zero(r.moved)
        if plan.keeps:
            _zero(r.kept)
            r.u[...] = _dot(r.q[...], r.key_kernel[...])
            r.g[...] = _dot(r.d_out[...], r.value_kernel[...], 1, 1)

    @pl.when(plan.visible(i, j))
    def _block():
        logits = _dot(r.q[...], r.k[...], 1, 1) + r.bias[...]
        dp = _dot(r.d_out[...], r.v[...], 1, 1)
        if plan.moves:
            logits = logits + _dot(jnp.square(r.u[...]), r.shared_key[...], 1, 1)
        if plan.keeps:
            dp = dp + _dot(
                (r.g[...] * r.u[...]).astype(r.shared_value.dtype), r.shared_value[...], 1, 1
            )
        p = jnp.exp(_hide(plan, r, logits, i, j) - _as_column(r.top[...]))
        p = p / _as_column(r.sum[...])
        ds = p * (dp - _as_column(r.delta[...]))
        r.d_q_acc[...] += _dot(ds.astype(r.k.dtype), r.k[...])
        if plan.keeps:
            r.kept[...] += _dot(p.astype(r.shared_value.dtype), r.shared_value[...])
        if plan.moves:
            r.moved[...] += _dot(ds, r.shared_key[...])

    @pl.when(j == pl.num_programs(3) - 1)
    def _finish():
        dq = r.d_q_acc[...]
        if plan.keeps:
            u, kept = r.u[...], r.kept[...]
            du = r.g[...] * kept
            if plan.moves:
                du = du + 2 * u * r.moved[...]
            dq = dq + _dot(du.astype(r.key_kernel.dtype), r.key_kernel[...], 1, 1)

            @pl.when(i == 0)
            def _first():
                _zero(r.d_key_kernel, r.d_value_kernel)

            r.d_key_kernel[...] += _dot(r.q[...].astype(jnp.float32), du, 0, 0)
            r.d_value_kernel[...] += _dot(kept * u, r.d_out[...].astype(jnp.float32), 0, 0)
        r.d_q[...] = dq.astype(r.d_q.dtype)


def key_gradient_kernel(
    plan: Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, *, h: jax.Array, heads: int
) -> None:
    """Compute dk, dv, dbias and the gradients of the shared arrays.

    The grid's query axis varies fastest, then the heads. Logits are transposed here (keys by
    queries), so that the products that add up gradients need no transposition.
    """
    first_query, last_query = i == 0, i == pl.num_programs(3) - 1

    @pl.when(first_query)
    def _start_head():
        _zero(r.d_k_acc, r.d_v_acc)

    @pl.when(first_query & (h == 0))
    def _start():
        _zero(r.d_bias_acc)
        if plan.moves:
            _zero(r.d_shared_key_acc)
        if plan.keeps:
            _zero(r.d_shared_value_acc)

    @pl.when(plan.visible(i, j))
    def _block():
        logits = _dot(r.k[...], r.q[...], 1, 1) + _as_column(r.bias[...])
        dp = _dot(r.v[...], r.d_out[...], 1, 1)
        if plan.keeps:
            u = _dot(r.q[...], r.key_kernel[...])
            gu = (_dot(r.d_out[...], r.value_kernel[...], 1, 1) * u).astype(r.shared_value.dtype)
            dp = dp + _dot(r.shared_value[...], gu, 1, 1)
            if plan.moves:
                logits = logits + _dot(r.shared_key[...], jnp.square(u), 1, 1)
        p = jnp.exp(_hide(plan, r, logits, i, j, transposed=True) - r.top[...]) / r.sum[...]
        ds = p * (dp - r.delta[...])
        r.d_k_acc[...] += _dot(ds.astype(r.q.dtype), r.q[...])
        r.d_v_acc[...] += _dot(p.astype(r.d_out.dtype), r.d_out[...])
        r.d_bias_acc[...] += jnp.sum(ds, axis=1, keepdims=True)
        if plan.keeps:
            r.d_shared_value_acc[...] += _dot(p.astype(gu.dtype), gu)
            if plan.moves:
                r.d_shared_key_acc[...] += _dot(ds, jnp.square(u))

    @pl.when(last_query)
    def _finish_head():
        r.d_k[...] = r.d_k_acc[...].astype(r.d_k.dtype)
        r.d_v[...] = r.d_v_acc[...].astype(r.d_v.dtype)

    @pl.when(last_query & (h == heads - 1))
    def _finish():
        r.d_bias[...] = _as_row(r.d_bias_acc[...])
        if plan.moves:
            r.d_shared_key[...] = r.d_shared_key_acc[...].astype(r.d_shared_key.dtype)
        if plan.keeps:
            r.d_shared_value[...] = r.d_shared_value_acc[...].astype(r.d_shared_value.dtype)


def _zero(*references: Any) -> None:
    for ref in references:
        ref[...] = jnp.zeros_like(ref)


def _dot(a: jax.Array, b: jax.Array, of_a: int = 1, of_b: int = 0) -> jax.Array:
    """Product that adds up in float32, over axis `of_a` of a and axis `of_b` of b.

    Two float32 operands are multiplied without bfloat16 passes: squares of queries reach hundreds,
    and bfloat16 would make a logit wrong by a half.
    """
    exact = a.dtype == jnp.float32 and b.dtype == jnp.float32
    return jax.lax.dot_general(
        a,
        b,
        (((of_a,), (of_b,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _hide(
    plan: Plan,
    r: SimpleNamespace,
    logits: jax.Array,
    i: jax.Array,
    j: jax.Array,
    transposed: bool = False,
) -> jax.Array:
    """The logits, with MASK_VALUE where a query may not see a key."""
    if plan.masked:
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
