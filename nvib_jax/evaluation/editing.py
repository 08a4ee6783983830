"""How often attribute arithmetic edits a sentence of the grammar, which tells exactly.

A sentence of the grammar in another tense, number or polarity is known
(`nvib_jax.data.grammar_edits`), and so is whether any text is a sentence at all. The two sets of
examples are sentences with and without what is wanted, not pairs; strength and bandwidth are chosen
on other sentences than those that are counted.

    python -m nvib_jax.evaluation.editing RUN [RUN ...] [--out FILE.json]

prints a table of runs of the grammar, an NVAE beside a pooled baseline (kind VTP), say.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.grammar_edits import ATTRIBUTES, attribute_of, edited
from nvib_jax.files import write_whole
from nvib_jax.progress import track
from nvib_jax.text_model import TextModel

STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
BANDWIDTHS = (None, 1.5, 1.0)  # near 1, the examples next to a vector alone move it


def edit_scores(sources: Sequence[str], outputs: Sequence[str], name: str) -> dict[str, float]:
    """Shares of edits that went well.

    Args:
      sources: sentences of the grammar that `nvib_jax.data.grammar_edits.edited` can edit.
      outputs: what was written for each.
      name: the attribute that should have changed, of `ATTRIBUTES`.

    Returns:
      "language": outputs that are sentences of the grammar.
      "attribute": those that are, and whose attribute is the other value.
      "rest": outputs that keep the rest: they have the source's words but for the forms of words
      and for "a", "some", "do" and "not", in order.
      "success": outputs that are the edited sentence, to the word; all three follow.

    >>> edit_scores(["the dog sees a cat"] * 2, ["the dog saw a cat", "the dog saw"], "tense")
    {'language': 0.5, 'attribute': 0.5, 'rest': 0.5, 'success': 0.5}
    """
    if len(sources) != len(outputs) or not sources:
        raise ValueError(f"{len(outputs)} outputs for {len(sources)} sources; wanted as many")
    grammar = default_grammar()
    language = [grammar.contains(text) for text in outputs]
    wanted = [edited(text, name) for text in sources]
    changed = [
        there and attribute_of(new, name) not in (None, attribute_of(old, name))
        for there, old, new in zip(language, sources, outputs, strict=True)
    ]
    rest = [lemmas(old) == lemmas(new) for old, new in zip(sources, outputs, strict=True)]
    success = [want == new for want, new in zip(wanted, outputs, strict=True)]
    rows = {"language": language, "attribute": changed, "rest": rest, "success": success}
    return {score: float(np.mean(row)) for score, row in rows.items()}


_FREE = {"a", "an", "some", "do", "does", "not"}
_SAME = {"are": "is", "was": "is", "were": "is", "these": "this"}


def lemmas(text: str) -> list[str]:
    """The words of a text without their forms, and without words that an edit brings or takes.

    >>> lemmas("the dogs do not see an owl"), lemmas("the dog saw owls")
    (['the', 'dog', 'sees', 'owl'], ['the', 'dog', 'sees', 'owl'])
    """
    known = _first_forms()
    return [known.get(word, word) for word in text.split() if word not in _FREE]


def _first_forms() -> dict[str, str]:
    """Word -> the singular, or the third person of the present; of words that have forms."""
    classes = default_grammar().classes
    found = dict(_SAME)
    for name in classes:
        base, _, form = name.rpartition("_")
        first = classes.get(f"{base}_s", {})
        if form in ("p", "d") and base not in ("BE", "PRONOUN", "DO"):
            found |= dict(zip(classes[name], first, strict=True))
    return found


def editing_table(
    model: TextModel, *, count: int = 100, examples: int = 200, seed: int = 0
) -> list[dict[str, Any]]:
    """Success of every edit of `ATTRIBUTES`, in both directions.

    Args:
      model: a model of the grammar's sentences.
      count: sentences that are counted for each edit, and as many to choose strength and bandwidth
        by; fewer where the grammar is asked for something rare.
      examples: sentences in each of the two sets.
      seed: names the sentences and the examples.

    Returns:
      Rows with "edit" (the attribute), "from", "to", "sentences", "strength" and "bandwidth" as
      chosen (the most successes, then the most attributes changed), the scores of `edit_scores`,
      and "reconstructed", the share of the sentences that come back exactly without an edit, above
      which no success can be expected.
    """
    rows = []
    cases = [(n, *way) for n, both in ATTRIBUTES.items() for way in (both, both[::-1])]
    for name, old, new in track(cases, "edits", total=len(cases), unit="edits"):
        known = examples_of(name, [seed, 1], examples)
        given = examples_of(name, [seed, 2], 2 * count, only=old)
        half = len(given) // 2
        sets = {"towards": known[new], "away": known[old]}
        choose, test = given[:half], given[half:]
        best: tuple[tuple[float, float], float, float | None] | None = None
        for bandwidth in BANDWIDTHS:
            for strength in STRENGTHS if bandwidth is None else (1.0, 2.0):
                how: dict[str, Any] = {"strength": strength, "bandwidth": bandwidth}
                found = edit_scores(choose, model.edit(choose, **sets, **how, clean=False), name)
                value = (found["success"], found["attribute"])
                if best is None or value > best[0]:
                    best = value, strength, bandwidth
        assert best is not None
        how = {"strength": best[1], "bandwidth": best[2]}
        same = model.reconstruct(test, clean=False)
        rows.append(
            {
                **{"edit": name, "from": old, "to": new, "sentences": len(test)},
                **how,
                **edit_scores(test, model.edit(test, **sets, **how, clean=False), name),
                "reconstructed": float(np.mean([a == b for a, b in zip(test, same, strict=True)])),
            }
        )
    return rows


def examples_of(name: str, seed: Sequence[int], count: int, *, only: str | None = None) -> Any:
    """Sentences drawn from the grammar, by the value that they have of an attribute.

    Args:
      name: of `ATTRIBUTES`.
      seed: of the corpus that they are drawn from.
      count: how many of each value, at most: the search ends after 40 sentences for each one.
      only: sentences with this value that can be edited, as a list; None is a dict of both values.
    """
    found: dict[str, list[str]] = {value: [] for value in ATTRIBUTES[name]}
    for text in dict.fromkeys(default_grammar().sentences(seed, 40 * count)):
        value = attribute_of(text, name)
        if value is None or len(found[value]) == count:
            continue
        if only is None or (value == only and edited(text, name)):
            found[value].append(text)
    return found if only is None else found[only]


def markdown(tables: dict[str, list[dict[str, Any]]]) -> str:
    """A table: a row for each edit, columns for each model. Means if a model has several tables."""
    lines = ["| edit | " + " | ".join(tables) + " |", "|---" * (len(tables) + 1) + "|"]
    edits = dict.fromkeys((r["edit"], r["from"], r["to"]) for t in tables.values() for r in t)
    for edit in edits:
        cells = []
        for table in tables.values():
            own = [r for r in table if (r["edit"], r["from"], r["to"]) == edit]
            figures = (
                100 * float(np.mean([r[score] for r in own]))
                for score in ("success", "attribute", "language", "rest", "reconstructed")
            )
            cells.append(" / ".join(f"{figure:.0f}" for figure in figures))
        lines.append(f"| {edit[0]}: {edit[1]} to {edit[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of several runs: a name for each, and the means over the seeds."""
    parser = argparse.ArgumentParser(prog="python -m nvib_jax.evaluation.editing")
    parser.add_argument("run", nargs="+", help="folder of a run of the grammar")
    parser.add_argument("--count", type=int, default=100, help="sentences for each edit")
    parser.add_argument("--examples", type=int, default=200, help="sentences in each set")
    parser.add_argument("--seeds", type=int, default=3, help="sets of examples")
    parser.add_argument("--out", type=Path, help="JSON with all rows")
    given = parser.parse_args(arguments)
    tables: dict[str, list[dict[str, Any]]] = {Path(run).name: [] for run in given.run}
    for run, rows in zip(given.run, tables.values(), strict=True):
        model = TextModel.load(run)
        for seed in range(given.seeds):
            how = {"count": given.count, "examples": given.examples, "seed": seed}
            rows += [{"seed": seed, **row} for row in editing_table(model, **how)]
            if given.out:  # after every seed, because a run takes minutes
                write_whole(given.out, json.dumps(tables, indent=1))
    print("success / attribute / language / rest / reconstructed, %\n")
    print(markdown(tables))


if __name__ == "__main__":
    main()
