"""Compiled code that is kept for the next process: where, for whom, and that it is used."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvib_jax import compilation_cache
from nvib_jax.compilation_cache import SWITCH, use_compilation_cache


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """As in a fresh process: no folder told to JAX; what the test changes is undone."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("NVIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(SWITCH, raising=False)
    yield tmp_path / "cache" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_the_users_alone_whatever_it_was(unset):
    unset.mkdir(parents=True, mode=0o777)
    unset.chmod(0o777)
    folder = use_compilation_cache()
    assert folder == Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == unset
    assert unset.stat().st_mode & 0o777 == 0o700


def test_a_link_is_refused(unset, tmp_path):
    unset.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    unset.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{unset} holds code that will be run, and is a link"):
        use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_another_users_folder_is_refused(unset, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ValueError, match="another user's; wanted a folder of yours alone"):
        use_compilation_cache()


def test_a_switch_turns_it_off(unset, monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    assert use_compilation_cache() is None
    assert not unset.exists()
    monkeypatch.setenv(SWITCH, "no")
    with pytest.raises(ValueError, match=f"{SWITCH} is 'no'; wanted 'on' or 'off'"):
        use_compilation_cache()


def test_what_jax_was_told_stays(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_a_place_that_cannot_be_written_keeps_nothing(unset, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NVIB_CACHE", str(tmp_path / "file"))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_the_oldest_entries_go_first(unset, monkeypatch):
    folder = use_compilation_cache()
    for age, name in enumerate(("new", "middle", "old")):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(compilation_cache, "_MOST_BYTES", 150)
    jax.config.update("jax_compilation_cache_dir", None)
    use_compilation_cache()
    assert [file.name for file in folder.iterdir()] == ["new"]


def test_an_entry_that_is_being_written_is_compiled_again(unset):
    """Fails without the filter in pyproject.toml: pytest's workers share a cache."""
    from jax.experimental.compilation_cache import compilation_cache as cache

    x = jnp.ones((4, 4))

    def compiled():  # a new function each time, because JAX keeps what it compiled in memory too
        return jax.jit(lambda x: jnp.cos(x) @ x).lower(x).compile()

    folder = use_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    cache.reset_cache()  # the open one is the session's
    try:
        compiled()
        (entry,) = folder.glob("*-cache")
        entry.write_bytes(entry.read_bytes()[:100])
        np.testing.assert_allclose(compiled()(x)[0, 0], 4 * np.cos(1.0), rtol=1e-6)
    finally:
        cache.reset_cache()


def test_a_second_process_compiles_nothing(tmp_path):
    program = (
        "import logging, sys, jax, jax.numpy as jnp\n"
        "from nvib_jax import compilation_cache\n"
        "compilation_cache._LEAST_SECONDS = 0.0\n"
        "compilation_cache.use_compilation_cache()\n"
        "logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n"
        "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))\n"
    )
    environment = {name: v for name, v in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"NVIB_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    )
    assert "cache hit" not in first
    assert "Persistent compilation cache hit for 'jit__lambda'" in second
