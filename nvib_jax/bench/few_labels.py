"""Does a bottleneck in every attention help a classifier that is given few labels?

The body is a model of BART's architecture that was trained here to translate sentences of the
embedded grammar (`nvib_jax.data.translation`). It is asked for the gender that the sentence's first
noun has in that language: its translations show that it knows, but a head on it has to be taught.
Every treatment has the same body, texts, batches and steps. Figures are of other sentences, of the
training sentences' kind and of its shifts.
"""

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nvib_jax.bench.out_of_domain import SHIFTS, TRANSLATOR, Sizes, over_seeds, word_tokenizer
from nvib_jax.data.translation import sentence_pairs, vocabulary
from nvib_jax.files import write_whole
from nvib_jax.pretrained.evaluate import figures, untreated
from nvib_jax.pretrained.finetune import FinetuneConfig, finetune
from nvib_jax.pretrained.model import PretrainedModel
from nvib_jax.pretrained.opening import fresh, load
from nvib_jax.pretrained.train import TrainingConfig, train

GENDERS = ("g0", "g1", "g2")
BODY = {
    **TRANSLATOR,
    "model_type": "bart",
    "activation_function": "gelu",
    "bos_token_id": 0,
    "d_model": 64,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
}
# Name -> fields of the fine-tuning; None is training without bottlenecks.
TREATMENTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "bottlenecks": {"train": "all"},
    "bottlenecks of rank 8": {"train": "all", "rank": 8},
    "bottlenecks without KLs": {"train": "all", "lambda_gaussian": 0.0, "lambda_dirichlet": 0.0},
    "head and bottlenecks": {"train": "nvib"},
    "head and bottlenecks of rank 8": {"train": "nvib", "rank": 8},
}


def gender(translation: str) -> str | None:
    """That of the first noun with a determiner or adjective; None where no noun has one.

    >>> gender("the0 g2 animal0 vt0 past article0 g1 place1")
    'g2'
    """
    found = re.search(r"\bg[012]\b", translation)
    return found and found[0]


def labelled(shift: str, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Sentences of a shift, and the label of each."""
    texts, targets = sentence_pairs(shift, 2 * count, seed=seed)
    pairs = [(t, label) for t, x in zip(texts, targets, strict=True) if (label := gender(x))]
    kept = pairs[:count]
    if len(kept) < count:
        raise ValueError(f"of {len(texts)} sentences {len(kept)} have a gender; wanted {count}")
    return [text for text, _ in kept], [label for _, label in kept]


def body(seed: int, sizes: Sizes, folder: Path, say: Callable[[str], None]) -> Path:
    """The translator, trained and kept in Hugging Face's format in `folder`; made once."""
    place = folder / f"body-{seed}"
    if not (place / "config.json").is_file():
        with tempfile.TemporaryDirectory() as made:
            word_tokenizer(Path(made))
            model = fresh({**BODY, "vocab_size": len(vocabulary()) + 3}, made, seed=seed)
            texts, targets = sentence_pairs("in", sizes.training, seed=1000 + seed)
            config = TrainingConfig(steps=sizes.steps, seed=seed)
            train(model, texts, targets, config, say=say).to_hugging_face(place)
    return place


def measure(
    seed: int,
    folder: Path,
    *,
    sizes: Sizes | None = None,
    counts: Sequence[int] = (64, 512),
    steps: int = 200,
    learning_rate: float = 3e-4,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """All rows of one seed: every number of labels, treatment and shift.

    The rows are kept in `folder` as they are made, and those that are there are not made again.

    Args:
      seed: of the body, of the head, of the labelled texts and of their order.
      folder: of rows and bodies.
      sizes: of the body's training, and how many sentences each shift is measured on.
      counts: numbers of labelled sentences.
      steps, learning_rate: of every fine-tuning.
      say: called with a line of text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes, path = sizes or Sizes(), folder / f"seed-{seed}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    done = {(row["labels"], row["name"]) for row in rows}
    model = load(body(seed, sizes, folder, say), labels=GENDERS, seed=seed)
    test = {shift: labelled(shift, sizes.test, 3000 + seed) for shift in ("in", *SHIFTS)}
    how: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "batch_size": 32}
    for count in counts:
        texts, labels = labelled("in", count, 4000 + seed)
        prior = model.empirical_prior(texts)
        for name, fields in TREATMENTS.items():
            if (count, name) in done:
                continue
            if fields is None:
                tuned: PretrainedModel = train(
                    model, texts, labels, TrainingConfig(**how, seed=seed)
                )
            else:
                config = FinetuneConfig(**how, **fields, seed=seed)
                tuned = finetune(model, prior, texts, labels, config)
            found = {
                shift: figures(tuned, prior, untreated(), *rows_of).summary()
                for shift, rows_of in test.items()
            }
            rows.append({"seed": seed, "labels": count, "name": name, "figures": found})
            write_whole(path, json.dumps(rows, indent=1) + "\n")
            said = ", ".join(f"{s} {f['accuracy']:.3f} {f['nats']:.3f}" for s, f in found.items())
            say(f"seed {seed}, {count} labels, {name}: {said}")
    return rows


def markdown(rows: Sequence[dict[str, Any]], labels: int) -> str:
    """The table of one number of labels: accuracy in per cent and nats, means over seeds."""
    here = [row for row in rows if row["labels"] == labels]
    shifts = ("in", *SHIFTS)
    header = ["", "seeds", *(f"{s}, %" for s in shifts), *(f"{s}, nats" for s in shifts)]
    lines = ["| " + " | ".join(header)[1:] + " |", "|---|" + "--:|" * (len(header) - 1)]
    for name in dict.fromkeys(row["name"] for row in here):
        found = [row["figures"] for row in here if row["name"] == name]
        cells = [
            over_seeds([figures[shift] for figures in found], *column)
            for column in (("accuracy", 100, 1), ("nats", 1, 2))
            for shift in shifts
        ]
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
