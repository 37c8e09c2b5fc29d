"""Predicted goodput of serve plans against measured: four mixes of unlike emulated chips, below and above the limit.

Without arguments it compares what is kept in ``serve_plans/``: what the code as it is predicts of the plans that were
run, from the profile there. Of the very requests that were sent, each load is held against what was measured; and the
figure that the plan itself prints, of requests of its own, against all loads of that plan together, for a few hundred
requests arrive at another rate than asked for by chance. It fails when one is off by more than 10 %.

``--measure`` runs it all as a user would: ``action=profile`` once for all chips (``--profile``), then for each mix
``action=plan``, ``action=run`` of the YAML that it wrote, and vLLM's own benchmark through the gateway. Engines are the
real vLLM on emulated chips. A load counts only where no chip was held up by the host for more than 2 % of its time and
no request was sent more than 0.1 s late.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Final

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backends.vllm.server import server
from flagvega.config.report import Report
from flagvega.records import read_json, write_json
from flagvega.run.directory import RunDirectory
from flagvega.serve.batching import Member
from flagvega.serve.curve import PROFILE_FILE, curve_of, passing_of, read_serve_profile
from flagvega.serve.forecast import AT_ONCE, forecast
from flagvega.serve.kinds import sample_size
from flagvega.serve.load import Bench
from flagvega.serve.traffic import Outcome, Targets, Traffic, draw, judge, outcome_facts
from flagvega.serve.traffic_block import traffic_of
from tools.bench.tiny_model import ENGINE_ARGS, make_tiny_model

ROOT: Final = Path(__file__).resolve().parents[2]
KEPT: Final = Path(__file__).with_name("serve_plans")
BOUND: Final = 0.10
MOST_LATE: Final = 0.02
"""Of the chips' time, by which the host was slower."""
MOST_BEHIND_S: Final = 0.1
"""That a request was sent after its time."""
GATEWAY_PORT: Final = 8390
FIRST_PORT: Final = 8391
START_S: Final = 240.0
SLOW_START_S: Final = 12.0
"""In which the gateway lets new instances begin slowly."""
NUM_REQUESTS: Final = 400
SERVICE: Final = "tiny"
FOLDER: Final = Path("outputs/bench/serve_plan")
MODEL: Final = FOLDER / SERVICE
"""Relative, for the profile names it."""


@dataclass(frozen=True)
class Mix:
    """Chips, and what clients ask of them."""

    chips: Mapping[str, int]
    traffic: Mapping[str, Any]
    rates: tuple[float, float]
    """Requests a second: below what the chips take, and above."""


MIXES: Final[Mapping[str, Mix]] = {
    "large-small": Mix(
        {"emu-l": 1, "emu-s": 1},
        {
            "input_tokens": {"from": 20, "to": 200},
            "output_tokens": {"median": 30, "p99": 100},
            "targets": {"first_token_s": 1.5, "per_token_s": 0.16, "share": 0.95},
        },
        (13.0, 17.0),
    ),
    "long-prompts": Mix(
        {"emu-l": 1, "emu-m": 1},
        {
            "input_tokens": {"from": 200, "to": 1500},
            "output_tokens": 24,
            "targets": {"first_token_s": 2.0, "per_token_s": 0.16, "share": 0.95},
        },
        (8.0, 12.0),
    ),
    "three-kinds": Mix(
        {"emu-l": 1, "emu-m": 1, "emu-s": 1},
        {
            "input_tokens": {"values": [64, 1024], "weights": [3, 1]},
            "output_tokens": {"from": 10, "to": 60},
            "targets": {"first_token_s": 1.5, "per_token_s": 0.14, "share": 0.95},
        },
        (13.0, 19.0),
    ),
    "tight-tokens": Mix(
        {"emu-l": 2, "emu-s": 1},
        {
            "input_tokens": {"from": 600, "to": 1400},
            "output_tokens": 32,
            "targets": {"first_token_s": 1.5, "per_token_s": 0.06, "share": 0.95},
        },
        (8.0, 12.0),
    ),
}


