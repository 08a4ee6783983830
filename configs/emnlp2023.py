"""Characters of WikiText-2 through NVIB self-attention, at the published size.

    nvib train configs/emnlp2023.py --data.train PATH/train.txt \\
        --data.validation PATH/valid.txt --data.test PATH/test.txt

Behjati, Fehr & Henderson (Findings of EMNLP 2023, arXiv 2310.17284): three plain and three NVIB
layers, two decoder layers, one head, a tenth of the characters deleted from the input. For one
accelerator; it has not been run here. A step compiled for four v5e chips takes 4.1 GiB of each, 1.5
with `--model.remat` (`--dry-run --topology v5e:2x2`). The files are WikiText-2's `wiki.*.tokens`.
"""

from nvib_jax.config import Config, ObjectiveConfig, TrainConfig
from nvib_jax.data.config import PUBLISHED_CHARACTERS, CleanConfig, DataConfig
from nvib_jax.models.config import DenoisingConfig


def config() -> Config:
    return Config(
        data=DataConfig(
            source="text",
            train=("wikitext2/train.txt",),
            validation=("wikitext2/valid.txt",),
            test=("wikitext2/test.txt",),
            layout="wikitext",
            pieces="characters",
            clean=CleanConfig(keep_characters=PUBLISHED_CHARACTERS, max_tokens=128),
            vocab_size=107,
            batch_size=512,
            buckets=(64, 96, 128),
        ),
        model=DenoisingConfig(
            dim=512,
            heads=1,
            hidden=512,
            plain_layers=3,
            nvib_layers=3,
            decoder_layers=2,
            dropout=0.1,
            alpha_delta=0.25,
        ),
        objective=ObjectiveConfig(
            lambda_gaussian=0.01,
            lambda_dirichlet=1.0,
            anneal="linear",
            anneal_start=2400,
            anneal_steps=2400,
        ),
        train=TrainConfig(
            steps=8000,
            optimizer="radam",
            learning_rate=1e-3,
            warmup_steps=0,
            eval_every=1000,
        ),
    )
