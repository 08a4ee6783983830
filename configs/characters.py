"""Sentences of the grammar, spelled out, through NVIB self-attention (Behjati et al. 2023).

    nvib train configs/characters.py

Measured on one of 2 shared CPU cores, beside other work (jax 0.10.2): 20 to 30 minutes. Of 512 test
sentences 70, 76 and 72 % come back exactly (seeds 0 to 2), chrF 98.0 to 98.6, .05 nats a character;
the upper NVIB layer keeps .74 to .99 of its vectors. `configs/README.md` ("NVIB in self-attention")
has it beside the plain Transformer, with noise in the characters and the segments that attention
makes.
"""

from nvib_jax.config import Config, ObjectiveConfig, TrainConfig
from nvib_jax.data.config import CleanConfig, DataConfig
from nvib_jax.models.config import DenoisingConfig


def config() -> Config:
    return Config(
        data=DataConfig(
            source="grammar",
            pieces="characters",
            clean=CleanConfig(max_tokens=72),
            batch_size=64,
            buckets=(32, 48, 72),
        ),
        model=DenoisingConfig(
            dim=128,
            heads=1,
            hidden=256,
            plain_layers=2,
            nvib_layers=2,
            decoder_layers=1,
            dropout=0.0,
            initial_alpha=10.0,
        ),
        objective=ObjectiveConfig(
            lambda_gaussian=0.01,
            lambda_dirichlet=1.0,
            anneal="linear",
            anneal_start=600,
            anneal_steps=600,
        ),
        train=TrainConfig(
            steps=2000,
            learning_rate=1e-3,
            warmup_steps=100,
            log_every=100,
            eval_every=1000,
        ),
    )
