"""What is written for people is true: examples run, files that are linked are there."""

import doctest
import inspect
import json
import re
from pathlib import Path
from urllib.parse import unquote

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx

import nvib_jax
from nvib_jax import data, editing, evaluation, kernels, objective, plots
from nvib_jax.attention import cache
from nvib_jax.data import grammar_edits
from nvib_jax.models.latents.vq import through
from nvib_jax.modules import linen
from nvib_jax.text_model import TextModel
from nvib_jax.whitening import Whitening

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for pattern in ("*.md", "*/*.md", "*/*/*.md", "colab/*.ipynb")
    for page in sorted(ROOT.glob(pattern))
    if not page.relative_to(ROOT).parts[0].startswith((".", "runs"))
]


def public(module):
    """Functions and classes that a module, or a package's own files, define for others."""
    return {
        f"{module.__name__}.{name}": thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and f"{thing.__module__}.".startswith(f"{module.__name__}.")
    }


NAMES = {
    **{f"nvib_jax.{name}": getattr(nvib_jax, name) for name in nvib_jax.__all__},
    **public(nvib_jax.random),
    **public(cache),
    **public(editing),
    **public(kernels),
    **public(objective),
    **public(linen),
    **public(plots),
    "nvib_jax.models.latents.vq.through": through,
    **public(grammar_edits),
    "nvib_jax.whitening.Whitening": Whitening,
    "nvib_jax.modules.NVIB": nvib_jax.modules.NVIB,
    "nvib_jax.modules.DenoisingAttention": nvib_jax.modules.DenoisingAttention,
}
# With a trained model at hand, and its data.
EVALUATION = {
    f"nvib_jax.evaluation.{name}": getattr(evaluation, name) for name in evaluation.__all__
}
EVALUATION |= {"nvib_jax.text_model.TextModel": TextModel}
del EVALUATION["nvib_jax.evaluation.mutual_information"]  # `collapse_report` calls it
DATA = {f"nvib_jax.data.{name}": getattr(data, name) for name in data.__all__}
del DATA["nvib_jax.data.Batch"]  # in the example of `Batches`
del NAMES["nvib_jax.random"]  # the module
del NAMES["nvib_jax.plots.Field"]  # in the example of `mixture_fields`


NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")
DIGITS = 1e-3  # numbers with a point are this right at least, relatively


class ToTheDigitsShown(doctest.OutputChecker):
    """Numbers are right to as many digits as the example shows, and to a thousandth."""

    def check_output(self, want, got, flags):
        def bare(text):
            return re.sub(r"\s+", "", NUMBER.sub("#", text))

        return bare(want) == bare(got) and all(
            float(shown) == float(found) if "." not in shown else self.near(shown, found)
            for shown, found in zip(NUMBER.findall(want), NUMBER.findall(got), strict=True)
        )

    @staticmethod
    def near(shown, found):
        last = 0.5000001 * 10.0 ** -len(re.split("e", shown.partition(".")[2])[0])
        last *= 10.0 ** int(shown.partition("e")[2] or 0)
        return abs(float(shown) - float(found)) <= min(last, max(DIGITS * abs(float(found)), 1e-6))


# What nvib_jax/README.md says is at hand, beside the function itself.
PRELUDE = {"jax": jax, "jnp": jnp} | {name: getattr(nvib_jax, name) for name in nvib_jax.__all__}


@pytest.mark.parametrize("name", NAMES)
def test_example_runs_as_printed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # figures
    run_example(name, NAMES[name], PRELUDE)


@pytest.mark.parametrize("name", DATA)
def test_example_of_data_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a cache
    run_example(name, DATA[name], vars(data))


@pytest.mark.long
@pytest.mark.parametrize("name", EVALUATION)
def test_example_with_a_model_runs(name):
    config = tiny.trained()[0]
    texts = data.prepare(config.data).sentences("validation", 4)
    known = {"model": TextModel.load(config.train.run_dir), "texts": texts}
    run_example(name, EVALUATION[name], vars(evaluation) | known)


