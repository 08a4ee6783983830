"""nvib train configs/quickstart.py"""

from nvib_jax.data.config import DataConfig
from nvib_jax.models.nvae import NVAEConfig
from nvib_jax.training.config import Config, ObjectiveConfig, TrainConfig


def config() -> Config:
    return Config(
        data=DataConfig(source="grammar", batch_size=64, buckets=(8, 14, 24)),
        model=NVAEConfig(dim=128, heads=4, hidden=256, dropout=0.0, pseudo_count="relu"),
        objective=ObjectiveConfig(
            units="elbo",
            lambda_gaussian=0.1,
            gaussian_form="exact",
            anneal="linear",
            anneal_start=300,
            anneal_steps=1200,
        ),
        train=TrainConfig(steps=2500, learning_rate=2e-3, eval_every=1000, log_every=250),
    )
