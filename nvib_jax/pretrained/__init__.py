"""Pretrained Transformers from Hugging Face's files, read as nonparametric variational models.

`load` opens BERT, RoBERTa, GPT-2, BART, Marian, T5 and flan-T5. `empirical_prior` measures what
their attentions read, and `reinterpret` moves them off what they were towards it, without training
(Fehr & Henderson 2024, arXiv 2312.00662).

    architecture.py   what a config.json describes
    names.py          where each parameter is in a file
    files.py          folders, the Hub, safetensors in and out
    tokenizer.py      texts to ids
    attention.py      an attention and its reading
    transformer.py    the one Transformer of all families
    decoding.py       greedy, sampling and beam search by generation_config.json
    model.py          `PretrainedModel`
"""

from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.decoding import Decoding
from nvib_jax.pretrained.model import PretrainedModel, Scores, fresh, inspect, load
from nvib_jax.pretrained.readings import Priors

__all__ = [
    "Architecture",
    "Decoding",
    "PretrainedModel",
    "Priors",
    "Scores",
    "fresh",
    "inspect",
    "load",
]
