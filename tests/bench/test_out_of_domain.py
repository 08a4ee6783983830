"""The out-of-domain experiment at its smallest: what it measures, and that it goes on."""

import json

import pytest

from nvib_jax.bench import out_of_domain
from nvib_jax.bench.out_of_domain import MODELS, Sizes, markdown, measure

pytestmark = pytest.mark.long
SMALL = Sizes(training=128, steps=4, develop=8, test=8, trials=2)
FEW = {"shifts": ("noise",), "treatments": ("temperature",), "say": lambda line: None}


@pytest.mark.parametrize("kind", MODELS)
def test_it_measures_and_goes_on_where_it_stopped(kind, tmp_path, monkeypatch):
    rows = measure(0, SMALL, tmp_path, kind=kind, **FEW)
    named = [(row["searched_on"], row["name"]) for row in rows]
    assert named == [
        *(("-", "identity"), ("-", "dropout, 8 passes")),
        *(("target", "temperature"), ("source", "temperature")),
    ]
    assert ("bleu" in rows[0]) == (kind == "translator")
    assert rows[0]["difference"] == 0.0
    assert set(rows[2]["knobs"]) == {"temperature"}
    header, _, identity, *_ = markdown(rows, "noise").splitlines()
    assert ("BLEU" in header) == (kind == "translator")
    assert f"| identity | 1 | {rows[0]['nats']:.3f} |" in identity

    # One row is lost; it alone is searched for again, and comes out the same.
    path = tmp_path / "seed-0.json"
    path.write_text(json.dumps(rows[:2] + rows[3:]))
    searched = []
    search = out_of_domain.search
    monkeypatch.setattr(
        out_of_domain, "search", lambda *a, **k: searched.append(k) or search(*a, **k)
    )
    again = measure(0, SMALL, tmp_path, kind=kind, **FEW)
    assert len(searched) == 1
    assert again[-1] == rows[2]
