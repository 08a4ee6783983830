"""What is published works without the checkout: the wheel's own files, in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROBE = """
import pathlib, jax.numpy as jnp, nvib_jax as nvib
assert pathlib.Path(nvib.__file__).is_relative_to({site!r}), nvib.__file__
mixture = nvib.sample_prior(__import__("jax").random.key(0), nvib.Prior.standard(8),
                            jnp.array([3]), max_length=4)
assert mixture.mean.shape == (1, 5, 8)
from nvib_jax.data import default_grammar
assert default_grammar().contains("the dog sees a cat")
"""


@pytest.mark.long
def test_wheel_in_an_empty_folder(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert "nvib_jax/py.typed" in names
    assert not [n for n in names if n.startswith(("tests", "configs"))]
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    probe = PROBE.format(site=str(site))
    subprocess.run([sys.executable, "-c", probe], cwd=empty, env=environment, check=True)
