"""From an instance that is measured to a plan that runs: the real vLLM and its benchmark, by the product's commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.vllm.server import server
from flagvega.run.directory import RunDirectory
from flagvega.run.processes import find_processes
from flagvega.serve.curve import PROFILE_FILE, curve_of, passing_of, read_serve_profile
from flagvega.serve.load import Bench
from flagvega.serve.probe import find_trouble
from flagvega.serve.traffic import Lengths, Targets, Traffic, fixed
from tests.conftest import ROOT
from tests.rank.served import needs_vllm
from tools.bench.serve_engines import free_port
from tools.bench.tiny_model import ENGINE_ARGS, make_tiny_model

pytestmark = needs_vllm


def flagvega(*words: str) -> dict[str, Any]:
    argv = [sys.executable, str(ROOT / "run.py"), *words, "output=json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_an_instance_is_measured_and_a_plan_made_of_it_runs(tmp_path: Path) -> None:
    arguments = {**ENGINE_ARGS, "model": str(make_tiny_model(tmp_path / "tiny")), "max_model_len": 512}
    content = {
        "experiment": {"exp_name": "p", "exp_dir": str(tmp_path / "out"), "task": {"type": "serve"}},
        "cluster": {"nodes": [{"chip": "emu-l", "devices": 2}]},
        "serve": [{"serve_id": "m", "engine_args": {**arguments, "port": free_port(), "max_num_seqs": 4}}],
        "traffic": {
            "rate_per_s": 3,
            "input_tokens": 40,
            "output_tokens": 20,
            "targets": {"first_token_s": 2, "per_token_s": 0.2, "share": 0.9},
        },
    }
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(content))
    words = ["--config-path", str(tmp_path), "--config-name", "exp"]
    assert flagvega(*words, "action=profile", "roles=true")["file"] == str(tmp_path / "out" / PROFILE_FILE)
    profile = read_serve_profile(tmp_path / "out" / PROFILE_FILE)
    (row,) = profile.instances
    assert [level.sequences for level in row.levels] == [1, 2, 4]
    assert (row.max_tokens, row.input_tokens) == (512, 40)
    assert row.cache_tokens
    assert row.cache_tokens > 512
    assert 0.04 <= curve_of(row).step_s(1) < 0.08  # of its chip, and what a busy host adds
    passing = passing_of(profile, row.model)
    assert passing
    assert 0 <= passing.seconds(500) < 0.2  # beside a step of the chip
    folders = sorted((tmp_path / "out" / "profile").iterdir())
    assert len(folders) == 2
    for folder in folders:
        run = RunDirectory(folder).read()
        assert run is not None
        assert not find_processes(run.token)
    (log,) = folders[1].glob("logs/*/rank-1.log")  # the one that writes
    assert log.read_text().count("Took the cache of") > 10
    planned = flagvega(*words, "action=plan")
    assert planned["predictions"]["holds"]
    found = flagvega("--config-path", str(tmp_path / "out"), "--config-name", "planned", "action=dryrun")
    assert found["plan"]["decisions"] == planned["decisions"]


def test_loads_are_measured_as_the_engine_paces_them(tmp_path: Path) -> None:
    port = free_port()
    argv = [sys.executable, str(ROOT / "tests/toy/paced.py"), "--port", str(port), "--slots", "4", "--step-s", "0.05"]
    folder = str(make_tiny_model(tmp_path / "tiny"))
    toy = subprocess.Popen(argv)
    try:
        with Bench(server.bench(), tmp_path / "bench.log") as bench:
            bench.wait()
            url = f"http://127.0.0.1:{port}"
            traffic = Traffic(fixed(32), fixed(11), concurrency=4, num_requests=8)
            outcome = bench.measure(url, "toy", folder, traffic, Targets(per_token_s=0.01))
            assert (outcome.num_requests, outcome.failures, outcome.good_share) == (8, 0, 0.0)
            assert 0.045 < outcome.per_token_s.p50 < 0.1
            assert {answer.output_tokens for answer in outcome.answers} == {11}
            assert {answer.instance for answer in outcome.answers} == {""}
            traffic = Traffic(fixed(32), Lengths(least=2, most=6), rate_per_s=10, num_requests=20)
            outcome = bench.measure(url, "toy", folder, traffic, Targets())
            assert outcome.goodput_per_s == 10
            assert outcome.answers[-1].begun_s == pytest.approx(2, abs=1)
            outcome = bench.measure(url, "none", folder, traffic, Targets())
            assert outcome.failures == 20
            assert outcome.answers[0].error == "Not Found"
    finally:
        toy.kill()
        toy.wait()


def test_a_load_on_a_gateway_tells_which_instance_gave_each_answer(tmp_path: Path) -> None:
    ports, at = [free_port(), free_port()], free_port()
    instances = [{"id": i, "url": f"http://127.0.0.1:{port}", "slots": 2} for i, port in enumerate(ports)]
    (tmp_path / "gateway.json").write_text(json.dumps({"port": at, "instances": instances}))
    toy = [sys.executable, str(ROOT / "tests/toy/paced.py"), "--slots", "2", "--step-s", "0.05", "--port"]
    started = [subprocess.Popen([*toy, str(port)]) for port in ports]
    gateway = [sys.executable, "-P", "-m", "flagvega.serve", "--config", str(tmp_path / "gateway.json")]
    started.append(subprocess.Popen(gateway))
    try:
        with Bench(server.bench(), tmp_path / "bench.log") as bench:
            bench.wait()
            url, folder = f"http://127.0.0.1:{at}", str(make_tiny_model(tmp_path / "tiny"))
            while find_trouble(url, "toy"):
                time.sleep(0.2)
            traffic = Traffic(fixed(32), fixed(11), concurrency=4, num_requests=12)
            outcome = bench.measure(url, "toy", folder, traffic, Targets())
            assert outcome.failures == 0
            assert {answer.instance for answer in outcome.answers} == {"0", "1"}
    finally:
        for process in started:
            process.kill()
            process.wait()
