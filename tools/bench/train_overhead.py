"""What flagvega costs: tokens per CPU-second against a bare megatron-core loop, in turn, on one process.

Both sides run whole processes of two lengths; the difference of their CPU times (launcher, supervisor
and all children included) is the cost of the extra steps, free of start-up. The last line is the ratio
flagvega / bare of tokens per CPU-second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.bench.llama import LLAMA  # noqa: E402

BOUND = 0.97

MODEL = {
    **LLAMA,
    "num_layers": 8,
    "hidden_size": 256,
    "ffn_hidden_size": 688,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "seq_length": 256,
    "max_position_embeddings": 256,
    "micro_batch_size": 4,
}
TOKENS_PER_STEP = 8 * 256


def cpu_time_s(argv: list[str], env: dict[str, str]) -> float:
    """User and system seconds of a command and all that it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def flagvega_argv(folder: Path, num_steps: int) -> list[str]:
    """The product, as a user starts it."""
    task = folder / "bench.yaml"
    task.write_text(
        json.dumps(
            {
                "experiment": {
                    "exp_name": "bench",
                    "exp_dir": str(folder / f"run-{num_steps}"),
                    "task": {"type": "train"},
                    "envs": {"OMP_NUM_THREADS": "1"},
                },
                "cluster": {"nodes": [{"chip": "cpu", "devices": 1}]},
                "train": {"model": {**MODEL, "train_iters": num_steps}},
                "action": "run",
            }
        )
    )  # fmt: skip
    return [sys.executable, "run.py", "--config-path", str(folder), "--config-name", "bench"]


def bare_argv(folder: Path, num_steps: int) -> list[str]:
    """The rival."""
    from backends.megatron.arguments import complete

    file = folder / "arguments.json"
    file.write_text(json.dumps({**complete({**MODEL, "train_iters": num_steps}), "padded_vocab_size": 2048}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [sys.executable, "-P", "tools/bench/bare_megatron.py", str(file), str(num_steps), str(port)]


def main() -> int:
    """Print each pair and the median ratio; 1 when it is below the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs=2, default=(5, 45), metavar=("SHORT", "LONG"))
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default 3)")
    options = parser.parse_args()
    short, long = options.steps
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    sides = {"bare": bare_argv, "flagvega": flagvega_argv}
    ratios = []
    for _ in track(range(options.repeats), description="pairs"):
        rate = {}
        for name, argv in sides.items():
            times = []
            for num_steps in (short, long):
                with tempfile.TemporaryDirectory() as folder:
                    times.append(cpu_time_s(argv(Path(folder), num_steps), env))
            rate[name] = TOKENS_PER_STEP * (long - short) / (times[1] - times[0])
        ratios.append(rate["flagvega"] / rate["bare"])
        print(
            f"tokens per CPU-second: flagvega {rate['flagvega']:.0f}, bare {rate['bare']:.0f}, ratio {ratios[-1]:.3f}"
        )
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.3f}, bound {BOUND}")
    return int(ratio < BOUND)


if __name__ == "__main__":
    sys.exit(main())