def run_example(name, thing, known):
    names = {**known, thing.__name__: thing}
    found = doctest.DocTestFinder(recurse=False).find(thing, name, globs=names)
    (example,) = [test for test in found if test.examples]
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(ToTheDigitsShown()).run(example, out=report.append)
    assert not failed, "".join(report)


@pytest.mark.parametrize(
    ("shown", "found", "right"),
    [
        ("[4.]", "[4.4]", False),
        ("[4.]", "[4.003]", True),
        ("[0.9114]", "[0.91144]", True),
        ("[0.9114]", "[0.9116]", False),
        ("(2, 6, 8)", "(2, 6, 9)", False),
        ("[1. 2.]", "[1. 2. 3.]", False),
        ("1.5e-03", "1.5004e-03", True),
        ("1.5e-03", "1.7e-03", False),
        ("[2.5 0. ]", "[2.5  0.4]", False),
    ],
)
def test_numbers_are_compared(shown, found, right):
    assert ToTheDigitsShown().check_output(shown, found, 0) is right


@pytest.mark.parametrize("name", NAMES)
def test_docstring_says_what_enters_and_leaves(name):
    thing = NAMES[name]
    text = inspect.getdoc(thing)
    call = thing.__init__ if inspect.isclass(thing) and issubclass(thing, nnx.Module) else thing
    wanted = set(inspect.signature(call).parameters) - {"self", "parent", "name"}  # Linen's own
    missing = [p for p in wanted if not re.search(rf"\b{p}: ", text)]
    assert not missing or name == "nvib_jax.plots.mixture_field", f"{name}: what is {missing}?"


def links(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [
        *re.findall(r"\]\(([^)\s]+)\)", text),
        *re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.MULTILINE),
        *re.findall(r'(?:src|href)="([^"]+)"', text),
    ]


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


# Addresses of files of this repository, up to their paths in it.
HERE = (
    "https://github.com/nvib-jax/nvib_jax/blob/main/",
    "https://raw.githubusercontent.com/nvib-jax/nvib_jax/main/",
    "https://colab.research.google.com/github/nvib-jax/nvib_jax/blob/main/",
)


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_inside_the_repository(page):
    for link in links(page):
        path, _, anchor = unquote(link).partition("#")
        if path.startswith(HERE):
            if "colab.research" in link:
                assert link.endswith(f"/colab/{page.name}") or page.suffix == ".md", link
            path, page_of = path.removeprefix(next(h for h in HERE if path.startswith(h))), ROOT
        elif re.match(r"(https?|mailto):", link):
            continue
        else:
            page_of = page.parent
        target = (page_of / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_a_mask_of_places_is_not_called_a_choice_of_words(page):
    """Pseudo-counts alone learn a stride; a page that claims more shows the R2 of its own model."""
    text = page.read_text(encoding="utf-8")
    claims = r"[Ww]hich\s+(words?|tokens?)\s+kept|word's vector carried|vectors follows the text"
    shown = [float(r2) for r2 in re.findall(r"kept 0\.\d+; R2 by place (\d\.\d+)", text)]
    assert (shown and max(shown) <= 0.3) or not re.search(claims, text)


def test_the_readme_is_whole_on_other_sites():
    """PyPI shows it, and there a link to a file beside it leads nowhere."""
    found = links(ROOT / "README.md")
    assert len(found) > 20
    assert [link for link in found if not re.match(r"https://|#", link)] == []
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    used = set(re.findall(r"\]\[(\w+)\]", text))
    assert used == set(re.findall(r"^\[(\w+)\]: ", text, flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_files_that_are_named_exist(page):
    """`configs/NAME.py` and `nvib_jax/NAME.py`, as they stand in the text."""
    text = page.read_text(encoding="utf-8")
    for name in set(
        re.findall(r"`((?:configs|nvib_jax|tests|colab|tpu_scripts)/[\w/]+\.\w+)`", text)
    ):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"


def test_pages_were_found():
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CHANGELOG.md", "tpu_scripts/README.md"} <= names
    assert len([name for name in names if name.endswith(".ipynb")]) == 5
