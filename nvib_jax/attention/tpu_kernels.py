"""The bodies of the TPU kernels: a block of queries against a block of keys.

Enters references to blocks in vector memory, which have no batch or head axis and go by the names
of `pallas_tpu`, where the equations stand. A form without a term has no reference for it.
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

LOWEST = float(jnp.finfo(jnp.float32).min)  # where a running maximum starts; below MASK_VALUE


@dataclass(frozen=True)
class Plan:
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


def forward_kernel(plan: Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, **_) -> None:
    """out, and the maximum and the sum of each row; keys vary fastest."""

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


def query_kernel(plan: Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, **_) -> None:
    """dq and the gradients of W_k and W_v; keys vary fastest."""

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


def key_kernel(
    plan: Plan, r: SimpleNamespace, i: jax.Array, j: jax.Array, *, h: jax.Array, heads: int
) -> None:
    """dk, dv, dbias and the shared ones; queries, then heads, vary fastest.

    Logits are transposed here, keys by queries, so that every product is a plain one.
    """
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
    plan: Plan,
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
