"""Published runs as planning problems: reads tests/data/measured_training.csv, says what is left out and why."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from flagvega.layout.plan import Recompute
from flagvega.model.shape import ModelShape
from flagvega.model.work import model_flops
from flagvega.model.workload import Choices, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.calibration import Calibration
from flagvega.plan.costs import Degrees, Side
from flagvega.plan.explain import Outlook, look_at
from flagvega.plan.machine import LINK_LATENCY_S, NETWORK_LATENCY_S, Group, Link, Machine
from flagvega.plan.space import Candidate, Problem
from flagvega.plan.stages import Work
from flagvega.platform import find_chip

TABLE = Path(__file__).parents[2] / "tests" / "data" / "measured_training.csv"
CHIPS = {
    "B200-SXM": "b200-sxm",
    "GH-96": "gh200-96g",
    "A100-80GB-SXM": "a100-sxm-80g",
    "A800-80GB": "a800-sxm-80g",
    "a100_40gb": "a100-sxm-40g",
    "a100_80gb": "a100-sxm-80g",
    "h100_80gb": "h100-sxm",
    "H100-96GB-HBM2e-500W": "h100-sxm",
}
NETWORK_BYTES_PER_S = {"InternEvo": 6.25e9, "Sailor": 25e9}
"""Of one device: four ports of 100 Gb/s for eight, and 200 Gb/s for one. Others do not say: see below."""
UNTOLD_NETWORK_BYTES_PER_S = 25e9
DEVICES_PER_HOST = {"Sailor": 4}
GRADIENT_BYTES = {"InternEvo": 2}
"""Assumed to be reduced in bf16; others in fp32."""
DTYPES = {"bf16": "bf16", "amp_bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}
TIMES = ("iter_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu")
MEMORIES = {"peak_alloc_gib": 2.0**30, "peak_mem_bytes_max_over_gpus": 1.0}


@dataclass(frozen=True)
class Run:
    """One published figure and the run it was seen on."""

    source: str
    family: str
    chip: str
    dtype: str
    """As the products ran: ``tf32`` where fp32 rates exceed what the chip has without it."""
    metric: str
    value: float
    """Seconds of a step, or bytes of the fullest device."""
    work: Workload
    candidate: Candidate
    recompute: tuple[Recompute, ...]
    network_bytes_per_s: float
    devices_per_host: int
    is_suspect: bool
    is_fully_sharded: bool

    @property
    def num_devices(self) -> int:
        """Of all stages."""
        return sum(side.degrees.size for side, _ in self.candidate.stages)

    @property
    def tokens(self) -> int:
        """Of one step and device."""
        return self.work.global_batch * self.work.seq // self.num_devices

    def predict(self, constants: Calibration) -> float:
        """The same figure by the cost model."""
        outlook = self._look(constants)
        if self.metric == "time":
            return outlook.total_s
        return max(stage.memory.total - stage.memory.context for stage in outlook.stages)

    def _look(self, constants: Calibration) -> Outlook:
        facts = find_chip(self.chip)
        peaks, link = facts.peak_flops or {}, facts.link_bytes_per_s
        memory, bandwidth = facts.memory_bytes, facts.memory_bytes_per_s
        assert memory is not None
        assert bandwidth is not None
        assert link is not None
        host = self.devices_per_host
        group = Group(
            self.chip, (host,) * -(-self.num_devices // host), memory, peaks[self.dtype], bandwidth,
            Link(LINK_LATENCY_S, link), Link(NETWORK_LATENCY_S, self.network_bytes_per_s),
        )  # fmt: skip
        machine = Machine((group,))
        share = constants.efficiency_of(self.chip, self.dtype)
        costs = AnalyticCosts(
            self.work, machine, True, replace(constants, efficiency={(self.chip, self.work.dtype): share})
        )
        choices = Choices(recompute=self.recompute, distributed_optimizer=True)
        return look_at(self.candidate, Problem(machine, self.work, choices, costs, lambda side: True))


def read_runs(path: Path = TABLE) -> tuple[list[Run], Counter[tuple[str, str]]]:
    """The usable rows, and how many of each source were left out, by reason."""
    runs: list[Run] = []
    left_out: Counter[tuple[str, str]] = Counter()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            source = _source(row["source"])
            if reason := _why_not(row, source):
                left_out[source, reason] += 1
            else:
                runs.append(_run(row, source))
    return runs, left_out


def _source(text: str) -> str:
    return text.split()[0].removeprefix("mosaicml/")


def _why_not(row: dict[str, str], source: str) -> str:
    if row["metric"] not in (*TIMES, *MEMORIES):
        return f"{row['metric']}: not a figure of the whole step or device"
    if source == "AMP":
        return "cut in parts that the source does not name"
    if row["ep"] not in ("", "1") or row["model"].startswith(("deepseek", "mixtral")):
        return "mixture of experts"
    if row["dtype"] not in DTYPES:
        return "other element types than flagvega trains in (fp8, fp4), or mixed ones"
    if row["vpp"] not in ("", "1"):
        return "interleaved schedule"
    if not row["micro_batch"] or not row["global_batch"] or not row["layers"]:
        return "shape or micro-batch not told"
    if row["gpu"] not in CHIPS:
        return "no data sheet"
    if int(row["global_batch"]) % (int(row["micro_batch"]) * int(row["dp"])):
        return "the batch is not a multiple of micro-batch and replicas"
    return ""


def _run(row: dict[str, str], source: str) -> Run:
    shape = _shape(row, source)
    dtype = DTYPES[row["dtype"]]
    seq, batch, num = int(row["seq"]), int(row["global_batch"]), int(row["n_gpus"])
    tp, dp, cp, pp = (int(row[key] or 1) for key in ("tp", "dp", "cp", "pp"))
    state = 8 if dtype == "fp32" else 12
    work = Workload(
        shape, seq, dtype, batch, batch, GRADIENT_BYTES.get(source, 4), state, overlap_reduction=source != "SimuMax"
    )
    degrees = Degrees(tp=tp, cp=cp, dp=dp, sp=row["seq_parallel"] == "yes")
    stages = tuple((Side(0, degrees), part) for part in _parts(row, shape.layers, pp))
    value, metric = float(row["value"]), "time"
    if row["metric"] in MEMORIES:
        value, metric = value * MEMORIES[row["metric"]], "memory"
    elif row["metric"] == "tokens_per_s_per_gpu":
        value = batch * seq / (value * num)
    elif row["metric"] == "tflops_per_gpu":
        counted = 4 / 3 if row["recompute"] == "full" else 1.0
        value = counted * model_flops(shape, seq, batch) / (value * 1e12 * num)
    return Run(
        source, re.sub(r"[(].*", "", row["model"]), CHIPS[row["gpu"]], "tf32" if dtype == "fp32" else dtype, metric,
        value, work, Candidate(int(row["micro_batch"]) * dp, stages, ()),
        (Recompute("full", "uniform", 1),) if row["recompute"] == "full" else (),
        NETWORK_BYTES_PER_S.get(source, UNTOLD_NETWORK_BYTES_PER_S), DEVICES_PER_HOST.get(source, 8),
        "SUSPECT" in row["note"] or "FROM MEMORY" in row["note"],
        "FSDP" in row["note"] or "ZeRO-3" in row["source"],
    )  # fmt: skip


def _shape(row: dict[str, str], source: str) -> ModelShape:
    layers, hidden, heads, ffn, vocab = (int(row[key]) for key in ("layers", "hidden", "heads", "ffn", "vocab"))
    gated = source in ("SimuMax", "InternEvo", "torchtitan")
    norm = "RMSNorm" if gated else "LayerNorm"
    kv_heads = int(row["kv_heads"] or heads)
    return ModelShape(
        layers, hidden, heads, kv_heads, hidden // heads, ffn, vocab, tied=source == "llm-foundry",
        norm="RMSNorm" if norm == "RMSNorm" else "LayerNorm", gated=gated,
    )  # fmt: skip


def _parts(row: dict[str, str], layers: int, num_stages: int) -> list[Work]:
    """Layers of each stage: as told (ends of the model counted as layers), else even."""
    told = re.search(r"incl emb\+head\)=([\d/]+)", row["note"])
    counts = [layers // num_stages + (i < layers % num_stages) for i in range(num_stages)]
    if told and sum(map(int, told[1].split("/"))) == layers + 2:
        counts = list(map(int, told[1].split("/")))
        counts[0] -= 1
        counts[-1] -= 1
    begins = [sum(counts[:i]) for i in range(num_stages)]
    return [
        Work(begin, begin + count, i == 0, i == num_stages - 1)
        for i, (begin, count) in enumerate(zip(begins, counts, strict=True))
    ]
