"""Runs of the product on emulated chips, for benches that compare what a plan predicts with what a run measures.

Everything goes through ``run.py``: profile, plan or estimate, run. Records are kept: a layout that was run
before, by its plan, is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from flagvega.layout.codec import plan_from_json, plan_hash  # noqa: E402
from flagvega.records import append_json_line, read_json_lines, write_json, write_text  # noqa: E402
from tools.bench.llama import LLAMA  # noqa: E402

NUM_STEPS, NUM_WARM_UP = 6, 3
"""Steps of a run, and those that are not timed: an emulated chip watches its memory in the first two."""
ATTEMPTS = 3
"""Runs of a layout until one's timings count."""
OUT_OF_MEMORY = "out of memory"
_MIB = 2**20

MODEL: Mapping[str, Any] = {
    **LLAMA,
    "num_layers": 6,
    "hidden_size": 192,
    "ffn_hidden_size": 512,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "seq_length": 128,
    "max_position_embeddings": 128,
    "micro_batch_size": 2,
    "train_iters": NUM_STEPS,
}
"""A small Llama-shaped model whose head costs as much as a layer, as those of large models do."""

Nodes = Sequence[tuple[str, int]]
"""Kinds of chips and how many of each."""
PROFILED: Nodes = (("emu-s", 2), ("emu-m", 2), ("emu-l", 2))
"""Two devices of each kind, for tensor parallelism and for links between alike chips."""


@dataclass(frozen=True)
class Measured:
    """What a run of a layout measured; ``failed`` in words where it did not reach its end."""

    iteration_s: float = 0.0
    """Median of the timed steps."""
    spread: float = 0.0
    """Slowest over fastest timed step, less 1."""
    peak_bytes: tuple[int, ...] = ()
    """Of each stage."""
    invalid: str = ""
    """Why the timings do not count: the host did not keep up."""
    failed: str = ""


class EmulatedRuns:
    """A folder of runs, with one profile that all plans go by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.records = self.folder / "records.jsonl"
        self.profile = self.folder / "profile.json"
        self._known: dict[str, Measured] = {}
        for row in read_json_lines(self.records) if self.records.exists() else ():
            peaks = tuple(row["measured"].pop("peak_bytes"))
            self._known[row["plan"]] = Measured(peak_bytes=peaks, **row["measured"])

    def make_profile(self, nodes: Nodes) -> None:
        """Measure single devices and the links between them; what is there already is not measured again."""
        if not self.profile.exists():
            self._call("profile", self._write(self.folder, "profile", nodes, {}), output=False)

    def ask(self, action: str, name: str, nodes: Nodes, system: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of ``action=plan`` or ``action=estimate``, by the measured profile."""
        config = self._write(self.folder / name, name, nodes, system)
        answer: dict[str, Any] = json.loads(self._call(action, config, f"plan.profile={self.profile}"))
        return answer

    def measure(self, name: str, nodes: Nodes, plan: Mapping[str, Any]) -> Measured:
        """Run a plan, given as JSON, until its timings count; known plans are not run again."""
        key = plan_hash(plan_from_json(plan))
        if key not in self._known:
            found = Measured(invalid="not run")
            for _ in range(ATTEMPTS):
                found = self._run(name, nodes, plan) if found.invalid else found
            self._known[key] = found
            if not found.invalid:
                append_json_line(self.records, {"name": name, "plan": key, "measured": asdict(found)})
        return self._known[key]

    def _run(self, name: str, nodes: Nodes, plan: Mapping[str, Any]) -> Measured:
        folder = self.folder / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        size = plan["decisions"]["stages"][0]["replicas"][0]["micro_batch_size"]
        config = self._write(folder, name, nodes, {}, micro_batch_size=size)
        write_json(folder / "given.json", plan)
        done = self._start("run", config, f"plan={folder / 'given.json'}")
        if done.returncode:
            said = done.stdout + done.stderr
            return Measured(failed=OUT_OF_MEMORY if OUT_OF_MEMORY in said.lower() else said[-2000:])
        rows = list(read_json_lines(folder / "metrics.jsonl"))
        times = [row["iter_time_s"] for row in rows[NUM_WARM_UP:]]
        events = [event for file in sorted((folder / "events").glob("*.jsonl")) for event in read_json_lines(file)]
        invalid = [event["reason"] for event in events if event["event"] == "invalid_timing"]
        peaks = tuple(rows[-1]["peak_bytes"])
        return Measured(median(times), max(times) / min(times) - 1, peaks, "; ".join(invalid[:1]))

    def _write(self, folder: Path, name: str, nodes: Nodes, system: Mapping[str, Any], **model: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        arguments = {**MODEL, **model}
        document = {
            "experiment": {"exp_name": name, "exp_dir": str(folder), "task": {"type": "train", "backend": "megatron"}},
            "cluster": {"nodes": [{"chip": chip, "devices": count} for chip, count in nodes]},
            "train": {"system": {"use_distributed_optimizer": True, **system}, "model": arguments},
        }
        write_text(folder / "bench.yaml", json.dumps(document))
        return folder

    def _call(self, action: str, config: Path, *words: str, output: bool = True) -> str:
        done = self._start(action, config, *words, *(["output=json"] if output else []))
        if done.returncode:
            raise SystemExit(f"action={action} in {config} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _start(self, action: str, config: Path, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "run.py", "--config-path", str(config), "--config-name", "bench", f"action={action}"]
        return subprocess.run([*argv, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def read_command_line(description: str | None, names: Sequence[str], metavar: str) -> tuple[EmulatedRuns, list[str]]:
    """The folder that is asked for, with its profile, and which of the names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench/emulated"), help="where runs are kept")
    parser.add_argument("--fresh", action="store_true", help="forget what the folder has")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar=metavar, help="these only")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    runs = EmulatedRuns(options.folder)
    runs.make_profile(PROFILED)
    return runs, options.only


def describe(plan: Mapping[str, Any]) -> str:
    """A plan in a few words: ``s1: 2 | m2 dp2: 3 | l1: 3``, stages in order with chip, devices and layers."""
    decisions = plan["decisions"]
    words = []
    for stage, chunk in zip(decisions["stages"], decisions["chain"], strict=True):
        mesh = decisions["meshes"][stage["replicas"][0]["mesh"]]
        degrees = "".join(f" {name}{mesh[name]}" for name in ("tp", "dp") if mesh[name] > 1)
        first, last = chunk["layers"]
        again = max((part["num_layers"] or 0 for part in stage["recompute"]), default=0)
        words.append(
            f"{mesh['chip'].removeprefix('emu-')}{degrees}: {last - first}{f' ({again} again)' if again else ''}"
        )
    slow = [str(i) for i, boundary in enumerate(decisions["boundaries"]) if boundary["slow"]]
    return " \\| ".join(words) + (f", one more at {' '.join(slow)}" if slow else "")


def memory_error(plan: Mapping[str, Any], measured: Measured) -> float:
    """The worst stage's predicted over measured peak, less 1.

    A device's own runtime is left out of what is predicted: a run counts what its tensors hold.
    """
    errors = []
    for stage, held in zip(plan["predictions"]["stages"], measured.peak_bytes, strict=True):
        expected = stage["memory_bytes"]["total"] - stage["memory_bytes"]["context"]
        errors.append(expected / held - 1)
    return float(max(errors, key=abs))


def seconds(value: float) -> str:
    """For a table."""
    return f"{value:.3f} s"
