"""Compile the TPU kernels without having a TPU, and check the memory that the compiler reports.

    pip install "nvib-jax[tpu]" && python -m nvib_jax.bench.compile v5e:2x2

It needs libtpu but no TPU. Each case compiles the gradient of attention with respect to queries,
mixture and kernels. From 16,384 to 32,768 tokens, temporary memory must grow no faster than the
sizes do; `--quick` compiles the larger one alone.
Topologies: v5e:2x2 on jax 0.10, also v5p:2x2x1 and v6e:2x2 on jax 0.12.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

# These are set before jax is imported: there is only a CPU here, and libtpu, which compiles, must
# not query a cloud machine's metadata.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvib_jax.attention import make_memory, pallas_tpu
from nvib_jax.attention.blocks import choose_blocks
from nvib_jax.types import Mixture

# T = S of the cases that show that memory is linear. None is smaller, because at 4,096 a v5e keeps
# some arrays in its 128 MiB of vector memory, where they do not count as temporary.
LONG = (16_384, 32_768)
# Temporary memory may grow by this times the growth of the sizes, because of fixed parts and
# padding.
GROWTH = 1.25


@dataclass(frozen=True, kw_only=True)
class Case:
    """One program: sizes, dtype, form, masks."""

    form: str
    queries: int
    components: int
    heads: int = 8
    width: int = 64
    dim: int = 512
    dtype: str = "bfloat16"
    causal: bool = False
    mask: bool = False

    def __str__(self) -> str:
        masks = " causal" * self.causal + " mask" * self.mask
        sizes = f"T {self.queries} S {self.components} H {self.heads} E {self.width} D {self.dim}"
        return f"{self.form:8} {sizes} {self.dtype}{masks}"


def cases(quick: bool) -> Iterator[Case]:
    """Long cases, and extremes of the supported sizes: odd ones, H 1 and 16, E 16 and 256."""
    for form in ("impulse", "exact"):
        for size in LONG[-1:] if quick else LONG:
            yield Case(form=form, queries=size, components=size)
    odd = Case(form="exact", queries=300, components=501, dtype="float32")
    yield replace(odd, heads=3, width=24, dim=72, causal=True, mask=True)
    if not quick:
        yield replace(odd, heads=1, width=16, dim=16)
        yield replace(odd, heads=16, width=64, dim=1024, form="published", dtype="bfloat16")
        yield replace(odd, heads=2, width=256, dim=512)


def compile_case(case: Case, device: Any) -> Any:
    """The compiled gradient of a case, for one device of a topology."""
    sharding = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    dtype = jnp.dtype(case.dtype)

    def loss(query, mean, log_variance, log_weights, key_kernel, value_kernel, mask):
        seen = jnp.ones(log_weights.shape, bool)
        spread = None if case.form == "impulse" else log_variance
        memory = make_memory(
            Mixture(mean, spread, log_weights, seen),
            key_kernel=key_kernel,
            value_kernel=value_kernel,
            form="exact" if case.form == "impulse" else case.form,
        )
        out = pallas_tpu.attend(
            query,
            memory,
            mask if case.mask else None,
            causal=case.causal,
            blocks=choose_blocks(query, memory, device.device_kind),
        )
        return jnp.sum(jnp.sin(out.astype(jnp.float32)))

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    c = case
    kernel = shape(c.dim, c.heads, c.width, dtype=dtype)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4, 5)))
    traced = gradient.trace(
        shape(1, c.queries, c.heads, c.width, dtype=dtype),
        shape(1, c.components, c.dim),
        shape(1, c.components, c.dim),
        shape(1, c.components),
        kernel,
        kernel,
        shape(1, c.queries, c.components, dtype=bool),
    )
    return traced.lower().compile()


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile all cases for a topology; return 1 if the memory of one is not linear."""
    parser = argparse.ArgumentParser(prog="python -m nvib_jax.bench.compile", description=__doc__)
    parser.add_argument("topology", help="as v5e:2x2")
    parser.add_argument(
        "--quick", action="store_true", help="fewer corners, and memory is not compared"
    )
    options = parser.parse_args(arguments)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=options.topology)
    device: Any = topology.devices[0]
    print(f"{device.device_kind}, jax {jax.__version__}: gradients, compiled ahead of time")
    memory: dict[tuple[str, int], float] = {}
    for case in cases(options.quick):
        since = time.monotonic()
        used = compile_case(case, device).memory_analysis().temp_size_in_bytes / 2**20
        memory[case.form, case.queries] = used
        print(f"  {case}: {used:.1f} MiB temporary, {time.monotonic() - since:.0f} s", flush=True)
    failed = False
    for form in ("impulse", "exact"):
        for small, large in itertools.pairwise(() if options.quick else LONG):
            ratio = memory[form, large] / memory[form, small]
            print(f"  {form}: {ratio:.2f} times the memory for {large // small} times the sizes")
            failed |= ratio > GROWTH * large / small
    if failed:
        print("temporary memory is not linear in T and S", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
