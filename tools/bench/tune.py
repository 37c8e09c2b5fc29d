"""How many trials the tuner needs, against orders that know less: on grids that were measured once, point by point.

``collect``: measures a grid with the real engine on emulated chips (warm rank processes, forked for each point), as far
as ``--minutes`` go; called again, it goes on. ``replay``: searches the kept grids and prints the table of the docs.
``rank``: counts and ranks a space of millions.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flagvega.actions.trials import SHORT, trial_spec
from flagvega.config.command import parse
from flagvega.config.load import load_spec
from flagvega.config.spec import Spec
from flagvega.engine import engines
from flagvega.errors import ConfigError
from flagvega.layout.build import even_split
from flagvega.records import Lines, write_json
from flagvega.tune.families import pool_of
from flagvega.tune.history import guided
from flagvega.tune.learn import Model
from flagvega.tune.measure import Limits, judge, read_steps
from flagvega.tune.pool import Pool
from flagvega.tune.priority import grid
from flagvega.tune.question import Question, ask
from flagvega.tune.search import Order, shuffled
from flagvega.tune.shape import Point, read_point
from flagvega.tune.study import Trial

GRIDS = Path(__file__).with_name("tune_grids")
NEAR = 1.02
MAX_TRIALS = 150
LIMITS = Limits(warmup_iters=2, train_iters=3, max_iters=3, confidence=0.02, max_time_s=60.0)
"""The first two steps of an emulated chip watch the memory and are slow."""
_CLUSTER = "cluster.nodes=[{nodes}]"


@dataclass(frozen=True)
class Case:
    """A cluster, a model and a space."""

    name: str
    chips: tuple[tuple[str, int], ...]
    words: tuple[str, ...]

    def spec(self) -> Spec:
        """The experiment."""
        nodes = ", ".join(f"{{chip: {chip}, devices: {count}}}" for chip, count in self.chips)
        command = parse(
            [*("--config-path", "examples/llama/conf", "--config-name", "tune"), _CLUSTER.format(nodes=nodes),
             *self.words], {}, {},
        )  # fmt: skip
        return load_spec(command, lambda name: engines.get(name).keys())


def _order(*chips: str) -> str:
    return f"train.system.hetero.hetero_device_types=[{','.join(chips)}]"


CASES = (
    Case("large-small", (("emu-l", 2), ("emu-s", 2)), (
        _order("emu-s", "emu-l"), "train.model.num_layers=6", "train.model.global_batch_size=4",
        "experiment.auto_tuner.space.micro_batch_size=[1,2]",
    )),
    Case("three-kinds", (("emu-s", 1), ("emu-m", 2), ("emu-l", 2)), (
        _order("emu-s", "emu-m", "emu-l"), "train.model.num_layers=5", "train.model.global_batch_size=4",
        "experiment.auto_tuner.space.micro_batch_size=[1,2]",
    )),
    Case("medium-large", (("emu-m", 4), ("emu-l", 1)), (
        _order("emu-m", "emu-l"), "train.model.num_layers=6", "train.model.global_batch_size=4",
        "experiment.auto_tuner.space.micro_batch_size=[1,2]",
    )),
)  # fmt: skip


LARGE = Case("three-hosts", (("h100-sxm", 8), ("a800-sxm-80g", 8), ("v100-sxm2-32g", 8)), (
    _order("h100-sxm", "a800-sxm-80g", "v100-sxm2-32g"), "train.model.num_layers=32",
    "train.model.global_batch_size=64", "train.model.hidden_size=1024", "train.model.num_attention_heads=16",
    "train.model.num_query_groups=8", "train.model.ffn_hidden_size=2048",
))  # fmt: skip
"""Three meshes of eight devices, 32 layers, all open: FlagScale lists 170,028 candidates and tries them all."""


def rank_large() -> None:
    """Count and rank the large space."""
    began = time.process_time()
    question = ask(LARGE.spec(), engines.get("megatron"))
    pool = pool_of(question)
    seen = guided(pool).next()
    took = time.process_time() - began
    legal = question.tally.steps[-1][1]
    print(f"{question.tally.total:,} layouts before any rule, {legal:,} legal; {pool.num_legal:,} with their layers,")
    print(f"{pool.num_fitting:,} of them fit; counted and ranked in {took:.1f} s of CPU")
    print(f"first: {dict(seen.point.values) if seen else None}")


# ---- collect ----


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


def is_balanced(point: Point) -> bool:
    """Whether layers are cut evenly inside every mesh, as FlagScale's grid has them."""
    begin = 0
    for mesh in point.shape.meshes if point.shape else ():
        layers = point.split[begin : begin + mesh.pp]
        if layers != even_split(sum(layers), mesh.pp):
            return False
        begin += mesh.pp
    return True


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
        chosen = trial_spec(replace(spec, arguments={**spec.arguments, **SHORT}), root, plan)
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


