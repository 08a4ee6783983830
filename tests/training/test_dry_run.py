"""What a run will need: read from the compiled step, and from programs written by hand."""

import dataclasses

import pytest
import tiny

from nvib_jax.cli import main
from nvib_jax.config import MeshConfig
from nvib_jax.presets import to_json
from nvib_jax.training.dry_run import dry_run
from nvib_jax.training.hlo import Collective, collectives

PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %ag = f32[4,8]{1,0} all-gather(%x), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%hidden (p: f32[2,8]) -> f32[4,8] {
  %ag.2 = f32[4,8]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1},{2,3}}, dimensions={0}
}

%hidden.2 (p: f32[2,8]) -> f32[4,8] {
  %ag.3 = f32[4,8]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1},{2,3}}, dimensions={0}
}

ENTRY %main (p0: f32[4]) -> f32[4] {
  %r = (f32[10]{0}, bf16[6]{0}) all-reduce(%a, %b), channel_id=1, replica_groups=mesh['x'=4,'y'=2] {'x','y'}, to_apply=%add
  %w = (s32[], f32[4,8]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %s = f32[3]{0} reduce-scatter(%c), channel_id=4, replica_groups=mesh['x'=8] {'x':(2)4}, to_apply=%add
  %q = (f32[7]{0}, f32[7]{0}, u32[], u32[]) collective-permute-start(%d), channel_id=5, source_target_pairs={{0,1}}
  %e = f32[4,8] fusion(%y), kind=kCustom, calls=%hidden
  %g = f32[4,8] fusion(%y), kind=kCustom, calls=%hidden.2
  %one = f32[9]{0} all-reduce(%z), channel_id=6, replica_groups={{0},{1}}, to_apply=%add
  %get = f32[10] get-tuple-element(%r), index=0
}
"""  # noqa: E501


def test_a_program_is_read():
    """Tuples, loops by their trips, sub-axes; what several fusions share once; no groups of one."""
    found = {c.channel: c for c in collectives(PROGRAM)}
    assert found == {
        "1": Collective("all-reduce", 8, 52, 1, "1"),
        "3": Collective("all-gather", 4, 128, 5, "3"),
        "4": Collective("reduce-scatter", 4, 12, 1, "4"),
        "5": Collective("collective-permute", 2, 28, 1, "5"),
        "9": Collective("all-gather", 2, 128, 1, "9"),
    }
    assert found["1"].sent == 2 * 7 / 8 * 52
    assert found["3"].sent == 5 * 3 / 4 * 128
    assert found["4"].sent == 3 / 4 * 48
    assert found["5"].sent == 28


def run(mesh):
    return dry_run(dataclasses.replace(tiny.config("dry"), mesh=mesh))


def test_data_parallel_sends_its_gradients_and_no_more():
    """Two times 7/8 of every trained parameter's four bytes, but for a few counts."""
    found = run(MeshConfig())
    sizes = dataclasses.replace(found, compile_seconds=0.0)
    trained = found.parameters - 2 * 16 - 2  # the prior's are not
    sent = sum(sizes.sent_bytes.values())
    assert set(sizes.sent_bytes) == {"all-reduce"}
    assert sent == pytest.approx(2 * 7 / 8 * 4 * trained, rel=0.02)
    assert found.devices == "8 x cpu"
    assert found.state_bytes == pytest.approx(12 * found.parameters, rel=0.01)
    text = str(found)
    assert f"{found.parameters:,}" in text
    assert "16 sentences of 24 tokens" in text


@pytest.mark.long
def test_fsdp_holds_a_part_of_the_state(monkeypatch):
    """An eighth, nearly: vectors are whole. Nothing is computed, so nothing is allocated."""
    one, eight = run(MeshConfig(data=1)), run(MeshConfig(fsdp=8))
    assert one.sent_bytes == {}
    assert eight.state_bytes < one.state_bytes / 4
    assert "all-gather" in eight.sent_bytes
    assert eight.flops is not None
    assert one.flops is not None
    assert eight.flops < one.flops / 4


def test_the_command_prints_it_and_runs_nothing(tmp_path, capsys):
    file = tmp_path / "config.json"
    config = tiny.with_train(tiny.config("dry"), run_dir=str(tmp_path / "run"))
    file.write_text(to_json(dataclasses.replace(config, mesh=MeshConfig())))
    assert main(["train", str(file), "--dry-run", "--mesh.fsdp", "2"]) == 0
    assert "data 4 x fsdp 2 x tensor 1" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["train", str(file), "--dry-run", "--mesh.fsdp", "3"]) == 1
    assert "wants a multiple of 3" in capsys.readouterr().err
    assert main(["train", str(file), "--processes", "two"]) == 1
    assert "--processes is 'two'; wanted a number" in capsys.readouterr().err
