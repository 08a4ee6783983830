"""What `.github` says to GitHub, and the pages of the site: names, parts and versions are right."""

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import nvib_jax
from nvib_jax import data, evaluation, modules, objective, plots, pretrained
from nvib_jax.attention import cache
from nvib_jax.modules import linen

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
YAML = sorted([*GITHUB.rglob("*.yml"), GITHUB / "CITATION.cff", ROOT / ".pre-commit-config.yaml"])


class Loader(yaml.SafeLoader):
    """YAML with MkDocs' own tags as text."""


Loader.add_multi_constructor("!", lambda loader, tag, node: loader.construct_scalar(node))


def read(path):
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


@pytest.mark.parametrize("path", YAML, ids=[str(path.relative_to(ROOT)) for path in YAML])
def test_it_is_yaml(path):
    assert isinstance(read(path), dict)


# ---- workflows


def test_there_are_workflows():
    assert [path.stem for path in WORKFLOWS] == ["publish", "site", "test"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_takes_actions_by_their_commits(path):
    """A tag can be moved to other code later, a commit cannot."""
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 180
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}"))
    pinned = re.findall(r"uses: (\S+?)@\w+ # v\d+\.\d+\.\d+$", path.read_text(), flags=re.MULTILINE)
    assert len(pinned) == path.read_text().count("uses: ")


def test_every_part_of_ci_has_a_machine():
    parts = re.findall(
        r"^(\w+_(?:lane|slices))\(\) \{", (ROOT / ".ci/run").read_text(), re.MULTILINE
    )
    (job,) = read(GITHUB / "workflows" / "test.yml")["jobs"].values()
    matrix = job["strategy"]["matrix"]["include"]
    assert sorted(each["part"] for each in matrix) == sorted(parts)
    for each in matrix:
        assert each["python"] == ("3.12" if each["part"] == "newest_lane" else "3.11")


def test_a_part_that_is_not_there_is_refused():
    command = ["bash", ROOT / ".ci/run", "newest"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "no part 'newest'; there are oldest_lane, oldest_slices and newest_lane\n"
    )


def test_versions_are_the_package_s():
    assert read(GITHUB / "CITATION.cff")["version"] == nvib_jax.__version__


# ---- the site

SITE = GITHUB / "site"
PAGES = sorted((SITE / "pages").glob("*.md"))
SHOWN = [
    name
    for page in PAGES
    for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
]


def defined(module):
    """Functions and classes that a module defines for others."""
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and f"{thing.__module__}.".startswith(f"{module.__name__}.")
    ]


PUBLIC = [
    *(f"nvib_jax.{name}" for name in nvib_jax.__all__ if name != "random"),  # the module
    *(f"nvib_jax.{name}" for name in nvib_jax._LATER),
    *(
        f"{module.__name__}.{name}"
        for module in (data, evaluation, modules, objective, plots, pretrained)
        for name in module.__all__
        if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name))
    ),
    *(
        f"{module.__name__}.{name}"
        for module in (cache, linen, nvib_jax.random)
        for name in defined(module)
    ),
]


def found(name):
    """The thing of a dotted name, as the site looks it up."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        if importlib.util.find_spec(".".join(parts[:1])) is None:
            continue
        try:
            thing = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            thing = getattr(thing, part)
        return thing
    raise AssertionError(f"there is no {name}")


def test_every_public_name_is_on_a_page():
    shown = {id(found(name)) for name in SHOWN}
    missing = [name for name in PUBLIC if id(found(name)) not in shown]
    # A bound method is another object each time.
    assert missing == ["nvib_jax.load"]
    assert "`nvib_jax.load` is `TextModel.load`" in (SITE / "pages" / "models.md").read_text()
    assert nvib_jax.load == nvib_jax.TextModel.load


def test_what_is_on_a_page_is_there_and_documented_once():
    assert len(set(SHOWN)) == len(SHOWN) > 80
    for name in SHOWN:
        assert found(name).__doc__, name


def test_every_page_is_in_the_menu():
    menu = str(read(SITE / "mkdocs.yml")["nav"])
    assert all(f"'{page.name}'" in menu for page in PAGES)
    assert len(re.findall(r"\.md'", menu)) == len(PAGES)


def test_examples_become_blocks_of_code(monkeypatch):
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))
    spec = importlib.util.spec_from_file_location("doctests", SITE / "doctests.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = "Head.\n\n>>> f(1)\n[2]\n>>> g()\n\nThen a > b.\n    >>> h()\n    3\n"
    assert tool.fenced(text) == (
        "Head.\n\n\n```pycon\n>>> f(1)\n[2]\n>>> g()\n```\n\nThen a > b.\n"
        "\n    ```pycon\n    >>> h()\n    3\n    ```\n"
    )


def test_files_that_contributing_names_are_there():
    text = (GITHUB / "CONTRIBUTING.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    assert all((GITHUB / link).is_file() for link in links)
    names = re.findall(r"(?:tests|\.github|\.ci)/[\w./]+\w", text)
    assert len(names) > 3
    assert all((ROOT / name).exists() for name in names)
