from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flagvega.serve.load import Bench, LoadError
from flagvega.server import Command


def test_a_benchmark_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    command = Command((sys.executable, "-c", "raise SystemExit('no engine here')"))
    words = r"ended with code 1; its log: .*bench.log"
    with pytest.raises(LoadError, match=words), Bench(command, tmp_path / "bench.log") as bench:
        bench.wait()
    assert "no engine here" in (tmp_path / "bench.log").read_text()


def test_a_benchmark_leaves_with_its_context(tmp_path: Path) -> None:
    command = Command((sys.executable, "-c", "import sys; print('{}', flush=True); sys.stdin.read()"))
    with Bench(command, tmp_path / "bench.log") as bench:
        bench.wait()
        process = bench.process
        assert process is not None
        assert process.poll() is None
    assert process.poll() == 0
