"""Files that outlive a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flagvega import records
from flagvega.errors import PreflightError


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError):
        records.write_text(path, "\udc80")
    assert records.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_torn_last_line_is_dropped_by_readers_and_cut_by_the_next_append(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records.append_json_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert records.read_json_lines(path) == [{"step": 1}]
    records.append_json_line(path, {"step": 2})
    assert records.read_json_lines(path) == [{"step": 1}, {"step": 2}]
    assert records.read_json_lines(tmp_path / "none") == []


def test_lines_are_read_as_they_grow_and_old_ones_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records.append_json_line(path, {"step": 1})
    lines = records.Lines(path)
    lines.skip()
    assert lines.read() == []
    records.append_json_line(path, {"step": 2})
    assert lines.read() == [{"step": 2}]
    assert lines.read() == []


def test_a_manifest_names_missing_cut_and_flipped_files(tmp_path: Path) -> None:
    for name in ("good", "gone", "cut", "flipped", "below/it"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0123456789")
    assert "not finished" in records.verify_manifest(tmp_path)[0]
    records.write_manifest(tmp_path)
    assert records.verify_manifest(tmp_path) == []
    (tmp_path / "gone").unlink()
    (tmp_path / "cut").write_bytes(b"01234")
    (tmp_path / "flipped").write_bytes(b"0123456788")
    faults = records.verify_manifest(tmp_path)
    assert len(faults) == 3
    assert all(any(fault.startswith(name) for fault in faults) for name in ("gone", "cut", "flipped"))
    assert len(records.verify_manifest(tmp_path, hashes=False)) == 2


def test_a_lock_is_refused_while_its_owner_lives_and_taken_over_when_it_died(tmp_path: Path) -> None:
    code = "import sys, flagvega.records as r; r.Lock(sys.argv[1]).acquire(); print('held', flush=True); input()"
    path = tmp_path / "lock"
    argv = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(PreflightError, match=f"in use by process {child.pid} on "):
            records.Lock(path).acquire()
        child.kill()
    with records.Lock(path) as lock:
        assert lock.taken_over
    assert not path.exists()


def test_a_lock_of_another_host_is_never_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    records.write_json(path, {"host": "elsewhere", "boot": "b", "pid": 1, "started": 0.0, "since": 0.0})
    with pytest.raises(PreflightError, match="if elsewhere is gone for good, delete"):
        records.Lock(path).acquire()


@pytest.mark.parametrize("change", [{"boot": "another"}, {"started": 1.0}])
def test_a_reused_pid_is_not_the_owner(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "lock"
    lock = records.Lock(path).acquire()
    records.write_json(path, json.loads(path.read_text()) | change)
    assert records.Lock(path).acquire().taken_over
    lock.release()


def test_what_cannot_be_written_is_said_with_its_place_and_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "file" / "x"
    path.parent.write_text("")
    says = r"file/x: cannot be written: Not a directory\n +give another experiment.exp_dir"
    with pytest.raises(PreflightError, match=says), records.writing(path):
        records.write_text(path, "")
