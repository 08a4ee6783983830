"""Python on the pages runs as printed, tables are what was measured, the two commands are there."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "\n".join(
    page.read_text(encoding="utf-8")
    for pattern in ("*.md", "configs/*.md", "nvib_jax/*.md", "nvib_jax/*/*.md")
    for page in sorted(ROOT.glob(pattern))
)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGES, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block_runs(block):
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    if "out" in names:
        assert names["out"].shape == (2, 5, 4, 16)
        assert names["kl"].shape == (2,)


def test_blocks_were_found():
    assert len(BLOCKS) == 2
    assert len(BLOCKS[0].strip().splitlines()) <= 12  # the README's


def test_the_two_commands_are_there():
    commands = re.findall(r"^pip install .*$", README, flags=re.MULTILINE)
    assert commands == [
        'pip install -e ".[train]" && nvib train configs/quickstart.py',
        'pip install -e ".[dev]" && pytest',
    ]


TABLES = re.findall(
    r"<!-- nvib bench table (\S+) -->\n(.*?)\n?<!-- end -->", PAGES, flags=re.DOTALL
)


@pytest.mark.parametrize(("path", "printed"), TABLES, ids=[path for path, _ in TABLES])
def test_tables_are_what_was_measured(path, printed):
    from nvib_jax.bench.tables import markdown

    report = json.loads((ROOT / path).read_text(encoding="utf-8"))
    assert printed.strip() == markdown(report).strip()


def test_tables_were_found():
    assert len(TABLES) == 8
    assert len(SLICES) == 1
    assert len(COMMANDS) == 2


COMMANDS = re.findall(r"<!-- commands (\S+) -->\n(.*?)\n?<!-- end -->", PAGES, flags=re.DOTALL)


@pytest.mark.parametrize(("path", "printed"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_commands_take_what_was_measured(path, printed):
    from nvib_jax.bench.commands import markdown

    report = json.loads((ROOT / path).read_text(encoding="utf-8"))
    assert printed.strip() == markdown(report)
    if "commands" in report:
        assert {row["command"] for row in report["commands"]} >= {"nvib train", "nvib evaluate"}
    else:
        assert [round(row["bytes"] / 1e6) for row in report["prepare"]] == [3, 30, 300]


SLICES = re.findall(r"<!-- slices (\S+) -->\n(.*?)\n?<!-- end -->", PAGES, flags=re.DOTALL)


@pytest.mark.parametrize(("path", "printed"), SLICES, ids=[path for path, _ in SLICES])
def test_slices_are_what_was_compiled(path, printed):
    from nvib_jax.bench.slices import markdown

    records = json.loads((ROOT / path).read_text(encoding="utf-8"))
    assert printed.strip() == markdown(records)


SWEEPS = re.findall(
    r"<!-- nvib sweep table (\S+) (\S+) -->\n(.*?)\n?<!-- end -->", PAGES, flags=re.DOTALL
)


@pytest.mark.parametrize(("path", "columns", "printed"), SWEEPS, ids=[s[0] for s in SWEEPS])
def test_scores_are_what_was_measured(path, columns, printed):
    from nvib_jax.evaluation.table import load_scores, score_table

    runs = load_scores(ROOT / path)
    assert printed.strip() == score_table(runs, columns.split(","), markdown=True)


def test_scores_were_found():
    assert len(SWEEPS) == 4


OUT_OF_DOMAIN = re.findall(
    r"<!-- (\S+\.json) (\w+) -->\n(.*?)\n?<!-- end of shift -->", PAGES, flags=re.DOTALL
)


@pytest.mark.parametrize(("path", "shift", "printed"), OUT_OF_DOMAIN)
def test_figures_out_of_domain_are_what_was_measured(path, shift, printed):
    from nvib_jax.bench.out_of_domain import markdown

    rows = json.loads((ROOT / path).read_text())
    assert printed.strip() == markdown(rows, shift)


def test_shifts_were_found():
    assert [shift for _, shift, _ in OUT_OF_DOMAIN] == 2 * ["noise", "typos", "long"]


PRIORS = re.findall(r"<!-- priors (\S+) -->\n(.*?)\n<!-- end -->", PAGES, flags=re.DOTALL)


@pytest.mark.parametrize(("path", "printed"), PRIORS, ids=[path for path, _ in PRIORS])
def test_figures_of_priors_are_what_was_measured(path, printed):
    from nvib_jax.bench.priors import markdown

    assert printed == markdown(json.loads((ROOT / path).read_text()))


def test_figures_of_priors_were_found():
    assert len(PRIORS) == 2


LABELS = re.findall(
    r"<!-- (\S+\.json) (\d+) -->\n(.*?)\n<!-- end of labels -->", PAGES, flags=re.DOTALL
)


@pytest.mark.parametrize(("path", "labels", "printed"), LABELS)
def test_figures_of_few_labels_are_what_was_measured(path, labels, printed):
    from nvib_jax.bench.few_labels import markdown

    assert printed == markdown(json.loads((ROOT / path).read_text()), int(labels))


def test_numbers_of_labels_were_found():
    assert [labels for _, labels, _ in LABELS] == ["64", "512"]


def test_the_first_screen_says_what_it_is():
    """What it is, two commands, functions, the table: within the first hundred lines."""
    lines = README.splitlines()
    place = {
        name: next(i for i, line in enumerate(lines) if line.startswith(name))
        for name in ("# nvib_jax", 'pip install -e ".[train]"', "```python", "| measured on")
    }
    assert list(place.values()) == sorted(place.values())
    assert place["| measured on"] < 50
    assert len(README) < 16_000


def test_the_headline_comes_with_what_one_draw_gives():
    """What comes back exactly is read without noise, and the next row is one draw."""
    lines = README.splitlines()
    (row,) = [i for i, line in enumerate(lines) if line.startswith("| test sentences that come")]
    assert "without noise" in lines[row]
    assert "one draw" in lines[row + 1]
    shares = [float(re.search(r"\| ([\d.]+) % \|", line)[1]) for line in lines[row : row + 2]]
    assert shares[1] < shares[0]


def test_a_comparison_nobody_published_is_not_called_published():
    """The equal-share comparison with a stride is this library's own question."""
    words = re.sub(r"\s+", " ", PAGES)
    assert not re.search(r"published (advantage|claim)", words)
    assert "**our own question**: no published figure answers it" in words