# ---- replay ----


@dataclass(frozen=True)
class Measured:
    """A kept grid."""

    case: Case
    question: Question
    points: dict[str, dict[str, Any]]

    @property
    def best_s(self) -> float:
        """Of all points."""
        return min(float(row["time_s"]) for row in self.points.values() if row["status"] == "ok")


def read_grid(case: Case) -> Measured:
    """A grid with the question that it answers; the predictions are the planner's of today.

    Points for which the host was slower than the chip that it emulates do not count.
    """
    rows = [row for row in json.loads((GRIDS / f"{case.name}.json").read_text())["points"] if not row.get("notes")]
    question = ask(case.spec(), engines.get("megatron"))
    return Measured(case, question, {read_point(row["point"]).key: row for row in rows})


def search(grid_of: Measured, order: Order, pool: Pool) -> tuple[int, int]:
    """(trials until one is within 2 % of the grid's best, rank of the first trial among all points)."""
    times = sorted(row["time_s"] for row in grid_of.points.values() if row["status"] == "ok")
    first = 0
    for number in range(1, MAX_TRIALS + 1):
        seen = order.next()
        if seen is None:
            break
        row = grid_of.points.get(seen.point.key)
        if row is None or row["status"] == "refused":
            continue
        trial = Trial(
            row["status"], number=number, key=seen.point.key, point=seen.point.record, time_s=row.get("time_s"),
            busy=tuple(row.get("busy", ())),
        )  # fmt: skip
        order.learn(seen, trial)
        first = first or 1 + sum(time_s < row["time_s"] for time_s in times) if row["status"] == "ok" else first
        if row["status"] == "ok" and row["time_s"] <= NEAR * grid_of.best_s:
            return number, first
    return MAX_TRIALS, first


def fresh(grid_of: Measured) -> Pool:
    """The pool of a grid's measured points."""
    pool = pool_of(grid_of.question)
    for index in range(pool.num_legal):
        if pool.point(index)[0].key not in grid_of.points:
            pool.drop(index)
    return pool


def show(case: Case, num_seeds: int) -> None:
    """A row of the table."""
    measured = read_grid(case)
    pool = fresh(measured)
    num_guided, rank = search(measured, guided(pool), pool)
    scale = {}
    for priority in ("performance", "memory"):
        pool = fresh(measured)
        scale[priority] = search(measured, grid(pool, priority), pool)[0]
    at_random = []
    for seed in range(num_seeds):
        pool = fresh(measured)
        at_random.append(search(measured, shuffled(pool, seed), pool)[0])
    tpe = []
    try:
        from flagvega.tune.sampler import Sampled

        for seed in range(max(3, num_seeds // 10)):
            pool = fresh(measured)
            pool.predict(Model())
            tpe.append(search(measured, Sampled.in_memory(pool, seed), pool)[0])
    except ImportError:
        tpe = []
    near = sum(row.get("time_s", 9e9) <= NEAR * measured.best_s for row in measured.points.values())
    chips = " + ".join(f"{count} {chip}" for chip, count in case.chips)
    print(f"| {chips} | {len(measured.points)} | {near} | {rank} | **{num_guided}** | {median(at_random):g} | "
          f"{median(tpe) if tpe else '-'} | {scale['performance']} / {scale['memory']} |")  # fmt: skip


def main() -> None:
    """Act on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("collect", "replay", "count", "rank"))
    parser.add_argument("--case", choices=[case.name for case in CASES])
    parser.add_argument("--minutes", type=float, default=3.5)
    parser.add_argument("--seeds", type=int, default=100)
    given = parser.parse_args()
    cases = [case for case in CASES if given.case in (None, case.name)]
    if given.what == "replay":
        print(
            "| cluster | points | within 2 % | rank of first guess | guided | random | Optuna TPE | FlagScale's order |"
        )
        print("|---|---|---|---|---|---|---|---|")
    if given.what == "rank":
        rank_large()
        return
    for case in cases:
        if given.what == "collect":
            collect(case, given.minutes)
        elif given.what == "count":
            print(case.name, pool_of(ask(case.spec(), engines.get("megatron"))).num_legal)
        elif (GRIDS / f"{case.name}.json").exists():
            show(case, given.seeds)


if __name__ == "__main__":
    main()
