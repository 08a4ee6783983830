"""Edits of grammar sentences, counted: by hand, and with a model that edits perfectly or not."""

import json

import pytest
import tiny

from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.grammar_edits import ATTRIBUTES, attribute_of, edited
from nvib_jax.evaluation import editing
from nvib_jax.evaluation.editing import edit_scores, editing_table, examples_of, lemmas, markdown


def test_scores_by_hand():
    sources = ["the dog sees a cat"] * 5
    outputs = [
        "the dog saw a cat",  # right
        "the dog saw a cow",  # another word
        "the dog sees a cat",  # not edited
        "the dogs saw a cat",  # the number too: only to the word is it no success
        "the dog saw cat",  # no sentence
    ]
    found = edit_scores(sources, outputs, "tense")
    assert found == {"language": 0.8, "attribute": 0.6, "rest": 0.8, "success": 0.2}
    with pytest.raises(ValueError, match="1 outputs for 5 sources"):
        edit_scores(sources, outputs[:1], "tense")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_edited_sentence_itself_scores_one(name):
    texts = [t for t in default_grammar().sentences(5, 200) if edited(t, name)]
    found = edit_scores(texts, [edited(t, name) for t in texts], name)
    assert set(found.values()) == {1.0}
    same = edit_scores(texts, texts, name)
    assert same == {"language": 1.0, "attribute": 0.0, "rest": 1.0, "success": 0.0}


def test_lemmas_tell_words_apart():
    words = sorted(default_grammar().words)
    forms = {}
    for word in words:
        forms.setdefault(tuple(lemmas(word)), []).append(word)
    assert forms[("sees",)] == ["saw", "see", "sees"]
    assert forms[("child",)] == ["child", "children"]
    assert {len(v) for k, v in forms.items() if k} <= {1, 2, 3, 4}


def test_examples_have_the_value_and_differ():
    found = examples_of("number", [3], 20)
    for value, texts in found.items():
        assert len(set(texts)) == len(texts) == 20
        assert {attribute_of(text, "number") for text in texts} == {value}
    only = examples_of("number", [3], 20, only="plural")
    assert all(edited(text, "number") for text in only)


class Perfect:
    """Edits as the grammar does at strength 4, and copies at any other."""

    def __init__(self):
        self.asked = []

    def edit(self, texts, *, towards, away, strength, bandwidth, clean):
        self.asked.append((tuple(texts), strength, bandwidth))
        (name,) = [
            n
            for n, values in ATTRIBUTES.items()
            if {attribute_of(towards[0], n), attribute_of(away[0], n)} == set(values)
            and len({attribute_of(t, n) for t in towards}) == 1
            and len({attribute_of(t, n) for t in away}) == 1
        ]
        right = strength == 4.0 and bandwidth is None
        return [edited(t, name) if right else t for t in texts]

    def reconstruct(self, texts, *, clean):
        return list(texts)


def test_the_strength_is_chosen_on_other_sentences():
    model = Perfect()
    rows = editing_table(model, count=4, examples=12, seed=1)
    assert [(r["edit"], r["from"], r["to"]) for r in rows[:2]] == [
        ("tense", "present", "past"),
        ("tense", "past", "present"),
    ]
    assert len(rows) == 6
    for row in rows:
        assert (row["strength"], row["bandwidth"]) == (4.0, None)
        assert row["success"] == row["attribute"] == row["reconstructed"] == 1.0
    each = len(model.asked) // 6  # the last of the calls for an edit is the one that is measured
    for start in range(0, len(model.asked), each):
        *tried, (measured, strength, _) = model.asked[start : start + each]
        assert strength == 4.0
        (chosen,) = {texts for texts, _, _ in tried}
        assert not set(chosen) & set(measured)


def test_a_table_of_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(editing, "TextModel", type("", (), {"load": lambda run: Perfect()}))
    out = tmp_path / "edits.json"
    how = ["--count", "3", "--examples", "12", "--seeds", "2", "--out", str(out)]
    editing.main(["runs/a", "runs/b", *how])
    printed = capsys.readouterr().out
    assert "| edit | a | b |" in printed
    assert "| tense: present to past | 100 / 100 / 100 / 100 / 100 | 100 /" in printed
    tables = json.loads(out.read_text())
    assert [len(table) for table in tables.values()] == [12, 12]
    assert markdown(tables) in printed


def test_a_trained_model_is_measured(monkeypatch):
    from nvib_jax.text_model import TextModel

    monkeypatch.setattr(editing, "STRENGTHS", (1.0,))
    monkeypatch.setattr(editing, "BANDWIDTHS", (None,))
    model = TextModel.load(tiny.trained()[0].train.run_dir)
    rows = editing_table(model, count=2, examples=4)
    assert all(0 <= row[s] <= 1 for row in rows for s in ("success", "language", "rest"))