def config(name: str, chips: Mapping[str, int], **blocks: Any) -> list[str]:
    """Write an experiment; the words that name it on the command line."""
    arguments = {**ENGINE_ARGS, "model": str(MODEL), "port": FIRST_PORT, "max_model_len": 2048, "max_num_seqs": 24,
                 "served_model_name": SERVICE}  # fmt: skip
    content = {
        "experiment": {"exp_name": name, "exp_dir": str(FOLDER / name), "task": {"type": "serve"}},
        "cluster": {"nodes": [{"chip": chip, "devices": number} for chip, number in chips.items()]},
        "serve": [{"serve_id": SERVICE, "engine_args": arguments}],
        "gateway": {"port": GATEWAY_PORT},
        **blocks,
    }
    (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
    (ROOT / FOLDER / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return ["--config-path", str(FOLDER), "--config-name", name]


def flagvega(*words: str) -> str:
    """What a command answers on stdout."""
    argv = [sys.executable, str(ROOT / "run.py"), *words]
    return subprocess.run(argv, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def plan(name: str, mix: Mix, block: Mapping[str, Any], may_split: bool) -> Path:
    """Plan a mix for a ``traffic`` block; the folder of the plan."""
    experiment = f"{name}-{block['rate_per_s']:g}{'' if may_split else '-whole'}"
    profile_file = KEPT.relative_to(ROOT) / "profile.json"
    if not may_split:
        profile = read_json(profile_file)
        profile_file = FOLDER / "profile-whole.json"
        write_json(ROOT / profile_file, {**profile, "handovers": []})
    words = config(experiment, mix.chips, traffic=block, plan={"profile": str(profile_file)})
    flagvega(*words, "action=plan")
    return ROOT / FOLDER / experiment


def read_fleet(folder: Path) -> dict[str, Any]:
    """What the YAML of a plan runs: instances and the gateway's limit."""
    planned = yaml.safe_load((folder / "planned.yaml").read_text())
    instances = [
        {"chip": entry["chip"], "slots": entry["engine_args"]["max_num_seqs"],
         "number": entry["resources"]["num_replicas"], **({"role": entry["role"]} if "role" in entry else {})}
        for entry in planned["serve"]
    ]  # fmt: skip
    return {"instances": instances, "patience_s": planned["gateway"]["waiting"]["first_token_s"]}


def block_of(mix: Mix, rate: float, num_requests: int) -> dict[str, Any]:
    """The ``traffic`` block of a mix at a rate."""
    return {**mix.traffic, "rate_per_s": rate, "num_requests": num_requests}


# ---- measuring ----


def measure_profile() -> None:
    """Measure every chip, and keep the profile."""
    chips = {chip: 1 for mix in MIXES.values() for chip in mix.chips}
    flagvega(*config("profile", chips), "action=profile", "roles=true")
    KEPT.mkdir(exist_ok=True)
    write_json(KEPT / "profile.json", read_json(ROOT / FOLDER / "profile" / PROFILE_FILE))


def measure_mix(
    name: str, rates: Sequence[float], seeds: Sequence[int], num_requests: int, may_split: bool
) -> bool:
    """Measure a mix and keep what counts; whether all of it did."""
    mix, all_count = MIXES[name], True
    with Bench(server.bench(), ROOT / FOLDER / "bench.log") as bench:
        bench.wait()
        for rate in rates:
            block = block_of(mix, rate, num_requests)
            folder = plan(name, mix, block, may_split)
            fleet = read_fleet(folder)
            traffic, targets = traffic_of(block, Report({}))
            loads = [replace(traffic, seed=seed) for seed in seeds]
            for load, outcome, late in zip(loads, *zip(*put(folder, loads, targets, bench), strict=True), strict=True):
                counts = late <= MOST_LATE and outcome.late_s <= MOST_BEHIND_S
                all_count = all_count and counts
                row = {"rate_per_s": rate, "seed": load.seed, "late_share": late, **fleet}
                row["measured"] = outcome_facts(outcome)
                print(show(name, row) + ("" if counts else "  DOES NOT COUNT"), flush=True)
                if counts:
                    keep(name, mix, row)
    return all_count


def put(folder: Path, loads: Sequence[Traffic], targets: Targets, bench: Bench) -> Iterator[tuple[Outcome, float]]:
    """Run what was planned into ``folder``, put each load on its gateway, and end it; with the share of lateness."""
    for file in folder.glob("logs/*/emulated-*.json"):
        file.unlink()  # of a run before
    begun = time.time()
    flagvega("--config-path", str(folder), "--config-name", "planned", "action=run", "detach=true")
    directory = RunDirectory(folder)
    try:
        wait(directory, begun)
        for traffic in loads:
            before = lateness(folder)
            outcome = bench.measure(f"http://127.0.0.1:{GATEWAY_PORT}", SERVICE, str(MODEL), traffic, targets)
            late_s, chip_s = (now - then for now, then in zip(lateness(folder), before, strict=True))
            yield outcome, late_s / chip_s
    finally:
        flagvega("action=stop", f"run_dir={folder}")
        while (state := directory.read()) and not state.finished:
            time.sleep(0.5)


def wait(directory: RunDirectory, begun: float) -> None:
    """Until the gateway and all instances serve; what was told before ``begun`` is of another run."""
    deadline = time.monotonic() + START_S
    while not any(event["event"] == "endpoint" and event["time"] >= begun for event in directory.events(0)):
        state = directory.read()
        if time.monotonic() > deadline or state is None or state.finished:
            raise TimeoutError(f"{directory.root} does not serve: {state and state.reason}")
        time.sleep(0.5)
    time.sleep(SLOW_START_S)


def lateness(folder: Path) -> tuple[float, float]:
    """By how much the host was slower than the chips, and their time, in seconds so far."""
    time.sleep(2.5)  # it is written every two seconds
    counts = [read_json(file) for file in folder.glob("logs/*/emulated-*.json")]
    return sum(count["late_s"] for count in counts), sum(count["chip_s"] for count in counts)


def keep(name: str, mix: Mix, row: Mapping[str, Any]) -> None:
    """Put a row in the place of the one of its rate, number of requests and seed."""
    file = KEPT / f"{name}.json"
    rows = read_json(file)["rows"] if file.exists() else []
    kept = sorted([*(each for each in rows if key_of(each) != key_of(row)), row], key=key_of)
    write_json(file, {"chips": dict(mix.chips), "traffic": dict(mix.traffic), "rows": kept})


def key_of(row: Mapping[str, Any]) -> tuple[float, bool, int, int]:
    """What tells rows of a mix apart."""
    return row["rate_per_s"], bool(roles_of(row)), row["measured"]["num_requests"], row["seed"]


# ---- comparing ----


def compare(names: Sequence[str]) -> int:
    """Hold predictions against what is kept; 1 where one is off by more than the bound."""
    worst = 0.0
    for name in names:
        rows = read_json(KEPT / f"{name}.json")["rows"]
        for row in rows:
            print(show(name, row))
            worst = max(worst, abs(error_of(row, predict(MIXES[name], row))))
        worst = max(worst, *(abs(error_of_plan(name, alike)) for alike in by_plan(rows)))
    print(f"largest error of a predicted goodput: {worst:.1%} (bound {BOUND:.0%})")
    return int(worst > BOUND)


def by_plan(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The loads of each plan."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        plan = [row["rate_per_s"], row["instances"], row["patience_s"]]
        found.setdefault(json.dumps(plan), []).append(row)
    return list(found.values())


def error_of_plan(name: str, rows: Sequence[Mapping[str, Any]]) -> float:
    """Of the goodput that the plan prints, as a share of what all loads of it gave together; printed."""
    rate = rows[0]["rate_per_s"]
    printed = predict(MIXES[name], rows[0], long_run=True)["goodput_per_s"]
    number = sum(row["measured"]["num_requests"] for row in rows)
    good = sum(row["measured"]["num_requests"] * row["measured"]["good_share"] for row in rows)
    measured = good / number * rate
    error = float(printed / measured - 1)
    what = f"{name:<13} {rate:5g}/s{roles_of(rows[0])}, the plan's own figure"
    print(f"{what}: {printed:6.2f}, {number} requests in all: {measured:6.2f} ({error:+.1%})")
    return error


def predict(mix: Mix, row: Mapping[str, Any], long_run: bool = False) -> dict[str, Any]:
    """What is expected of the instances of a row: of the requests that were sent, or of those that a plan goes by."""
    profile = read_serve_profile(KEPT / "profile.json")
    curves = {each.chip: curve_of(each) for each in profile.instances}
    members = [
        Member(curves[each["chip"]], each["slots"], each.get("role", "both"))
        for each in row["instances"]
        for _ in range(each["number"])
    ]
    number, seed = row["measured"]["num_requests"], row["seed"]
    traffic, targets = traffic_of(block_of(mix, row["rate_per_s"], number), Report({}))
    if long_run:
        number, seed = sample_size(members, traffic, row["rate_per_s"]), traffic.seed
    requests = draw(replace(traffic, num_requests=number, seed=seed))
    passing = passing_of(profile, profile.instances[0].model) or AT_ONCE
    found = forecast(members, requests, row["patience_s"], passing)
    return dict(outcome_facts(judge(traffic, requests, found.answers, targets, found.duration_s)))


def error_of(row: Mapping[str, Any], predicted: Mapping[str, Any]) -> float:
    """Of the predicted goodput, as a share of the measured one."""
    measured = row["measured"]["goodput_per_s"]
    return float(predicted["goodput_per_s"] / measured - 1) if measured else inf


def roles_of(row: Mapping[str, Any]) -> str:
    """Whether its instances have roles, in words."""
    return " with roles" if any("role" in each for each in row["instances"]) else ""


def show(name: str, row: Mapping[str, Any]) -> str:
    """A row, to be read."""
    measured, predicted = row["measured"], predict(MIXES[name], row)
    firsts, betweens = (
        f"{predicted[key]['p50']:.3f}/{measured[key]['p50']:.3f}" for key in ("first_token_s", "per_token_s")
    )
    return (
        f"{name:<13} {row['rate_per_s']:5g}/s{roles_of(row)}, "
        f"{measured['num_requests']:4} requests of seed {row['seed']}: "
        f"goodput predicted {predicted['goodput_per_s']:6.2f}, "
        f"measured {measured['goodput_per_s']:6.2f} ({error_of(row, predicted):+.1%}); "
        f"first token p50 {firsts} s, between tokens p50 {betweens} s; late {row['late_share']:.3f}"
    )


def main() -> int:
    """Compare, or measure first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixes", nargs="*", help=f"of {', '.join(MIXES)}; all when none is given")
    parser.add_argument("--profile", action="store_true", help="measure the chips anew first")
    parser.add_argument("--measure", action="store_true", help="measure the mixes anew")
    parser.add_argument("--rates", nargs="+", type=float, help="measure only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS, help="of a load")
    parser.add_argument("--whole", action="store_true", help="measure plans without roles")
    given = parser.parse_args()
    names = given.mixes or list(MIXES)
    make_tiny_model(ROOT / MODEL)
    if given.profile:
        measure_profile()
    if given.measure:
        all_count = [
            measure_mix(name, given.rates or MIXES[name].rates, given.seeds, given.requests, not given.whole)
            for name in names
        ]
        return 0 if all(all_count) else 1
    return 0 if given.profile else compare(names)


if __name__ == "__main__":
    sys.exit(main())
