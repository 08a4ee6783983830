"""The smallest model, corpus and run that show everything; made once a test session."""

import atexit
import dataclasses
import fcntl
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import nvib_jax as nvib
from nvib_jax.config import Config, MeshConfig, ObjectiveConfig, TrainConfig
from nvib_jax.data import DataConfig
from nvib_jax.models.nvae import NVAE, NVAEConfig

VOCAB, LENGTH = 20, 6
SMALL: dict[str, Any] = {"dim": 16, "heads": 2, "latent_heads": 2, "hidden": 32}


class Still(NVAE):
    """An NVAE whose draw is the posterior's mean: nothing depends on the shape of the batch."""

    def draw(self, posterior: nvib.Posterior, key: jax.Array) -> nvib.Mixture:
        mean = nvib.expected(posterior)
        return nvib.Mixture(mean.mean, None, mean.log_weights, mean.mask)


def model(module: type[NVAE] = NVAE, *, max_length: int = LENGTH, **overrides: Any) -> NVAE:
    """A module of width 16."""
    config = NVAEConfig(**{**SMALL, "dropout": 0.0, **overrides})
    return module(config, vocab_size=VOCAB, max_length=max_length, rngs=nnx.Rngs(0))


def batch(seed: int = 0, lengths: tuple[int, ...] = (6, 3, 1, 4)) -> dict[str, Any]:
    """Random ids under a mask; padding is 0."""
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH)[None] < np.array(lengths)[:, None]
    tokens = np.where(mask, rng.integers(4, VOCAB, mask.shape), 0).astype(np.int32)
    return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}


@functools.cache
def folder() -> Path:
    """Where this session's runs, caches and compiled code are, for all pytest workers alike."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    path = Path(tempfile.gettempdir()) / f"nvib_tests_{session}"
    path.mkdir(exist_ok=True)
    users = (path / "users.lock").open("w")
    fcntl.flock(users, fcntl.LOCK_SH)

    def leave() -> None:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the last one out
        except BlockingIOError:
            return
        shutil.rmtree(path, ignore_errors=True)

    atexit.register(leave)
    return path


def compiled() -> str:
    """Where compiled code is kept: for this session, or for all sessions of a CI run."""
    return os.environ.get("NVIB_TESTS_COMPILED") or str(folder() / "xla")


# A step compiles for seconds, mostly its random draws; the tests that train anew compile it once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled()  # of the processes that tests start
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# An entry is written in place: who reads it meanwhile compiles for itself, and need not warn.
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry:UserWarning"
jax.config.update("jax_compilation_cache_dir", compiled())
# To write what compiles sooner takes longer than the other worker saves by reading it.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def config(name: str = "run", **train: Any) -> Config:
    """Grammar sentences, a model of width 16, 20 steps on one device, which compile soonest."""
    settings = {"steps": 20, "eval_every": 10, "log_every": 5, "eval_sentences": 16, **train}
    return Config(
        data=DataConfig(
            num_train=300,
            num_validation=40,
            num_test=10,
            batch_size=16,
            buckets=(24,),
            cache_dir=str(folder() / "cache"),
        ),
        model=NVAEConfig(**SMALL, dropout=0.1),
        objective=ObjectiveConfig(anneal="linear", anneal_steps=10),
        mesh=MeshConfig(data=1),
        train=TrainConfig(
            run_dir=str(folder() / name),
            learning_rate=1e-2,
            schedule="constant",
            warmup_steps=2,
            **settings,
        ),
    )


def as_saved(config: Config) -> Config:
    """The config as a run of it keeps it: with the digest of its data."""
    from nvib_jax.data import prepare

    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, digest=prepare(config.data).digest)
    )


def with_train(config: Config, **changes: Any) -> Config:
    """The config with other training settings."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


@functools.cache
def trained() -> tuple[Config, dict[str, float]]:
    """One finished run: its config and what its summary measured. Do not write into its folder."""
    from nvib_jax.evaluation import summary
    from nvib_jax.training import loop

    settings, kept = config("trained", keep_checkpoints=2), folder() / "trained.json"
    with (folder() / "trained.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # one worker trains, the others wait for it
        if not kept.exists():
            summary.SUMMARY_SAMPLES = 20
            run = loop.train(settings, then=summary.summarize_run)
            kept.write_text(json.dumps(run.result | {"tokens_per_second": run.tokens_per_second}))
    return settings, json.loads(kept.read_text())


def open_model(config: Config, data: Any) -> Any:
    """An untrained `TextModel` that fits prepared data."""
    from nvib_jax.text_model import TextModel
    from nvib_jax.training.feed import describe

    description = describe(config, data)
    return TextModel(description, description.fresh())
