"""A rank program without an engine: a real process that keeps the contract of a rank with its run directory."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from flagvega.records import append_json_line, read_json, write_json


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--code", type=int, default=0, help="verdict of every rank at the end")
    parser.add_argument("--crash", type=int, default=-1, help="rank that raises at step 2")
    parser.add_argument("--crash-saving", type=int, default=-1, help="rank that raises when asked to stop")
    parser.add_argument("--deaf", action="store_true", help="ignore requests to stop")
    parser.add_argument("--start", type=int, default=0, help="step of the checkpoint that it goes on from")
    parser.add_argument("--note", default="", help="what every rank finds worth telling")
    parser.add_argument("--loss", default="falling")
    parser.add_argument("--error", default="", help="what every rank dies of at step 2, as it tells it")
    parser.add_argument("--late", type=int, default=0, help="so many runs beside one another have invalid timings")
    parser.add_argument("--echo", nargs="*", help="words to write down as they arrive")
    arguments = parser.parse_args()
    rank = int(os.environ["FLAGVEGA_RANKS"].split()[int(os.environ["LOCAL_RANK"])])
    root = arguments.run_dir
    events = root / "events" / f"rank-{rank}.jsonl"

    def tell(event: str, **more: object) -> None:
        append_json_line(events, {"time": time.time(), "event": event, **more})

    tell("start", pid=os.getpid())
    print(f"rank {rank} begins", flush=True)
    if arguments.echo is not None:
        write_json(root / f"echo-{rank}.json", {"argv": sys.argv, "env": dict(os.environ)})
    runs = root.parent / "runs"
    if arguments.late and rank == 0:
        with runs.open("a") as file:
            file.write("x")
    peers = [root / "events" / f"rank-{peer}.jsonl" for peer in os.environ["FLAGVEGA_RANKS"].split()]
    while not all(peer.exists() for peer in peers):
        time.sleep(0.01)
    tell("ready", step=arguments.start)
    if arguments.note:
        tell("toy_trouble", reason=arguments.note)
    if arguments.late and rank == 0 and runs.stat().st_size <= arguments.late:
        tell("invalid_timing", reason="the toy was busy")
    for step in range(arguments.start + 1, arguments.steps + 1):
        time.sleep(arguments.step_s)
        if arguments.error and step == 2:
            tell("exit", code=1, reason=f"{arguments.error}: as told", error=arguments.error)
            return 1
        if rank == arguments.crash and step == 2:
            raise RuntimeError("the toy breaks")
        if rank == 0:
            loss = {"falling": 5.0 / step, "nan": float("nan"), "rising": float(step)}[arguments.loss]
            metrics = {
                "step": step,
                "loss": loss,
                "grad_norm": 1.0,
                "lr": 1e-3,
                "tokens": 512,
                "samples": 4,
                "iter_time_s": arguments.step_s,
                "tokens_per_s": 512 / arguments.step_s,
                "busy": [0.5, 0.75],
            }
            append_json_line(root / "metrics.jsonl", metrics)
        if not arguments.deaf and (root / "stop").exists():
            request = read_json(root / "stop")
            if rank == arguments.crash_saving:
                raise RuntimeError("the toy's disk is full")
            tell("checkpoint", step=step)
            tell("exit", code=request["code"], reason=request["reason"])
            return 0
    tell("exit", code=arguments.code, reason=json.dumps("as told"))
    return 0 if arguments.code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
