from __future__ import annotations

from pathlib import Path

from flagvega.records import append_json_line, read_json_lines, write_json
from flagvega.serve.measure import ANSWERS_FILE, MEASURE_FILE
from flagvega.serve.measure_pair import measure_pair
from tests.toy.serving import Served


def test_a_prompt_whose_handing_over_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    known = {"what": "handover", "number": 16, "first_token_s": 7.0}
    append_json_line(tmp_path / ANSWERS_FILE, known)
    with Served(tmp_path) as served:
        for _ in range(2):
            served.add_toy("--step-s", "0.001")
        urls = [f"http://127.0.0.1:{port}" for port in served.ports]
        (tmp_path / MEASURE_FILE).parent.mkdir()
        write_json(tmp_path / MEASURE_FILE, {"urls": urls, "model": "toy", "step_tokens": 64})
        measure_pair(tmp_path)
        answers = read_json_lines(tmp_path / ANSWERS_FILE)
        assert [answer["number"] for answer in answers] == [16, 4, 32, 64, None]
        assert answers[0] == known
        assert served.toy(0)["gave"] == served.toy(1)["took"] == 3 * 5
