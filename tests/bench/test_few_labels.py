"""The experiment with few labels at its smallest: what it asks for, measures and goes on from."""

import json

import pytest

from nvib_jax.bench import few_labels
from nvib_jax.bench.few_labels import GENDERS, TREATMENTS, gender, labelled, markdown, measure
from nvib_jax.bench.out_of_domain import Sizes
from nvib_jax.data.translation import translate


def test_the_label_is_the_first_nouns_gender_whatever_is_dropped(monkeypatch):
    assert gender(translate("the old dog sees a cat")) == translate("the dog").split()[1]
    assert gender("pronoun0 vi0") is None
    texts, labels = labelled("noise", 40, 5)
    assert len(texts) == len(labels) == 40
    assert set(labels) == set(GENDERS)
    monkeypatch.setattr(few_labels, "sentence_pairs", lambda *a, **k: (["x"], ["v0"]))
    with pytest.raises(ValueError, match="of 1 sentences 0 have a gender; wanted 1"):
        labelled("in", 1, 0)


@pytest.mark.long
def test_it_measures_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    chosen = {name: TREATMENTS[name] for name in ("plain", "head and bottlenecks of rank 8")}
    monkeypatch.setattr(few_labels, "TREATMENTS", chosen)
    monkeypatch.setattr(few_labels, "SHIFTS", ("noise",))
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    monkeypatch.setattr(few_labels, "BODY", {**few_labels.BODY, **small})
    how = {"sizes": Sizes(training=64, steps=2, test=16), "counts": (32,), "steps": 2}
    rows = measure(0, tmp_path, **how, say=lambda line: None)
    assert [row["name"] for row in rows] == list(chosen)
    assert set(rows[0]["figures"]) == {"in", "noise"}
    share = rows[0]["figures"]["noise"]["accuracy"]
    assert share * 16 == round(share * 16)
    table = markdown(rows, 32).splitlines()
    assert f"| plain | 1 | {100 * rows[0]['figures']['in']['accuracy']:.1f} |" in table[2]
    assert len(table) == 2 + len(chosen)

    path = tmp_path / "seed-0.json"  # one row is lost; it alone is made again, and is the same
    path.write_text(json.dumps(rows[:1]))
    monkeypatch.setattr(few_labels, "train", lambda *a, **k: pytest.fail("it was there"))
    assert measure(0, tmp_path, **how, say=lambda line: None) == rows
