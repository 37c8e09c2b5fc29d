"""Published runs as planning problems: reads tests/data/measured_training.csv, says what is left out and why."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
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
from flagvega.platform import Chip, find_chip
from tools.bench.measured_models import (
    CHIPS,
    DTYPES,
    FAMILIES,
    MODELS,
    NVLINK_DOMAIN,
    SOURCES,
    WITHOUT_HEAD,
    Extra,
    Source,
)

TABLE = Path(__file__).parents[2] / "tests" / "data" / "measured_training.csv"
TIMES = ("iter_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu")
MEMORIES = {"peak_alloc_gib": 2.0**30, "peak_mem_bytes_max_over_gpus": 1.0}


@dataclass(frozen=True)
class Constants:
    """What predictions are made with: the planner's table, and what only an engine that flagvega does not run has."""

    table: Calibration
    launch_s: float = 0.0
    """Start-up of one layer's kernels on such an engine, in a forward pass."""
    runtime_bytes: float = 0.0
    """What its runtime takes of a device, where a figure counts everything."""


@dataclass(frozen=True)
class Run:
    """One published figure and the run it was seen on."""

    source: str
    model: str
    family: str
    release: str
    """Of the software, where the source names one: later ones are greater."""
    chip: str
    dtype: str
    """As the products ran: ``tf32`` where fp32 rates exceed what the chip has without it."""
    metric: str
    value: float
    """Seconds of a step, or bytes of the fullest device."""
    work: Workload
    candidate: Candidate
    recompute: tuple[Recompute, ...]
    num_chunks: int
    """Of a stage; more than one is an interleaved schedule."""
    engine: Source
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

    def predict(self, constants: Constants) -> float:
        """The same figure by the cost model."""
        outlook = self.look(constants)
        if self.metric == "time":
            return outlook.total_s - self._filled_s(outlook)
        held = max(stage.memory.total - stage.memory.context for stage in outlook.stages)
        return held + (constants.runtime_bytes if self.engine.is_foreign else 0.0)

    def _filled_s(self, outlook: Outlook) -> float:
        """What of the bubble an interleaved schedule fills: all but one of ``num_chunks`` parts."""
        slowest = max(outlook.pipeline.num_micro_batches * stage.time_s for stage in outlook.stages)
        tail = max(stage.reduction_s for stage in outlook.stages) + max(s.optimizer_s for s in outlook.stages)
        return max(0.0, outlook.total_s - slowest - tail) * (1 - 1 / self.num_chunks)

    def look(self, constants: Constants) -> Outlook:
        """The run, costed and simulated."""
        facts = _facts(self.chip)
        peaks, link = facts.peak_flops or {}, facts.link_bytes_per_s
        memory, bandwidth = facts.memory_bytes, facts.memory_bytes_per_s
        assert memory is not None
        assert bandwidth is not None
        assert link is not None
        host = self.devices_per_host
        group = Group(
            self.chip, (host,) * -(-self.num_devices // host), memory, peaks[self.dtype], bandwidth,
            Link(LINK_LATENCY_S, link), Link(NETWORK_LATENCY_S, self.engine.network_bytes_per_s),
        )  # fmt: skip
        machine = Machine((group,))
        table, key = constants.table, (self.chip, self.work.dtype)
        attention = table.attention_of(self.chip, self.dtype)
        if self.dtype == "fp8":
            attention *= peaks["bf16"] / peaks["fp8"]
        table = replace(
            table, efficiency={key: table.efficiency_of(self.chip, self.dtype)}, attention={key: attention},
            launch_s=constants.launch_s if self.engine.is_foreign else table.launch_s,
        )  # fmt: skip
        sharded = self.engine.sharded_optimizer
        costs = AnalyticCosts(self.work, machine, sharded, table)
        choices = Choices(recompute=self.recompute, distributed_optimizer=sharded)
        problem = Problem(machine, self.work, choices, costs, lambda side: True)
        return look_at(self.candidate, problem)


@cache
def _facts(chip: str) -> Chip:
    return find_chip(chip)


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
    if row["dtype"] not in DTYPES or (source != "Megatron-Bridge" and DTYPES[row["dtype"]] == "fp8"):
        return "fp4, mixed element types, or fp8 of an engine that is fully sharded"
    if not row["micro_batch"] or not row["global_batch"] or not row["layers"]:
        return "shape or micro-batch not told"
    if row["ep"] not in ("", "1") and row["model"] not in MODELS:
        return "experts not told"
    if source == "Megatron-Bridge" and "Pre-Training" not in row["note"]:
        return "fine-tuning"
    if row["gpu"] not in CHIPS:
        return "no data sheet"
    if int(row["global_batch"]) % (int(row["micro_batch"]) * int(row["dp"])):
        return "the batch is not a multiple of micro-batch and replicas"
    return ""


def _run(row: dict[str, str], source: str) -> Run:
    engine, extra, chip = SOURCES.get(source, Source()), MODELS.get(row["model"]), CHIPS[row["gpu"]]
    shape = _shape(row, source, engine, extra)
    ran_in = DTYPES[row["dtype"]]
    dtype = "bf16" if ran_in == "fp8" else ran_in
    seq, batch, num = int(row["seq"]), int(row["global_batch"]), int(row["n_gpus"])
    tp, dp, cp, pp, ep = (int(row[key] or 1) for key in ("tp", "dp", "cp", "pp", "ep"))
    state = 8 if dtype == "fp32" else 12
    kernels = replace(engine.kernels, repeats_attention=row["recompute"] == "selective")
    work = Workload(shape, seq, dtype, batch, batch, engine.gradient_bytes, state, engine.overlaps_reduction, kernels)
    degrees = Degrees(tp=tp, cp=cp, ep=ep, dp=dp, sp=row["seq_parallel"] == "yes")
    stages = tuple((Side(0, degrees), part) for part in _parts(row, shape.layers, pp))
    value, metric = float(row["value"]), "time"
    if row["metric"] in MEMORIES:
        value, metric = value * MEMORIES[row["metric"]], "memory"
    elif row["metric"] == "tokens_per_s_per_gpu":
        value = batch * seq / (value * num)
    elif row["metric"] == "tflops_per_gpu":
        counted = 4 / 3 if row["recompute"] == "full" else 1.0
        value = counted * model_flops(shape, seq, batch) / (value * 1e12 * num)
    model = re.sub(r"[(].*", "", row["model"])
    return Run(
        source, model, FAMILIES.get(model, model), _release(row["source"]), chip,
        "tf32" if dtype == "fp32" else ran_in, metric, value, work, Candidate(int(row["micro_batch"]) * dp, stages, ()),
        (Recompute("full", "uniform", 1),) if row["recompute"] == "full" else (), int(row["vpp"] or 1),
        engine, NVLINK_DOMAIN.get(chip, engine.devices_per_host),
        "SUSPECT" in row["note"] or "FROM MEMORY" in row["note"], _is_fully_sharded(row),
    )  # fmt: skip


def _release(source: str) -> str:
    told = re.search(r"(\d\d\.\d\d(\.\d\d)?) NeMo", source)
    return told[1] if told else ""


def _is_fully_sharded(row: dict[str, str]) -> bool:
    """Megatron-Bridge writes the number of shards, 0 for none."""
    told = re.search(r"FSDP (\d+)", row["note"])
    return int(told[1]) > 0 if told else "FSDP" in row["note"] or "ZeRO-3" in row["source"]


def _shape(row: dict[str, str], source: str, engine: Source, extra: Extra | None) -> ModelShape:
    layers, hidden, heads, ffn, vocab = (int(row[key]) for key in ("layers", "hidden", "heads", "ffn", "vocab"))
    shape = ModelShape(
        layers, hidden, heads, int(row["kv_heads"] or heads), hidden // heads, ffn, vocab,
        tied=source == "llm-foundry", norm="RMSNorm" if engine.gated else "LayerNorm", gated=engine.gated,
        positions=int(row["seq"]) if source == "Sailor" else 0,
    )  # fmt: skip
    if extra is None:
        return shape
    experts = replace(extra.experts, layers=tuple(range(extra.dense_layers, layers)))
    return replace(shape, experts=experts, latent=extra.latent, head_dim=extra.head_dim or shape.head_dim)


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
        Work(begin, begin + count, i == 0, i == num_stages - 1 and row["model"] not in WITHOUT_HEAD)
        for i, (begin, count) in enumerate(zip(begins, counts, strict=True))
    ]
