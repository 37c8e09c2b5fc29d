"""What is started, and what the engine's own classes say to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.megatron.arguments import supported
from backends.megatron.engine import engine
from backends.megatron.fields import installed
from flagvega.cluster.nodes import Cluster, Node
from flagvega.config.spec import Spec
from flagvega.engine import engines
from flagvega.layout.build import build_plan
from flagvega.layout.codec import plan_from_json
from flagvega.layout.job import Job

from .conftest import make

MIXED = Cluster((Node("a", ("emu-l",) * 2), Node("b", ("emu-s",) * 2)))


def mixed_spec(**options: object) -> Spec:
    return make(
        enable_hetero=True,
        hetero_process_meshes=[2, 1, 1, 1, 1, 1, 1, 1, 2, 1],
        hetero_device_types=["emu-l", "emu-s"],
        **options,  # type: ignore[arg-type]
    )


def mixed_job(spec: Spec) -> Job:
    return engine.job(spec, build_plan(engine.request(spec), MIXED), MIXED)


def test_the_engine_is_found_by_its_folder() -> None:
    assert engines.get("megatron") is engine


def test_each_node_starts_the_rank_program_with_its_number() -> None:
    job = mixed_job(mixed_spec())
    assert [(node.host, node.num_ranks, node.env["FLAGVEGA_NODE"]) for node in job.nodes] == [
        ("a", 2, "0"),
        ("b", 2, "1"),
    ]
    assert job.nodes[0].argv[:4] == (sys.executable, "-P", "-m", "backends.megatron")
    assert Path(job.nodes[0].argv[-1]).is_absolute()


def test_ranks_off_cuda_do_not_compile_and_share_the_cores() -> None:
    env = mixed_job(mixed_spec()).nodes[0].env
    assert env["TORCHDYNAMO_DISABLE"] == "1"
    assert env["OMP_NUM_THREADS"] == "1"


def test_the_users_variables_win() -> None:
    env = mixed_job(mixed_spec(envs={"OMP_NUM_THREADS": "7", "CUDA_DEVICE_MAX_CONNECTIONS": "8"})).nodes[0].env
    assert (env["OMP_NUM_THREADS"], env["CUDA_DEVICE_MAX_CONNECTIONS"]) == ("7", "8")


def test_the_files_hold_the_plan_and_every_supported_argument() -> None:
    spec = mixed_spec(blocks={"bridge": {"chunk_bytes": 7}})
    job = mixed_job(spec)
    files = json.loads(json.dumps(job.files))
    assert plan_from_json(files["plan.json"]) == build_plan(engine.request(spec), MIXED)
    assert set(files["job/rank.json"]["arguments"]) == set(supported())
    assert files["job/rank.json"]["bridge"] == {"chunk_bytes": 7}


def test_ranks_find_this_source_from_any_directory(tmp_path: Path) -> None:
    (tmp_path / "hardware").mkdir()
    env = {**os.environ, **mixed_job(mixed_spec()).nodes[0].env}
    code = "import backends.megatron.engine, hardware; print(hardware.__file__)"
    argv = [sys.executable, "-P", "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert str(tmp_path) not in done.stdout


@pytest.mark.skipif(installed() is None, reason="megatron-core is not installed")
def test_what_the_engines_own_classes_refuse_is_a_fault() -> None:
    spec = make(num_experts=4, moe_shared_expert_intermediate_size=-4)
    plan = build_plan(engine.request(spec), Cluster((Node("a", ("cpu",)),)))
    faults = engine.construct(spec, plan)
    assert len(faults) == 1
    assert "megatron-core refuses: moe_shared_expert_intermediate_size" in str(faults[0])
