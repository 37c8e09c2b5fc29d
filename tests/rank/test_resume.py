"""A run goes on from a checkpoint on any layout as if it had not been interrupted; damage is named, never hidden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagvega.errors import ExitCode
from tests.rank.client import Outcome
from tests.rank.gate import TOLERANCE, Gate, curve, deviation
from tests.rank.layouts import STEPS

HALF = STEPS // 2
GATHER = "distopt=true overlap_grad_reduce=true overlap_param_gather=true"
SCHEDULE = "lr_decay_style=cosine lr_warmup_iters=3 min_lr=1e-5"
SCALED = "llama dp2 | tp2 fp16=true initial_loss_scale=2048 hysteresis=1 min_loss_scale=1 loss_scale_window=2"
CONTINUED = {
    "gpt dp2 | tp2": ("gpt", "gpt tp2 sp pp2 distopt=true", "gpt dp3 | tp4 distopt=true", "gpt cp2 | dp1"),
    "gpt tp2 dp2 | dp3 distopt=true": ("gpt dp3 | tp2", "gpt dp2 distopt=true"),
    "llama pp2 vpp=2 micro=2": ("llama dp2 | tp2 | dp1 split=[0,3,1] distopt=true",),
    f"llama dp2 | tp2 | dp1 split=[1,0,3] {SCHEDULE}": (f"llama pp2 vpp=2 micro=2 {SCHEDULE}",),
    "moe ep2 dp2 | tp2 ep2 etp1 sp": ("moe tp2 etp2 sp distopt=true", "moe"),
    "llama tp2 | dp2 optimizer=sgd": ("llama dp2 optimizer=sgd",),
    f"llama dp3 | tp2 sp {GATHER}": ("llama cp2 tp2", f"llama dp2 {GATHER}"),
}
MORE = {
    f"llama pp2 dp2 vpp=2 micro=1 {GATHER}": ("llama tp2 | dp2",),
    "moe tp2 etp2 sp dp2 distopt=true": ("moe ep4 dp4", "moe dp2 | cp2 ep2 distopt=true"),
}


def save_half(gate: Gate, directory: Path, line: str) -> Path:
    """Train half of a run; where its checkpoints are."""
    done = gate.run(line, directory, exit_interval=HALF)
    assert [row["step"] for row in done.rows] == list(range(1, HALF + 1))
    return directory / "checkpoints"


def check_continued(gate: Gate, tmp_path: Path, saved: str, lines: tuple[str, ...]) -> None:
    checkpoints = save_half(gate, tmp_path / "saved", saved)
    for i, line in enumerate(lines):
        done = gate.run(line, tmp_path / f"continued-{i}", load=str(checkpoints))
        assert [row["step"] for row in done.rows] == list(range(HALF + 1, STEPS + 1))
        assert deviation(curve(done), gate.reference(saved)[HALF:]) < TOLERANCE, line


@pytest.mark.parametrize("saved", CONTINUED)
def test_a_run_saved_on_one_layout_goes_on_unchanged_on_others(gate: Gate, tmp_path: Path, saved: str) -> None:
    check_continued(gate, tmp_path, saved, CONTINUED[saved])


@pytest.mark.slow
@pytest.mark.parametrize("saved", MORE)
def test_a_run_goes_on_unchanged_on_rarer_layouts(gate: Gate, tmp_path: Path, saved: str) -> None:
    check_continued(gate, tmp_path, saved, MORE[saved])


@pytest.mark.parametrize("line", [f"llama dp2 | dp3 {GATHER}", "gpt tp2 | dp2"])
def test_saving_changes_nothing(gate: Gate, line: str) -> None:
    assert deviation(curve(gate.run(line, save_interval=3)), gate.reference(line)) < TOLERANCE


def test_saving_leaves_no_process_behind(gate: Gate) -> None:
    done = gate.run("llama dp2", mutation="print_processes", exit_interval=1)
    logs = done.directory.root.glob("logs/*/rank-*.log")
    told = [line for log in logs for line in log.read_text().splitlines() if line.startswith("processes")]
    assert told == ["processes 0"] * 2


@pytest.mark.parametrize(
    ("saved", "line"),
    [
        ("llama bf16=true", "llama bf16=true distopt=true"),
        (f"llama dp2 | tp2 bf16=true {GATHER}", "llama dp2 | tp2 bf16=true"),
        (SCALED, SCALED),
    ],
)
def test_half_precision_goes_on_from_its_master_weights_and_loss_scale(
    gate: Gate, tmp_path: Path, saved: str, line: str
) -> None:
    checkpoints = save_half(gate, tmp_path / "saved", saved)
    whole = gate.run(line, tmp_path / "whole")
    done = gate.run(line, tmp_path / "continued", load=str(checkpoints))
    assert deviation(curve(done), curve(whole)[HALF:]) < TOLERANCE
    assert scales(done) == scales(whole)[HALF:]


def scales(done: Outcome) -> list[float | None]:
    """The loss scale of every step."""
    return [row.get("loss_scale") for row in done.rows]


def test_a_damaged_checkpoint_is_named_and_passed_over_and_a_run_never_starts_from_zero(
    gate: Gate, tmp_path: Path
) -> None:
    num_rows = len(gate.run("llama", tmp_path, save_interval=2, keep_last=2, exit_interval=6).rows)
    assert names(tmp_path) == ["iter_0000004", "iter_0000006"]
    damage(tmp_path, "iter_0000006")
    again = gate.run("llama dp2 | dp1", tmp_path, exit_interval=6)
    events = again.directory.events(0)
    assert [Path(e["path"]).name for e in events if e["event"] == "damaged_checkpoint"] == ["iter_0000006"]
    assert [row["step"] for row in again.rows[num_rows:]] == [5, 6]
    assert names(tmp_path) == ["iter_0000004", "iter_0000006"]
    damage(tmp_path, "iter_0000004")
    damage(tmp_path, "iter_0000006")
    gate.run("llama", tmp_path, code=ExitCode.DO_NOT_RESTART)
    ends = [e for e in again.directory.events(0) if e["event"] == "exit"]
    assert ends[-1]["code"] == ExitCode.DO_NOT_RESTART
    assert "iter_0000004" in ends[-1]["reason"]
    assert "iter_0000006" in ends[-1]["reason"]


def names(directory: Path) -> list[str]:
    """The checkpoints of a run."""
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def damage(directory: Path, name: str) -> None:
    """Flip a bit in the middle of the largest file."""
    file = max((directory / "checkpoints" / name).rglob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("code", [ExitCode.TERMINATED, ExitCode.INTERRUPTED])
def test_a_request_to_stop_ends_in_a_checkpoint_and_its_code(gate: Gate, tmp_path: Path, code: ExitCode) -> None:
    done = gate.run("llama dp2 | tp2", tmp_path, code=code, stop=code)
    assert last_events(done) == [int(code)] * 4
    assert names(tmp_path) == ["iter_0000001"]
    rest = gate.run("llama", tmp_path)
    assert deviation(curve(rest), gate.reference("llama")) < TOLERANCE


def last_events(done: Outcome) -> list[int]:
    """Code of each rank's last event."""
    files = sorted(done.directory.root.glob("events/rank-*.jsonl"))
    return [json.loads(file.read_text().splitlines()[-1])["code"] for file in files]
