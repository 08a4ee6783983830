"""`configs/base.py` on a pod of 256 TPU chips: the same model, 32 times the batch.

    nvib train configs/pod.py --data.train PATH/train.txt --data.validation PATH/valid.txt

Hardware: v5e-256. Compiled ahead of time for v5e:16x16 (jax 0.10.2, the longest bucket): on each
chip what `base.py` takes, 10.9 GiB, and 1.3 GiB sent a step. Never trained.
"""

import dataclasses
from pathlib import Path

from nvib_jax.config import Config
from nvib_jax.presets import load_preset


def config() -> Config:
    base = load_preset(Path(__file__).with_name("base.py"))
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, batch_size=16_384),
        # The same shares of the run: base's ramp would end after this run does.
        objective=dataclasses.replace(base.objective, anneal_start=400, anneal_steps=4_000),
        train=dataclasses.replace(
            base.train, steps=20_000, learning_rate=1e-3, eval_sentences=16_384, keep_every=5_000
        ),
    )
