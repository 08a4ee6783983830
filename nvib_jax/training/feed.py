"""Opens what a config describes: its model, its buckets, its batches."""

from typing import Any

import jax

from nvib_jax.checkpoint.description import Description
from nvib_jax.config import Config
from nvib_jax.data import Batches, PreparedData
from nvib_jax.data.batches import default_buckets
from nvib_jax.data.config import Split
from nvib_jax.training.sharding import own_rows


def describe(config: Config, data: PreparedData) -> Description:
    """The description of the model that fits the data."""
    return Description.create(
        config, data.tokenizer, buckets_of(config, data), data.length_distribution
    )


def buckets_of(config: Config, data: PreparedData) -> tuple[int, ...]:
    """The padded lengths of a run."""
    return config.data.buckets or default_buckets(data)


def open_batches(
    config: Config,
    data: PreparedData,
    mesh: jax.sharding.Mesh,
    split: Split,
    *,
    shuffle: bool = True,
) -> Batches:
    """A split's batches, of which this process reads the rows of its own devices."""
    return Batches(
        data,
        split,
        batch_size=config.data.batch_size,
        buckets=config.data.buckets,
        seed=config.train.seed,
        rows=own_rows(mesh, config.data.batch_size),
        shuffle=shuffle,
    )


def arrays_of(batch: Any) -> dict[str, Any]:
    """The arrays of a batch that go to the devices."""
    return {"tokens": batch["tokens"], "mask": batch["mask"]}
