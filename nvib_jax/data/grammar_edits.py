"""The same sentence of the grammar in another tense, number or polarity: what an edit should write.

A derivation is expanded again with another symbol at its top: "the dog sees a cat" derives from a
singular clause, and the same expansions of a plural one give "the dogs see a cat". So the result is
in the language, and nothing changes but what depends on the attribute. Only sentences with one
clause are edited, because with two it is open which one is meant.
"""

from collections.abc import Callable, Iterator
from typing import Any

from nvib_jax.data.grammar import Grammar, default_grammar, with_articles

# The two values of each attribute.
ATTRIBUTES = {
    "tense": ("present", "past"),
    "number": ("singular", "plural"),
    "polarity": ("affirmative", "negated"),
}
# The numbers of expansions of `verb_phrase_{n}` and `thing_verb_{n}`, in the present and the past.
_TENSES = {"verb_phrase": {0: 1, 1: 0, 2: 3, 3: 2}, "thing_verb": {0: 1, 1: 0}}
_OTHER_BE = {"is": "was", "was": "is", "are": "were", "were": "are"}
_BARE, _NEGATED = 0, 5  # expansions of `verb_phrase_{n}`: an action; do, not and an action
# Words whose singular and plural are in classes that are no forms of each other.
_OTHER_DETERMINER = {"a": "some", "some": "a", "this": "these", "these": "this"}


def attribute_of(sentence: str, name: str, grammar: Grammar | None = None) -> str | None:
    """The value of an attribute of a sentence, or None if the sentence has none.

    Args:
      sentence: in the language.
      name: of `ATTRIBUTES`. It is that of the only clause; a sentence of several has none. There is
        no tense after "can" or "does not". Polarity is that of a person's or an animal's action in
        the present, because the grammar negates nothing else.
      grammar: None is the default one.

    Raises:
      ValueError: an unknown attribute, or a sentence that is not in the language.

    >>> attribute_of("the dog sees a cat", "tense"), attribute_of("the dog sees a cat", "number")
    ('present', 'singular')
    """
    return _value(_only_clause(_tree(sentence, name, grammar)), name)


def edited(sentence: str, name: str, grammar: Grammar | None = None) -> str | None:
    """The sentence with the other value of an attribute, and otherwise the same.

    Args:
      sentence: in the language.
      name: of `ATTRIBUTES`.
      grammar: None is the default one.

    Returns:
      None where there is no such sentence, or more than one: `attribute_of` is None, the subject is
      a name, a pronoun or two nouns, or it has a word that belongs to one number, like "each" or
      "many".

    Raises:
      ValueError: an unknown attribute, or a sentence that is not in the language.

    >>> edited("the dog that sleeps sees a cat", "number")
    'the dogs that sleep see a cat'
    >>> edited("the dog sees a cat", "tense"), edited("he runs into a house", "number")
    ('the dog saw a cat', None)
    >>> edited("an owl does not see a cat", "polarity")
    'an owl sees a cat'
    """
    grammar = grammar or default_grammar()
    tree = _tree(sentence, name, grammar)
    clause = _only_clause(tree)
    if _value(clause, name) is None:
        return None
    changed = _CHANGES[name](grammar, clause)
    if changed is None:
        return None
    written = " ".join(with_articles(list(_words(tree, clause, changed))))
    return written if grammar.contains(written) else None


def _tree(sentence: str, name: str, grammar: Grammar | None) -> Any:
    if name not in ATTRIBUTES:
        raise ValueError(f"attribute is {name!r}; wanted one of {', '.join(map(repr, ATTRIBUTES))}")
    return (grammar or default_grammar()).tree(sentence)


def _split(node: Any) -> tuple[str, int]:
    """A node's rule and the number of its expansion."""
    rule, _, place = str(node.data).rpartition("_")
    return rule, int(place)


def _only_clause(tree: Any) -> Any:
    """The node of the clause; None if there are several."""
    found = [node for node in tree.iter_subtrees_topdown() if _split(node)[0] == "clause"]
    return found[0] if len(found) == 1 else None


