"""Measures grids point by point: warm rank processes, forked for each point, that only build their groups anew."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagvega.actions.trials import trial_spec, write_plan
from flagvega.config.spec import Spec
from flagvega.engine import engines
from flagvega.errors import ConfigError
from flagvega.records import Lines, write_json
from flagvega.tune.measure import Limits, judge, read_steps
from flagvega.tune.training.families import pool_of
from flagvega.tune.training.question import ask
from flagvega.tune.training.shape import read_point
from tools.bench.tune_cases import GRIDS, Case, is_balanced

LIMITS = Limits(warmup_iters=2, train_iters=3, max_iters=3, confidence=0.02, max_time_s=60.0)
"""The first two steps of an emulated chip watch the memory and are slow."""


def collect(case: Case, minutes: float) -> None:
    """Measure points of the grid that have not been measured, then those for which the host was too slow."""
    deadline = time.monotonic() + 60 * minutes
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    path = GRIDS / f"{case.name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["points"] if path.exists() else []
    question = ask(case.spec(), engines.get("megatron"))
    pool = pool_of(question)
    done = {read_point(row["point"]).key for row in rows}
    indexes = [index for index in range(pool.num_legal) if is_balanced(pool.point(index)[0])]
    print(f"{case.name}: {len(indexes)} points, {len(done)} done", flush=True)
    import backends.megatron.run  # noqa: F401  warm: children are forked with all of it

    for index in indexes:
        point, part = pool.point(index)
        if point.key in done:
            continue
        if time.monotonic() > deadline:
            break
        try:
            plan = part.plan(point, engines.get("megatron"))
        except ConfigError as error:
            row: dict[str, Any] = {"status": "refused", "reason": error.faults[0].what}
        else:
            row = _measure(part.spec, plan)
        rows.append({"point": point.record, "values": dict(point.values), **row})
        write_json(path, {"case": asdict(case), "points": rows})
        print(len(rows), point.values.get("meshes"), point.values.get("layers"), row.get("time_s"), row.get("notes"),
              flush=True)  # fmt: skip

    for row in [row for row in rows if row.get("notes")]:
        if time.monotonic() > deadline:
            break
        point = read_point(row["point"])
        part = question.by_settings[point.settings]
        again = _measure_once(part.spec, part.plan(point, engines.get("megatron")))
        print("again", point.values.get("meshes"), point.values.get("layers"), row.get("time_s"), again.get("time_s"),
              bool(again.get("notes")), flush=True)  # fmt: skip
        if not again.get("notes"):
            row.pop("notes")
            row.update(again)
            write_json(path, {"case": asdict(case), "points": rows})


def _measure(spec: Spec, plan: Any, attempts: int = 2) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for _ in range(attempts):
        row = _measure_once(spec, plan)
        if not row.get("notes"):
            break
    return row


def _measure_once(spec: Spec, plan: Any) -> dict[str, Any]:
    from flagvega.cluster.source import find_cluster

    engine = engines.get("megatron")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        write_plan(root, plan)
        chosen = trial_spec(spec, root, has_plan=True)
        settled = engine.settle(chosen, plan)
        job = engine.job(settled, plan, find_cluster(spec, engine.request(settled)))
        for name, content in job.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_json(root / name, content)
        (root / "events").mkdir(exist_ok=True)
        pids = _fork(root, job.nodes[0].num_ranks)
        try:
            return _follow(root, pids)
        finally:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except (ProcessLookupError, ChildProcessError):
                    continue


def _fork(root: Path, count: int) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for local in range(count):
        pid = os.fork()
        if pid == 0:
            _be_rank(root, local, port)
        pids.append(pid)
    return pids


def _be_rank(root: Path, local: int, port: int) -> None:
    os.environ |= {"LOCAL_RANK": str(local), "FLAGVEGA_NODE": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    log = os.open(root / f"rank-{local}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        from backends.megatron.__main__ import main

        sys.argv = ["rank", "--run-dir", str(root)]
        code = main()
    finally:
        os._exit(code)


def _follow(root: Path, pids: list[int]) -> dict[str, Any]:
    lines, rows, began = Lines(root / "metrics.jsonl"), [], time.monotonic()
    asked, left = False, list(pids)
    while left and time.monotonic() - began < LIMITS.max_time_s:
        left = [pid for pid in left if os.waitpid(pid, os.WNOHANG) == (0, 0)]
        rows += lines.read()
        if not asked and judge(read_steps(rows, LIMITS.warmup_iters), LIMITS) != "more":
            write_json(root / "stop", {"code": 0, "reason": "enough"})
            asked = True
        time.sleep(0.02)
    events = [json.loads(line) for path in (root / "events").glob("*.jsonl") for line in path.read_text().splitlines()]
    measured = read_steps(rows, LIMITS.warmup_iters)
    errors = [event["error"] for event in events if event.get("error")]
    notes = sorted({event["reason"] for event in events if event["event"] == "invalid_timing"})
    if errors or not measured.steps:
        return {"status": "oom" if "OutOfMemoryError" in errors else "crash", "reason": str(errors)}
    return {
        "status": "ok", "time_s": measured.typical_s, "half_width_s": measured.half_width_s,
        "busy": list(measured.busy), "tokens_per_s": measured.tokens_per_s, "notes": notes,
    }  # fmt: skip
