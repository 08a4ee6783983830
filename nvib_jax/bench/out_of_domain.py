"""Does re-reading a model, without training it, help it in another domain? With its rivals.

Models that translate short sentences of the embedded grammar (`nvib_jax.data.translation`), and
language models of such sentences, are trained here, with a few seeds, and treated for shifts of the
sentences: longer ones, words dropped, words unknown. Every treatment is searched for with the same
number of passes, on texts of the target's domain ("target") or of the source's ("source", all that
one has without data); figures are of other texts. What a treatment costs in the source's domain
stands beside it.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvib_jax.data.translation import sentence_pairs, vocabulary
from nvib_jax.files import write_whole
from nvib_jax.pretrained.evaluate import as_row, figures, untreated, written
from nvib_jax.pretrained.model import PretrainedModel
from nvib_jax.pretrained.opening import fresh
from nvib_jax.pretrained.search import Search, search
from nvib_jax.pretrained.train import TrainingConfig, train

SHIFTS = ("noise", "typos", "long")
# Name -> what is searched for.
TREATMENTS: dict[str, dict[str, Any]] = {
    "temperature": {"kinds": ("temperature",), "method": "random"},
    "attention temperature": {"kinds": ("scale",), "method": "random"},
    "expected_logit": {"kinds": ("alpha",), "method": "random"},
    "published": {"kinds": ("alpha", "sigma"), "method": "random", "form": "published"},
    "exact": {"kinds": ("alpha", "sigma"), "method": "random", "form": "exact"},
    "simplified": {"kinds": ("alpha", "sigma"), "method": "random", "form": "simplified"},
    "expected_logit, gradient": {"kinds": ("alpha",)},
    "expected_logit, gradient, per layer": {"kinds": ("alpha",), "per": "layer"},
    "temperature + expected_logit": {"kinds": ("temperature", "alpha")},
    "temperature + attention temperature": {"kinds": ("temperature", "scale")},
}
TRANSLATOR = {
    "model_type": "marian",
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "activation_function": "swish",
    "max_position_embeddings": 64,
    "scale_embedding": True,
    "dropout": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "max_length": 64,
}
LANGUAGE_MODEL = {
    "model_type": "gpt2",
    "n_embd": 128,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
# Texts, and what is to be written for each, if anything is.
Texts = tuple[list[str], list[str] | None]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    training: int = 4000
    """Sentences to train on."""
    steps: int = 2000
    """Steps of training."""
    develop: int = 400
    """Sentences to search on."""
    test: int = 400
    """Sentences to measure on."""
    trials: int = 48
    """Passes of every search."""


def word_tokenizer(folder: Path) -> None:
    """A tokenizer.json of whole words, for both languages."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def pairs(shift: str, count: int, seed: int) -> Texts:
    """Sentences and their translations, for a model of Marian's architecture."""
    return sentence_pairs(shift, count, seed=seed)


def sentences(shift: str, count: int, seed: int) -> Texts:
    """Sentences alone, for a model of GPT-2's architecture."""
    return sentence_pairs(shift, count, seed=seed)[0], None


# Name -> the model's config, and what it learns.
MODELS: dict[str, tuple[dict[str, Any], Callable[[str, int, int], Texts]]] = {
    "translator": (TRANSLATOR, pairs),
    "language model": (LANGUAGE_MODEL, sentences),
}


def trained(kind: str, seed: int, sizes: Sizes, say: Callable[[str], None]) -> PretrainedModel:
    """One of `MODELS`, trained on short sentences."""
    config, texts_of = MODELS[kind]
    with tempfile.TemporaryDirectory() as folder:
        word_tokenizer(Path(folder))
        model = fresh({**config, "vocab_size": len(vocabulary()) + 3}, folder, seed=seed)
    texts, targets = texts_of("in", sizes.training, 1000 + seed)
    return train(model, texts, targets, TrainingConfig(steps=sizes.steps, seed=seed), say=say)


def translator(seed: int, sizes: Sizes, say: Callable[[str], None]) -> PretrainedModel:
    """A model of Marian's architecture, trained on short sentences; notebook 5 regularises it."""
    return trained("translator", seed, sizes, say)