def _words(tree: Any, at: Any = None, instead: list[str] | None = None) -> Iterator[str]:
    """The words of a tree, with others in place of those of the node `at`."""
    if tree is at and instead is not None:
        yield from instead
    elif hasattr(tree, "data"):
        for child in tree.children:
            yield from _words(child, at, instead)
    else:
        yield str(tree)


def _verb(clause: Any) -> Any:
    """The node of the verb phrase; of "there is", the verb itself."""
    return clause.children[1]


def _value(clause: Any, name: str) -> str | None:
    if clause is None:
        return None
    if name == "number":
        return ATTRIBUTES[name][_split(clause)[1] % 2]
    verb = _verb(clause)
    phrase = hasattr(verb, "data")
    rule, place = _split(verb) if phrase else ("", 0)
    kind = rule.rpartition("_")[0]
    if name == "polarity":
        known = kind == "verb_phrase" and place in (_BARE, _NEGATED)
        return ATTRIBUTES[name][place == _NEGATED] if known else None
    be = str(verb.children[0] if phrase else verb)
    if be in _OTHER_BE:
        return ATTRIBUTES[name][be in ("was", "were")]
    return ATTRIBUTES[name][place % 2] if place in _TENSES[kind] else None


def _other_tense(grammar: Grammar, clause: Any) -> list[str] | None:
    verb = _verb(clause)
    be = verb.children[0] if hasattr(verb, "data") else verb
    if str(be) in _OTHER_BE:
        return list(_words(clause, be, [_OTHER_BE[str(be)]]))
    rule, place = _split(verb)
    past = _TENSES[rule.rpartition("_")[0]][place]
    changed = _expanded(grammar, verb, rule, past)
    return changed and list(_words(clause, verb, changed))


def _other_number(grammar: Grammar, clause: Any) -> list[str] | None:
    rule, place = _split(clause)
    return _expanded(grammar, clause, rule, place + (-1 if place % 2 else 1))


def _other_polarity(grammar: Grammar, clause: Any) -> list[str] | None:
    verb = _verb(clause)
    rule, place = _split(verb)
    changed = _derived(grammar, verb.children[-1], "action_p" if place == _BARE else _action(rule))
    if changed is None:
        return None
    if place == _BARE:
        changed = [*("do" if rule.endswith("p") else "does", "not"), *changed]
    return list(_words(clause, verb, changed))


def _action(rule: str) -> str:
    return f"action_{rule[-1]}"


_CHANGES: dict[str, Callable[[Grammar, Any], list[str] | None]] = {
    "tense": _other_tense,
    "number": _other_number,
    "polarity": _other_polarity,
}


def _expanded(grammar: Grammar, node: Any, rule: str, place: int) -> list[str] | None:
    """The words of a node if it were expansion `place` of `rule`; None if they do not fit."""
    before, number = _split(node)
    old, (_, new) = grammar.rules[before][number][1], grammar.rules[rule][place]
    if len(old) != len(new):
        return None
    words: list[str] = []
    for child, was, symbol in zip(node.children, old, new, strict=True):
        part = list(_words(child)) if was == symbol else _derived(grammar, child, symbol)
        if part is None:
            return None
        words += part
    return words


def _derived(grammar: Grammar, node: Any, symbol: str) -> list[str] | None:
    """The words of a node if it were derived from another symbol by the same expansions."""
    if hasattr(node, "data"):
        rule, place = _split(node)
        if rule == symbol:
            return list(_words(node))
        fits = symbol in grammar.rules and place < len(grammar.rules[symbol])
        return _expanded(grammar, node, symbol, place) if fits else None
    word = str(node)
    if word in _OTHER_DETERMINER:
        return [_OTHER_DETERMINER[word]]
    own = node.type.lower().rpartition("_")[0]
    if own in ("", "pronoun") or own != symbol.lower().rpartition("_")[0]:
        return None
    forms = next(c for c in grammar.classes if c.upper() == node.type)
    index = list(grammar.classes[forms]).index(word)
    return [list(grammar.classes[symbol])[index]]
