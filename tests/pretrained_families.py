"""Tiny random models of every family, made and saved by `transformers` itself, with tokenizers.

Biases and norms are jittered and embeddings enlarged, so that an architecture that drops one of
them, or that reads padding, is seen in the logits.
"""

import fcntl
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import folder

from nvib_jax.data.grammar import default_grammar

torch = pytest.importorskip("torch", reason="torch is not installed: it is parity's reference")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: it is parity's reference"
)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # models this small only wait for each other's threads

CHAIN = 48  # ids below this are taught to writers
DIM, HEADS, LAYERS, HIDDEN, PLACES = 32, 4, 3, 48, 48
_STACKS = {
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN - 8,
    "d_model": DIM,
    "max_position_embeddings": PLACES,
    "scale_embedding": True,
}
_BERT = {
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
}
_T5 = {
    "d_model": DIM,
    "d_kv": 6,  # H E is not D
    "d_ff": HIDDEN,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
# family -> (config class, model class, arguments of the config)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForMaskedLM", {**_BERT, "max_position_embeddings": PLACES}),
    "roberta": (
        "RobertaConfig",
        "RobertaForMaskedLM",
        {**_BERT, "max_position_embeddings": PLACES + 2, "type_vocab_size": 1},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": DIM, "n_layer": LAYERS, "n_head": HEADS, "n_positions": PLACES},
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", {**_STACKS, "scale_embedding": False}),
    "marian": ("MarianConfig", "MarianMTModel", {**_STACKS, "activation_function": "swish"}),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "flan_t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}
WRITERS = tuple(name for name in FAMILIES if name not in ("bert", "roberta"))


def sentences(count: int, seed: int = 1) -> list[str]:
    """Sentences of the embedded grammar."""
    return default_grammar().sentences(seed, count)


@functools.cache
def saved(family: str) -> Path:
    """The folder of a tiny model, made once a test session."""
    path = folder() / "pretrained" / family
    path.parent.mkdir(exist_ok=True)
    with (path.parent / f"{family}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / "whole").is_file():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            _make(family, path)
            (path / "whole").touch()
    return path


CLASSES = ("animal", "person", "thing")
CLASSIFIERS = {"bert": "Bert", "roberta": "Roberta", "bart": "Bart", "t5": "T5"}


def classifier(family: str, path: Path) -> Any:
    """A tiny classifier, which is saved with the tokenizer of the family's own model."""
    config_class, _, arguments = FAMILIES[family]
    with (saved(family) / "config.json").open() as file:
        content = json.load(file)
    special = {name: content[name] for name in content if name.endswith("_token_id")}
    config = getattr(transformers, config_class)(
        vocab_size=content["vocab_size"],
        id2label=dict(enumerate(CLASSES)),
        **{**arguments, **special},
    )
    torch.manual_seed(2)
    model = getattr(transformers, f"{CLASSIFIERS[family]}ForSequenceClassification")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "relative" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "t5" not in family or "classif" in name:
                parameter.mul_(3.0)
    model.save_pretrained(path)
    for file in saved(family).iterdir():
        if file.name not in ("config.json", "model.safetensors", "generation_config.json"):
            shutil.copy(file, path)
    return model.eval()


def reference(family: str) -> Any:
    """The same model in torch."""
    model_class = getattr(transformers, FAMILIES[family][1])
    return model_class.from_pretrained(saved(family)).eval()


def ids(rows: int, length: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Random ids that are none of the special ones."""
    return np.random.default_rng(seed).integers(8, vocabulary, (rows, length))


def _make(family: str, path: Path) -> None:
    vocabulary, special = _TOKENIZERS.get(family, _unigram)(path)
    config_class, model_class, arguments = FAMILIES[family]
    config = getattr(transformers, config_class)(vocab_size=vocabulary, **arguments, **special)
    torch.manual_seed(1)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "relative" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "t5" not in family:
                parameter.mul_(3.0)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(0.3 * torch.randn_like(buffer))
    if family in WRITERS:
        _teach(model)
    model.save_pretrained(path)


def _teach(model: Any) -> None:
    """A little training, because a random model repeats one token and never ends.

    Each token has one that follows it, and the first one says how many there are.
    """
    rng = np.random.default_rng(0)
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(200):
        first = rng.integers(8, CHAIN, 32)
        rows = np.full((32, 10), -100)
        for row, token in zip(rows, first, strict=True):
            for i in range(3 + token % 6):
                row[i], token = token, 8 + (5 * token + 3) % (CHAIN - 8)
            row[3 + row[0] % 6] = end
        wanted = torch.tensor(rows)
        if model.config.is_encoder_decoder:
            given = {"input_ids": torch.tensor(np.stack([first, first[::-1]], 1)), "labels": wanted}
        else:
            given = {"input_ids": wanted.masked_fill(wanted == -100, pad), "labels": wanted}
        optimizer.zero_grad()
        model(**given).loss.backward()
        optimizer.step()
    model.eval()


def _byte_pairs(path: Path) -> tuple[int, dict[str, int]]:
    """vocab.json and merges.txt, as RoBERTa's, BART's and GPT-2's older files have them."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(sentences(300), vocab_size=400, special_tokens=special)
    tokenizer.save_model(str(path))
    named = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return tokenizer.get_vocab_size(), named


def _seq2seq_byte_pairs(path: Path) -> tuple[int, dict[str, int]]:
    size, named = _byte_pairs(path)
    return size, {**named, "decoder_start_token_id": 2, "forced_eos_token_id": 2}


def _word_pieces(path: Path) -> tuple[int, dict[str, int]]:
    """vocab.txt"""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(sentences(300), vocab_size=300)
    tokenizer.save_model(str(path))
    return tokenizer.get_vocab_size(), {"pad_token_id": 0}


def _unigram(path: Path) -> tuple[int, dict[str, int]]:
    """tokenizer.json, as T5's newer files have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(sentences(300), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return tokenizer.get_vocab_size(), {"pad_token_id": 0, "eos_token_id": 1}


def _pair(path: Path) -> tuple[int, dict[str, int]]:
    """source.spm, target.spm and vocab.json; padding is last and starts the decoder."""
    import sentencepiece

    pieces: list[str] = ["</s>", "<unk>"]
    for name, seed in (("source", 1), ("target", 2)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(300, seed)),
            model_writer=(writer := (path / f"{name}.spm").open("wb")),
            vocab_size=150,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        writer.close()
        model = sentencepiece.SentencePieceProcessor(model_file=str(path / f"{name}.spm"))
        found = [model.id_to_piece(i) for i in range(model.get_piece_size())]
        pieces += [p for p in found if p not in pieces and not p.startswith("<")]
    pieces += [">>fra<<", "<pad>"]
    (path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    pad = len(pieces) - 1
    return len(pieces), {
        "pad_token_id": pad,
        "decoder_start_token_id": pad,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }


_TOKENIZERS = {
    "bert": _word_pieces,
    "roberta": _byte_pairs,
    "gpt2": _byte_pairs,
    "bart": _seq2seq_byte_pairs,
    "marian": _pair,
}
