"""Where arrays live: one mesh axis, `data`, over all devices; parameters on every one of them."""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def data_mesh(batch_size: int, accumulate: int = 1) -> jax.sharding.Mesh:
    """All devices on one axis.

    Raises:
      ValueError: a batch, or the parts it is worked off in, that the devices cannot share evenly.
    """
    count = jax.device_count()
    if batch_size % (count * accumulate):
        parts = f" times train.accumulate, {accumulate}" if accumulate > 1 else ""
        raise ValueError(
            f"data.batch_size is {batch_size}; wanted a multiple of the {count} devices{parts}"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


def place(tree: Any, mesh: jax.sharding.Mesh, *, batch: bool = False) -> Any:
    """Put arrays on the mesh: a batch split over its rows, anything else whole on each device."""
    return jax.device_put(tree, NamedSharding(mesh, P("data") if batch else P()))
