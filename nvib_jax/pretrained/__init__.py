"""Pretrained Transformers from Hugging Face's files, read as nonparametric variational models.

`load` opens BERT, RoBERTa, GPT-2, BART, Marian, T5 and flan-T5, and classifiers of four of them.
`empirical_prior` measures what their attentions read, and `reinterpret` moves them off what they
were towards it, without training (Fehr & Henderson 2024, arXiv 2312.00662).

    architecture.py   what a model computes
    config_json.py    a config.json as that, and the labels in it
    names.py          where each parameter is in a file
    files.py          folders and the Hub
    weights.py        safetensors in and out
    tokenizer.py      texts to ids and back
    encoding.py       texts to ids that fit a model
    batches.py        ids in a few static shapes
    attention.py      an attention and its reading
    bottleneck.py     a reading that is learned
    transformer.py    the one Transformer of all families
    decoding.py       greedy, sampling and beam search by generation_config.json
    passes.py         what is computed of a batch, for jit
    model.py          `PretrainedModel`
    readings.py       which attentions are read how, and that as files
    opening.py        `load`, `fresh`, `inspect`
    knobs.py          a treated model: its readings, its temperatures
    search.py         the search for them
    overlap.py        BLEU, chrF and ROUGE
    evaluate.py       figures, intervals, tables
    train.py          training of weights
    finetune.py       training with bottlenecks
"""

from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.decoding import Decoding
from nvib_jax.pretrained.model import PretrainedModel, Scores
from nvib_jax.pretrained.opening import fresh, inspect, load
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
