"""The mesh of a config, and the layout of parameters, optimiser state and batches on it.

The shapes are computed first (`jax.eval_shape`). Then every device makes its own part, so that no
host ever holds the whole model. Every process reads only the batch rows of its own devices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nvib_jax.config import Config, MeshConfig
from nvib_jax.mesh import MESH_AXES, RULES, ways
from nvib_jax.models.build import Structure
from nvib_jax.models.params import Params, axes_of, layout
from nvib_jax.training.optimizer import make_optimizer
from nvib_jax.training.step import TrainState

ROWS = P(RULES["batch"])


def make_mesh(config: MeshConfig, devices: Any = None) -> jax.sharding.Mesh:
    """The devices as (data, fsdp, tensor).

    Args:
      config: sizes; data 0 means all devices that fsdp and tensor leave.
      devices: None is all devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices. (In a single process, fewer
        are allowed, and the other devices stay idle.)
    """
    devices = jax.devices() if devices is None else devices
    inner = config.fsdp * config.tensor
    data = config.data or len(devices) // inner
    used = data * inner
    some = config.data and jax.process_count() == 1 and used < len(devices)
    if not some and used != len(devices):
        ask = f"mesh.data {config.data or 'any'} x fsdp {config.fsdp} x tensor {config.tensor}"
        wanted = f"{config.data * inner}" if config.data else f"a multiple of {inner}"
        raise ValueError(f"there are {len(devices)} devices; {ask} wants {wanted}")
    sizes = (data, config.fsdp, config.tensor)
    kinds = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(sizes, MESH_AXES, axis_types=kinds, devices=devices[:used])


def check_fits(config: Config, mesh: jax.sharding.Mesh, params: Mapping[str, Any]) -> None:
    """Check that the mesh divides a config's sizes evenly.

    Args:
      config: its batch size, heads and `train.accumulate` are checked.
      mesh: from `make_mesh`.
      params: name -> anything with a shape.

    Raises:
      ValueError: naming the size and what it should be a multiple of.
    """
    shares, parts = ways(mesh, "batch"), config.train.accumulate
    if config.data.batch_size % (shares * parts):
        also = f" times train.accumulate, {parts}" if parts > 1 else ""
        raise ValueError(
            f"data.batch_size is {config.data.batch_size}; wanted a multiple of mesh.data times "
            f"mesh.fsdp, {shares}{also}"
        )
    tensor, heads = ways(mesh, "heads"), config.model.head_counts()
    for name, count in heads.items():
        if count % tensor:
            raise ValueError(f"model.{name} is {count}; wanted a multiple of mesh.tensor, {tensor}")
    for name, array in params.items():
        for axis, size in zip(axes_of(name, len(array.shape)), array.shape, strict=True):
            if size > 1 and size % ways(mesh, axis):
                hint = " (data.vocab_size is the most the tokenizer may have)"
                raise ValueError(
                    f"{name} has {axis} {size}; wanted a multiple of mesh.{RULES[str(axis)][0]}, "
                    f"{ways(mesh, axis)}{hint if axis == 'vocab' else ''}"
                )


def whole(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of an array that every device has a whole copy of."""
    return NamedSharding(mesh, P())


@dataclass(frozen=True)
class StatePlan:
    """The shapes and shardings of a training state before it is made.

    Attributes:
      mesh: the devices.
      state: a `TrainState` of shapes with their shardings.
      shardings: the shardings alone.
      init: makes the parameters; to be called inside jit.
      optimizer: the optimiser that the state's `opt_state` belongs to.
    """

    mesh: jax.sharding.Mesh
    state: TrainState
    shardings: TrainState
    init: Callable[[], Params]
    optimizer: optax.GradientTransformation

    def create(self) -> TrainState:
        """The state, each device making its own part."""

        def make() -> TrainState:
            return TrainState.create(self.init(), self.optimizer)

        return jax.jit(make, out_shardings=self.shardings)()


def plan_state(config: Config, mesh: jax.sharding.Mesh, structure: Structure) -> StatePlan:
    """The plan for a config's training state; moments have the layout of their parameters."""
    optimizer = make_optimizer(config.train, config.model)
    shapes, init = structure.shapes, structure.init
    params = {name: NamedSharding(mesh, spec) for name, spec in layout(mesh, shapes).items()}
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer), shapes)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: whole(mesh),
    )
    everywhere: Any = whole(mesh)
    shardings = TrainState(everywhere, cast(Params, params), opt_state, everywhere)
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    return StatePlan(mesh, placed, shardings, init, optimizer)


def own_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
    """Which rows of a global batch this process's devices hold, rising."""
    places = NamedSharding(mesh, ROWS).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in places.values()]
    return np.unique(np.concatenate(rows))


def batch_placer(mesh: jax.sharding.Mesh, batch_size: int) -> Callable[[Any], Any]:
    """A function from a dict of this process's rows (`own_rows`) to global arrays on the mesh."""
    sharding, rows = NamedSharding(mesh, ROWS), own_rows(mesh, batch_size)

    def place(local: np.ndarray) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(local, sharding)

        def part(index: Any) -> np.ndarray:
            return local[np.searchsorted(rows, np.arange(batch_size)[index[0]])]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    return lambda batch: {name: place(array) for name, array in batch.items()}
