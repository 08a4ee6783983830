"""Runs in processes of their own: started together, killed, told to stop."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny  # noqa: F401 (it sets where processes find compiled code)

from nvib_jax.checkpoint.retention import FOLDER
from nvib_jax.config import Config
from nvib_jax.presets import to_json


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process with so many simulated devices that shares the tests' compiled code."""
    return {
        **{n: v for n, v in os.environ.items() if not n.startswith(("SLURM_", "OMPI_", "PYTEST"))},
        "XLA_FLAGS": re.sub(
            r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"]
        ),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }


def command(config: Config, *more: str, python: Sequence[str] = ("-m", "nvib_jax")) -> list[str]:
    """`nvib train` of a config, without the summary unless asked for."""
    file = Path(config.train.run_dir).with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_json(config), encoding="utf-8")
    more = more[1:] if more[:1] == ("--summary",) else ("--no-summary", *more)
    return [sys.executable, *python, "train", str(file), *more]


def start(config: Config, *more: str, devices: int = 1, **how: Any) -> subprocess.Popen:
    """One process of a run; what it says goes to RUN.log."""
    with Path(config.train.run_dir).with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            command(config, *more, **how), env=environment(devices), stdout=log, stderr=log
        )


def start_group(
    config: Config, count: int, *more: str, devices: int = 1, **how: Any
) -> list[subprocess.Popen]:
    """The processes of one run, which find each other at a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            config,
            *(*more, "--coordinator", f"127.0.0.1:{port}"),
            *("--processes", str(count), "--process", str(i)),
            devices=devices,
            **how,
        )
        for i in range(count)
    ]


def said(config: Config) -> str:
    """All that the processes of a run said."""
    return Path(config.train.run_dir).with_suffix(".log").read_text()


def finish(config: Config, group: list[subprocess.Popen], status: int = 0) -> None:
    """Wait for all of them to end with this status."""
    ends = [process.wait(timeout=1200) for process in group]
    assert ends == [status] * len(group), said(config)[-3000:]


def records(run: str) -> list[dict]:
    """What a run has written of its steps, an unfinished line left out."""
    file = Path(run) / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(run: str) -> dict[tuple[int, str], float]:
    """(step, split) -> loss."""
    return {(r["step"], r["split"]): r["loss"] for r in records(run)}


def assert_same_losses(run: str, other: str, rtol: float) -> None:
    """Two runs have the same steps with the same losses."""
    found, wanted = losses(run), losses(other)
    assert found.keys() == wanted.keys()
    steps = sorted(wanted)
    np.testing.assert_allclose(
        [found[s] for s in steps], [wanted[s] for s in steps], rtol=rtol, err_msg=run
    )


def wait_for(happened, seconds: float = 600, every: float = 0.002) -> None:
    """Until something has happened."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(every)


def saving(run: str) -> bool:
    """Whether a checkpoint is being written at this moment."""
    folder = Path(run) / FOLDER
    return folder.is_dir() and any("tmp" in p.name for p in folder.iterdir())
