"""Sentences through a few vectors: an NVAE on the embedded grammar.

    nvib train configs/quickstart.py
"""

from nvib_jax.data.config import DataConfig
from nvib_jax.models.nvae import NVAEConfig
from nvib_jax.training.config import Config, ObjectiveConfig, TrainConfig


def config() -> Config:
    return Config(
        data=DataConfig(source="grammar", batch_size=64, buckets=(8, 14, 24)),
        model=NVAEConfig(
            dim=128,
            heads=4,
            latent_heads=1,
            hidden=256,
            dropout=0.0,
            pseudo_count="relu",
            alpha_delta=0.5,
            initial_kept=0.4,
            threshold=0.1,
        ),
        objective=ObjectiveConfig(
            units="elbo",
            lambda_gaussian=0.15,
            lambda_dirichlet=3.0,
            gaussian_form="exact",
            anneal="linear",
            anneal_start=200,
            anneal_steps=1800,
            dirichlet_from_start=True,
        ),
        train=TrainConfig(
            steps=3600,
            learning_rate=2e-3,
            warmup_steps=100,
            log_every=500,
            eval_every=1800,
        ),
    )
