"""What a linear map can read off the states of each layer: words, number, tense, and the like.

The labels come from the grammar's own parse, so they cost nothing and are right. Sentence labels
are read from the mean of a layer's states over the valid characters, words from the state of one
character. A probe is softmax regression.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.data.grammar import Grammar, default_grammar
from nvib_jax.models.denoising import masked_mean
from nvib_jax.text_model import TextModel

RIDGE = 1e-3  # weight of the squared weights, per example
ITERATIONS = 100  # of L-BFGS


def probe_table(model: TextModel, *, count: int = 3000, seed: int = 987654) -> list[dict[str, Any]]:
    """Accuracies of linear probes on half of some sentences, fitted on the other half.

    Args:
      model: a denoising autoencoder whose tokens are the characters of the grammar's sentences.
      count: sentences that are drawn; those too long for the model are left out.
      seed: names the corpus that they are drawn from, and chooses the character of each whose word
        is asked for.

    Returns:
      A row for each label: "label", "classes", "majority" (the accuracy of the commonest class) and
      "layers", the accuracy by layer, the embedding first.
    """
    drawn = default_grammar().sentences(seed, count)
    texts = [text for text in drawn if len(text) <= model.max_length]
    rng = np.random.default_rng(seed)
    places = [int(rng.choice([i for i, c in enumerate(t) if c != " "])) for t in texts]
    means, states = _read(model, texts, places)
    known = [sentence_labels(text) for text in texts]
    ends = [t.find(" ", i) for t, i in zip(texts, places, strict=True)]
    words = [t[: end if end >= 0 else None] for t, end in zip(texts, ends, strict=True)]
    labels = {name: [each[name] for each in known] for name in known[0]}
    rows = [_row(name, np.array(values), means) for name, values in labels.items()]
    return [*rows, _row("word", np.array([word.split(" ")[-1] for word in words]), states)]


def _row(label: str, values: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    """A row of the table: values (n,), states (n, L, D)."""
    half = len(values) // 2
    names, index = np.unique(values, return_inverse=True)
    common = np.bincount(index[:half], minlength=len(names)).argmax()
    accuracies = []
    for layer in range(x.shape[1]):
        guess = linear_probe(x[:half, layer], index[:half], x[half:, layer], len(names))
        accuracies.append(float(np.mean(guess == index[half:])))
    return {
        "label": label,
        "classes": len(names),
        "majority": float(np.mean(index[half:] == common)),
        "layers": accuracies,
    }


def linear_probe(x: np.ndarray, y: np.ndarray, wanted: np.ndarray, classes: int) -> np.ndarray:
    """Classes of the rows of `wanted` by softmax regression on x (n, D), y (n,).

    Columns are standardised by x. The fit is L-BFGS from zero, so it is deterministic.
    """
    from scipy.optimize import minimize

    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6

    def design(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([(rows - mean) / scale, np.ones((len(rows), 1))], axis=1)

    inputs, target = design(x.astype(np.float64)), np.eye(classes)[y]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(inputs.shape[1], classes)
        logits = inputs @ weights
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        slope = inputs.T @ (np.exp(log_p) - target) / len(y) + 2 * RIDGE * weights
        value = -(target * log_p).sum() / len(y) + RIDGE * np.square(weights).sum()
        return value, slope.ravel()

    start = np.zeros(inputs.shape[1] * classes)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return (design(wanted.astype(np.float64)) @ best.x.reshape(-1, classes)).argmax(axis=1)


def sentence_labels(text: str, grammar: Grammar | None = None) -> dict[str, str]:
    """Labels of a sentence by its parse; of two clauses, the first one's.

    "number" and "subject" of its subject, "tense" of its verb, "relative" (whether there is a
    relative clause), "depth" of its tree (three classes), "length" in words (three classes).

    >>> labels = sentence_labels("the dog that sleeps sees a cat")
    >>> labels["number"], labels["tense"], labels["subject"], labels["relative"]
    ('singular', 'present', 'animal', 'yes')
    """
    grammar = grammar or default_grammar()
    tree = grammar.tree(text)
    rules = [node.data for node in tree.iter_subtrees_topdown()]
    clause = next(node for node in tree.iter_subtrees_topdown() if _rule(node) == "clause")
    nouns = clause.children[0] if hasattr(clause.children[0], "data") else clause
    subject = next(c for c in map(grammar.class_of, _words(nouns)) if c in _SUBJECTS)
    words = len(text.split())
    return {
        "number": "singular" if clause.data in _SINGULAR else "plural",
        "subject": _SUBJECTS[subject],
        "tense": _tense(clause),
        "relative": "yes" if any(rule.startswith("rel_") for rule in rules) else "no",
        "depth": str(np.searchsorted((7, 9), _depth(tree))),
        "length": str(np.searchsorted((7, 10), words)),
    }


# Which of the clause's expansions have a subject in the singular: 1st, 3rd and 5th.
_SINGULAR = {"clause_0", "clause_2", "clause_4"}
_SUBJECTS = {
    "PERSON": "person",
    "ANIMAL": "animal",
    "THING": "thing",
    "PRONOUN": "pronoun",
    "NAME": "name",
}


def _rule(node: Any) -> str:
    """The rule's name of a node, whose alias is the name and the number of the expansion."""
    return str(node.data).rpartition("_")[0]


def _words(tree: Any) -> list[str]:
    return [str(token) for token in tree.scan_values(lambda _: True)]


def _depth(tree: Any) -> int:
    inner = [_depth(child) for child in tree.children if hasattr(child, "data")]
    return 1 + max(inner, default=0)


def _tense(clause: Any) -> str:
    """Of the clause's verb: past, present or modal."""
    verb = (
        clause.children[-1]
        if clause.data in ("clause_0", "clause_1", "clause_2", "clause_3")
        else clause
    )
    for token in verb.scan_values(lambda _: True):
        if token.type == "MODAL":
            return "modal"
        if token.type.endswith("_D") or str(token) in ("was", "were"):
            return "past"
        if token.type.partition("_")[0] in (
            "VI",
            "VM",
            "VT",
            "VA",
            "VP",
            "VD",
            "VS",
            "VX",
            "BE",
            "DO",
        ):
            return "present"
    raise AssertionError("a clause without a verb")


def _read(
    model: TextModel, texts: Sequence[str], places: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """By layer, the mean of each text's states and the state at its place, each (n, L, D)."""
    rows, run = model.tokenize(texts), model.compiled(_states)
    means, states, order = [], [], []
    for part, tokens, mask in model.batches(rows):
        at = np.zeros(len(tokens), np.int32)
        at[: len(part)] = [places[i] for i in part]
        found = jax.device_get(run(model.params, tokens, mask, at))
        means.append(found[0][: len(part)])
        states.append(found[1][: len(part)])
        order.append(part)
    back = np.argsort(np.concatenate(order))
    return np.concatenate(means)[back], np.concatenate(states)[back]


def _states(
    model: Any, tokens: jax.Array, mask: jax.Array, at: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Means over tokens, and states at one place, of every layer: each (B, L, D)."""
    x = model.states_by_layer(tokens, mask).astype(jnp.float32)
    own = jnp.take_along_axis(x, at[None, :, None, None], axis=2)[:, :, 0]
    return jnp.moveaxis(masked_mean(x, mask), 0, 1), jnp.moveaxis(own, 0, 1)