def measure(
    seed: int,
    sizes: Sizes,
    folder: Path,
    *,
    kind: str = "translator",
    shifts: Sequence[str] = SHIFTS,
    treatments: Sequence[str] = tuple(TREATMENTS),
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """All rows of one of `MODELS`: every shift and treatment, searched for on both domains' texts.

    The rows are kept in `folder` as they are made, and those that are there are not made again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed-{seed}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    done = {(row["shift"], row["searched_on"], row["name"]) for row in rows}
    model, texts_of = trained(kind, seed, sizes, say), MODELS[kind][1]
    prior = model.empirical_prior(*texts_of("in", 1000, 1000 + seed))  # of the training sentences
    develop = {name: texts_of(name, sizes.develop, 2000 + seed) for name in ("in", *shifts)}
    test = {name: texts_of(name, sizes.test, 3000 + seed) for name in ("in", *shifts)}
    base = {name: figures(model, prior, untreated(), *test[name]) for name in test}

    def keep(shift: str, searched_on: str, name: str, found: Search, passes: int = 0) -> None:
        out = figures(model, prior, found, *test[shift], passes=passes)
        inside = figures(model, prior, found, *test["in"], passes=passes)
        texts, targets = test[shift]
        text = {} if targets is None else written(model, prior, found, texts, targets)
        row = as_row(name, out, base[shift], in_domain_nats=inside.summary()["nats"], **text)
        about = {"shift": shift, "searched_on": searched_on, "seed": seed, "knobs": found.knobs}
        rows.append({**about, **row})
        write_whole(path, json.dumps(rows, indent=1) + "\n")
        figure = f"{row['nats']:.3f} nats, {row['accuracy']:.3f} right"
        say(f"seed {seed}, {shift}, {searched_on}, {name}: {figure}")

    for shift in shifts:
        if (shift, "-", "identity") not in done:
            keep(shift, "-", "identity", untreated())
        if (shift, "-", "dropout, 8 passes") not in done:
            keep(shift, "-", "dropout, 8 passes", untreated(), passes=8)
    for searched_on in ("target", "source"):
        for shift in shifts if searched_on == "target" else ("in",):
            for name in treatments:
                here = [shift] if searched_on == "target" else list(shifts)
                if all((each, searched_on, name) in done for each in here):
                    continue
                found = search(
                    model,
                    prior,
                    *develop[shift],
                    trials=sizes.trials,
                    seed=seed,
                    **TREATMENTS[name],
                )
                for each in here:
                    if (each, searched_on, name) not in done:
                        keep(each, searched_on, name, found)
    return rows


def markdown(rows: Sequence[dict[str, Any]], shift: str) -> str:
    """The table of one shift: means over seeds, +- their standard deviation where there are more.

    Columns: nats a token less those of the model as it is, searched on the target's texts and on
    the source's; exact sentences and BLEU, or right tokens where nothing is written; calibration
    error, and nats a token in the source's domain, for the former.
    """
    names = list(dict.fromkeys(row["name"] for row in rows if row["shift"] == shift))
    good = {"exact, %": ("exact", 100, 1), "BLEU": ("bleu", 1, 1)}
    if not any("bleu" in row for row in rows):
        good = {"right, %": ("accuracy", 100, 1)}
    more = {**good, "ECE": ("calibration", 1, 3), "in domain": ("in_domain_nats", 1, 3)}
    header = ["", "seeds", "nats a token", "searched on the source", *more]
    lines = ["| " + " | ".join(header)[1:] + " |", "|---|" + "--:|" * (len(header) - 1)]
    for name in names:
        here = [row for row in rows if row["shift"] == shift and row["name"] == name]
        target = [row for row in here if row["searched_on"] != "source"]
        source = [row for row in here if row["searched_on"] == "source"]
        first = "nats" if name == "identity" else "difference"
        cells = [
            str(len(target)),
            over_seeds(target, first, 1, 3),
            over_seeds(source, "difference", 1, 3),
            *(over_seeds(target, *column) for column in more.values()),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def over_seeds(rows: Sequence[dict[str, Any]], name: str, factor: float, digits: int) -> str:
    """Mean of a column +- its standard deviation over several rows; "" where no row has it."""
    values = [factor * row[name] for row in rows if name in row]
    if not values:
        return ""
    mean = sum(values) / len(values)
    text = f"{mean:{'+' if name == 'difference' else ''}.{digits}f}"
    if len(values) > 1:
        spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
        text += f" ± {spread:.{digits}f}"
    return text.replace("-", "−")
