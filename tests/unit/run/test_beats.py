"""Signs of life in a shared folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flagvega.run import beats
from flagvega.run.beats import Beat, Listener


def test_a_beat_outlives_a_folder_that_fails_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "BEAT_S", 0.01)
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "beat").touch()
    beat = Beat(folder / "beat")
    beat.start()
    folder.rename(tmp_path / "away")
    folder.touch()  # no folder any more
    time.sleep(0.1)
    folder.unlink()
    (tmp_path / "away").rename(folder)
    listener, deadline = Listener(folder / "beat"), time.monotonic() + 10
    while listener.silent_s() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    beat.stop()
