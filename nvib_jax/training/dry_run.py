"""Says what memory and traffic a run will need, by compiling its step without running it.

It compiles for the local devices, or for a TPU slice that is not here (`topology`), which needs
libtpu (`pip install "nvib-jax[tpu]"`) but no TPU.
"""

import math
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from nvib_jax.config import Config
from nvib_jax.data import prepare
from nvib_jax.models.build import build
from nvib_jax.training.hlo import collectives
from nvib_jax.training.sharding import (
    ROWS,
    StatePlan,
    check_fits,
    make_mesh,
    plan_state,
    whole,
)
from nvib_jax.training.step import make_train_step

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a compiled step needs; memory and traffic are those of one device.

    Attributes:
      devices: their number and kind.
      mesh: axis -> size.
      batch: sentences and padded tokens of the global batch.
      parameters: how many numbers the model has, on all devices together.
      state_bytes: memory of parameters and moments.
      temporary_bytes: memory that the step needs besides.
      total_bytes: arguments, results that do not reuse an argument's memory, and temporary memory.
      flops: floating-point operations per step; None if the compiler does not say.
      sent_bytes: kind of collective operation -> bytes sent per step, if it uses a ring algorithm.
      compile_seconds: how long the compilation took.
    """

    devices: str
    mesh: dict[str, int]
    batch: tuple[int, int]
    parameters: int
    state_bytes: int
    temporary_bytes: int
    total_bytes: int
    flops: float | None
    sent_bytes: dict[str, float]
    compile_seconds: float

    def __str__(self) -> str:
        mesh = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
        rows, length = self.batch
        sent = sum(self.sent_bytes.values())
        kinds = ", ".join(f"{kind} {size / MIB:,.1f}" for kind, size in self.sent_bytes.items())
        flops = "unknown" if self.flops is None else f"{self.flops / 1e9:,.1f} G"
        lines = [
            f"{self.devices}, {mesh}; compiled in {self.compile_seconds:.0f} s",
            f"parameters            {self.parameters:,}",
            f"batch                 {rows:,} sentences of {length} tokens",
            "on each device",
            f"  parameters, moments {self.state_bytes / MIB:,.1f} MiB",
            f"  temporary           {self.temporary_bytes / MIB:,.1f} MiB",
            f"  in all              {self.total_bytes / MIB:,.1f} MiB",
            f"  operations a step   {flops}FLOP",
            f"  sent a step         {sent / MIB:,.1f} MiB" + (f" ({kinds})" if kinds else ""),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)


def dry_run(config: Config, *, topology: str = "") -> DryRun:
    """Compile the training step for the longest bucket.

    Args:
      config: the run's. Its data are prepared first, because shapes depend on them; but not if
        `data.buckets` are given and the source is not the grammar.
      topology: a TPU slice such as "v5e:2x4"; empty compiles for the local devices.

    Raises:
      ValueError: sizes that do not fit, or a topology that cannot be compiled for.
    """
    vocab_size, length = sizes_of(config)
    mesh = make_mesh(config.mesh, _topology(topology) if topology else None)
    since = time.monotonic()
    plan, compiled = compile_step(config, mesh, vocab_size, length)
    return describe_step(plan, compiled, config, length, time.monotonic() - since)


def compile_step(
    config: Config, mesh: jax.sharding.Mesh, vocab_size: int, length: int
) -> tuple[StatePlan, Any]:
    """(the plan of the state, the compiled step) for batches of this length.

    Raises:
      ValueError: sizes that do not fit the mesh.
    """
    structure = build(
        config.model, vocab_size=vocab_size, max_length=length, seed=config.train.seed
    )
    check_fits(config, mesh, structure.shapes)
    plan = plan_state(config, mesh, structure)
    rows = NamedSharding(mesh, ROWS)
    shape = (config.data.batch_size, length)
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows),
        "mask": jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=rows),
    }
    with jax.set_mesh(mesh):
        step = make_train_step(
            structure.graph,
            plan.optimizer,
            config.objective,
            accumulate=config.train.accumulate,
            spike=config.train.spike,
            shardings=(plan.shardings, whole(mesh)),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole(mesh))
        return plan, step.trace(plan.state, batch, key).lower().compile()


def describe_step(
    plan: StatePlan, compiled: Any, config: Config, length: int, seconds: float
) -> DryRun:
    """The compiler's figures for a step from `compile_step`, which took this many `seconds`."""
    mesh, memory = plan.mesh, compiled.memory_analysis()
    sent: dict[str, float] = {}
    for operation in collectives(compiled.as_text() or ""):
        sent[operation.kind] = sent.get(operation.kind, 0.0) + operation.sent
    return DryRun(
        devices=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        mesh=dict(mesh.shape),
        batch=(config.data.batch_size, length),
        parameters=sum(math.prod(p.shape) for p in plan.state.params.values()),
        state_bytes=sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(plan.state)
        ),
        temporary_bytes=memory.temp_size_in_bytes,
        total_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        flops=_flops(compiled),
        sent_bytes=sent,
        compile_seconds=seconds,
    )


def sizes_of(config: Config) -> tuple[int, int]:
    """(vocabulary size, longest bucket), from the config alone if it determines both."""
    if config.data.buckets and config.data.source != "grammar":
        return config.data.vocab_size, config.data.buckets[-1]
    data = prepare(config.data)
    return data.vocab_size, config.data.buckets[-1] if config.data.buckets else data.max_tokens


def _topology(name: str) -> Any:
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu must not query a cloud machine's data
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # libtpu is missing or does not know the name
        reason = " ".join(str(error).split())
        raise ValueError(
            f"topology {name!r} cannot be compiled for: {reason}; wanted one as v5e:2x4, and "
            'pip install "nvib-jax[tpu]"'
        ) from error


def _flops(compiled: Any) -> float | None:
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    flops = (cost or {}).get("flops")
    return None if flops is None else float(flops)
