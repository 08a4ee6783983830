"""`nvib bench scaling`: one training step on meshes of one device to eight, in turns.

The global batch is the same on every mesh. Simulated devices share the same cores, so the time that
a mesh adds is the cost of dividing the work. Memory and traffic are those of one device as the
compiler reports them, and they are the same on real devices.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from nvib_jax.bench.timing import Case, Program
from nvib_jax.config import Config, MeshConfig
from nvib_jax.presets import load_preset
from nvib_jax.training.dry_run import compile_step, describe_step, sizes_of
from nvib_jax.training.sharding import batch_placer, make_mesh

MESHES = (
    *(MeshConfig(data=n) for n in (1, 2, 4, 8)),
    *(MeshConfig(data=1, fsdp=n) for n in (2, 4, 8)),
    MeshConfig(data=1, tensor=2),
    MeshConfig(data=2, fsdp=2, tensor=2),
)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A preset's training step on one mesh after another."""

    config: Annotated[Path, tyro.conf.arg(metavar="CONFIG.py")] = Path("configs/quickstart.py")
    """Whose model, batch and objective; the text is random, of the longest bucket."""
    devices: int = 8
    """Devices; on a CPU so many are simulated."""
    seed: int = 0
    """Of parameters, text and draws."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices is {self.devices}; wanted at least 1")
        jax.config.update("jax_num_cpu_devices", self.devices)  # must precede the first use of jax

    def groups(self) -> Iterator[list[Case]]:
        """One group of all meshes that need no more than these devices."""
        config = load_preset(self.config)
        here = min(self.devices, jax.device_count())
        meshes = [m for m in MESHES if m.data * m.fsdp * m.tensor <= here]
        yield [_case(replace(config, mesh=mesh), self.config.stem, self.seed) for mesh in meshes]


def _case(config: Config, name: str, seed: int) -> Case:
    mesh = config.mesh
    parts = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    vocab_size, length = sizes_of(config)
    tokens = _text(config.data.batch_size, length, vocab_size, seed)
    extra: dict[str, float] = {}

    def prepare() -> Program:
        since = time.perf_counter()
        planned, compiled = compile_step(config, make_mesh(mesh), vocab_size, length)
        seconds = time.perf_counter() - since
        found = describe_step(planned, compiled, config, length, seconds)
        extra["state MiB"] = found.state_bytes / 2**20
        extra["sent MiB"] = sum(found.sent_bytes.values()) / 2**20
        stepper = _Stepper(compiled, planned, batch_placer(planned.mesh, len(tokens))(
            {"tokens": tokens, "mask": tokens > 0}
        ), seed)  # fmt: skip
        return Program(stepper, (), seconds, found.temporary_bytes)

    return Case(
        implementation=" x ".join(f"{n} {size}" for n, size in parts.items() if size > 1) or "one",
        labels={"preset": name, "batch": f"{config.data.batch_size}x{length}"},
        prepare=prepare,
        amount=float((tokens > 0).sum()),
        unit="tokens",
        extra=extra,
    )


class _Stepper:
    """A compiled step and its state; each call takes one step."""

    def __init__(self, compiled: Any, planned: Any, batch: Any, seed: int):
        self.compiled, self.batch = compiled, batch
        self.state, self.key = planned.create(), jax.random.key(seed)

    def __call__(self) -> Any:
        self.state, metrics = self.compiled(self.state, self.batch, self.key)
        return metrics


def _text(rows: int, length: int, vocab_size: int, seed: int) -> np.ndarray:
    """Random ids, with rows of random lengths; 0 is padding."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length // 2, length + 1, rows)
    tokens = rng.integers(4, vocab_size, (rows, length))
    return np.where(np.arange(length)[None] < lengths[:, None], tokens, 0).astype(np.int32)
