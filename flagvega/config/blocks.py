"""The top level of our YAML: the experiment and our own blocks. The text under a field is its documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flagvega.config.spec import Commands, Deploy, Runner, Task


@dataclass(frozen=True)
class TuneControl:
    """``experiment.auto_tuner.control``: how long to measure, and when to stop."""

    train_iters: int = field(default=5, metadata={"minimum": 2})
    """Steps of a trial that are measured before it may be judged."""
    warmup_iters: int = field(default=2, metadata={"minimum": 0})
    """Steps of a trial that are taken before and not measured."""
    max_iters: int = field(default=20, metadata={"minimum": 2})
    """Steps that are measured at most, while the step is not certain enough."""
    confidence: float = 0.02
    """A trial is certain enough when its typical step is known to this share of it (95 % confidence)."""
    max_time_per_task: int = field(default=300, metadata={"minimum": 1})
    """Seconds that a trial may take, its start included; one that takes more counts as hanging."""
    max_time: int | None = field(default=None, metadata={"minimum": 1})
    """Seconds that all trials may take together."""
    min_trials: int = field(default=5, metadata={"minimum": 1})
    """Trials at least, even where none that is left is likely to be faster."""
    max_trials: int | None = field(default=None, metadata={"minimum": 1})
    """Trials at most."""
    patience: int | None = field(default=8, metadata={"minimum": 1})
    """Trials in a row without a better one after which the search ends; `grid` has none."""
    parallel: int = field(default=1, metadata={"minimum": 1})
    """Trials side by side: the hosts of the cluster are so many groups alike, in their order, and each trial is on one
    of them. The search is then for the best configuration of one group."""
    interval: int = field(default=10, metadata={"minimum": 1})
    """FlagScale's seconds between two looks at a trial: read, and not used."""
    run_best: bool = True
    """Start the best configuration when the search has ended."""


@dataclass(frozen=True)
class TuneAlgo:
    """``experiment.auto_tuner.algo``: in which order candidates are tried."""

    name: Literal["guided", "grid", "random", "optuna"] = "guided"
    """`guided`: what the planner predicts, corrected by every trial. `grid`: all of them, in FlagScale's order.
    `optuna`: Optuna's sampler, for spaces that the planner knows nothing about."""
    priority: Literal["memory", "performance"] | None = None
    """Of `grid`: begin with what needs least memory, or with what FlagScale takes to be fastest."""
    seed: int = 0
    """Of `random` and `optuna`."""


@dataclass(frozen=True)
class TunePerformance:
    """``experiment.auto_tuner.performance``: FlagScale's words; seconds per sample are always what counts."""

    name: str | None = None
    """A pattern to find in logs: read, and not used."""
    order: Literal["ascend", "descend"] = "ascend"
    """Read, and not used."""


@dataclass(frozen=True)
class TuneMemory:
    """``experiment.auto_tuner.memory_model``: what may be tried as far as memory goes."""

    model_name: str = "default"
    """FlagScale's name of its model: read, and not used."""
    gpu_memory: int | None = field(default=None, metadata={"minimum": 1})
    """Memory of a device in MB, where it is less than the chip's."""
    gpu_utilization: tuple[float, ...] = ()
    """Smallest and largest share of the memory that a candidate may be predicted to fill."""


@dataclass(frozen=True)
class AutoTuner:
    """``experiment.auto_tuner``: what `action=auto_tune` may change, and how it goes about it."""

    space: Mapping[str, Any] = field(default_factory=dict)
    """Dimensions: a name with a list of values, a range `{from: 1, to: 8, step: 1}` (or `factor: 2`), one value, or
    `auto`. The names: see [tuning](tune.md)."""
    control: TuneControl = field(default_factory=TuneControl)
    algo: TuneAlgo = field(default_factory=TuneAlgo)
    performance: TunePerformance = field(default_factory=TunePerformance)
    memory_model: TuneMemory = field(default_factory=TuneMemory)


@dataclass(frozen=True)
class Experiment:
    """``experiment``: the run as a whole."""

    exp_name: str
    """Name of the experiment."""
    exp_dir: str | None = None
    """Folder of everything that the run writes, relative to the working directory; `outputs/<exp_name>` when left
    out."""
    task: Task = field(default_factory=Task)
    runner: Runner = field(default_factory=Runner)
    envs: Mapping[str, Any] = field(default_factory=dict)
    """Environment variables of every rank. A secret belongs into your own environment, never in here."""
    cmds: Commands = field(default_factory=Commands)
    deploy: Deploy | None = None
    """Where FlagScale 0.8 has `runner.deploy`."""
    auto_tuner: AutoTuner | None = None


@dataclass(frozen=True)
class Keep:
    """One entry of ``plan.keep``: a mesh that stays as it is, wherever its chip comes in the pipeline."""

    chip: str | None = None
    """Kind of its devices; beside `plan`, only the mesh of this chip is kept."""
    plan: str | None = None
    """A `plan.json` whose meshes are kept, instead of degrees."""
    tp: int = field(default=1, metadata={"minimum": 1})
    """Tensor parallelism."""
    cp: int = field(default=1, metadata={"minimum": 1})
    """Context parallelism."""
    ep: int = field(default=1, metadata={"minimum": 1})
    """Expert parallelism."""
    etp: int | None = field(default=None, metadata={"minimum": 1})
    """Tensor parallelism of experts; without it, that of the rest."""
    dp: int = field(default=1, metadata={"minimum": 1})
    """Data parallelism."""
    pp: int = field(default=1, metadata={"minimum": 1})
    """Stages."""


@dataclass(frozen=True)
class PlanBlock:
    """``plan``: a layout, or `auto`; `plan: <path>` is short for its `file`. Services use a few of its keys."""

    file: str | None = None
    """A `plan.json`, relative to the working directory; `auto` has the layout chosen."""
    time_s: int = field(default=10, metadata={"minimum": 1})
    """Seconds that the search for a layout may take; the gap that is left is printed."""
    profile: str | None = None
    """Measured costs to go by, JSON or CSV (see [the planner](planner.md)), relative to the working directory;
    without it, `profile.json` of the run's folder where it fits, else data sheets. Of a service: what its instances
    can do, and `serve_profile.json` of the folder without it (see [serving](serve.md))."""
    objective: Literal["time", "cost", "goodput"] | None = None
    """What the chosen layout has least of: `time` (the default) or `cost` of a step (`price_per_hour` of the nodes).
    Of a service: `goodput` (the default), the most requests within their targets, or `cost`, the cheapest that holds
    them."""
    top_k: int = field(default=4, metadata={"minimum": 1, "maximum": 100})
    """How many shapes to tell of: the chosen one and the best others, each with what keeps it slower."""
    max_tp: int | None = field(default=None, metadata={"minimum": 1})
    """The most tensor parallelism that may be chosen."""
    order: tuple[str, ...] = ()
    """All chips of the cluster in the order that they may come in the pipeline; a layout may leave some out."""
    nodes: tuple[str, ...] = ()
    """The hosts that may be used; without it, all."""
    keep: tuple[Keep, ...] = ()
    """Meshes that stay as they are: the rest is chosen around them."""


@dataclass(frozen=True)
class ClusterNode:
    """One entry of ``cluster.nodes``."""

    chip: str
    """Kind of the devices: the name or alias of a chip."""
    devices: int = field(default=1, metadata={"minimum": 1})
    """Devices of that kind on the host."""
    host: str = "localhost"
    """Name of the host; entries of one host are put together in order."""
    count: int = field(default=1, metadata={"minimum": 1})
    """How many hosts like this there are; above 1 their names are `<host>-0`, `<host>-1` and so on."""
    hosts: tuple[str, ...] = ()
    """The names of several hosts like this, instead of `host` and `count`."""
    memory_gib: float | None = None
    """Memory of a device, where the planner knows none or it differs."""
    tflops: float | None = None
    """Dense peak of a device in the element type of the run, in TFLOP/s; likewise."""
    bandwidth_gb_s: float | None = None
    """Memory bandwidth of a device; likewise."""
    link_gb_s: float | None = None
    """Between devices of the host, each and in one direction; likewise."""
    network_gb_s: float | None = None
    """Network of the host, for each of its devices and in one direction."""
    price_per_hour: float | None = None
    """Of one device, in any currency."""


@dataclass(frozen=True)
class ClusterLink:
    """One entry of ``cluster.links``."""

    between: tuple[str, ...]
    """Two kinds of chips."""
    gb_s: float
    """For each device, in one direction."""
    latency_us: float = 50.0
    """Start-up of a message."""


@dataclass(frozen=True)
class ClusterBlock:
    """``cluster``: the machines, when they are not to be detected; `cluster: <path>` is short for its `file`."""

    file: str | None = None
    """A YAML file with the other keys of this block, relative to the working directory."""
    nodes: tuple[ClusterNode, ...] = ()
    """Hosts with their devices, in order."""
    links: tuple[ClusterLink, ...] = ()
    """Between kinds of chips, where it is not the slower of their networks."""


@dataclass(frozen=True)
class BridgeBlock:
    """``bridge``: the transport between meshes of unlike chips."""

    wire_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Element type on the wire; without it, that of the activations, and nothing is lost."""
    chunk_bytes: int = field(default=0, metadata={"minimum": 0})
    """Size in bytes of the pieces that a transfer is cut into; 0 sends it whole."""
    slow_boundaries: tuple[int, ...] | None = field(default=None, metadata={"minimum": 0})
    """Boundaries (0 is between stages 0 and 1) that keep one more micro-batch in flight to hide the transfer;
    without it, those between unlike chips."""


@dataclass(frozen=True)
class GatewayBlock:
    """``gateway``: one endpoint in front of all instances of a serving run; with several instances there always is."""

    host: str = "127.0.0.1"
    """Address to listen at; anything else than this machine's own is reachable by others."""
    port: int = field(default=8080, metadata={"minimum": 1, "maximum": 65535})
    """Port to listen at."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key which clients must show."""
    admin_key_env: str | None = None
    """Name of the environment variable that holds the key of `POST /drain`; without it, nobody may."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """What a client may ask for: [serve.md](serve.md)."""
    waiting: Mapping[str, Any] = field(default_factory=dict)
    """How long things may take: [serve.md](serve.md)."""
    probing: Mapping[str, Any] = field(default_factory=dict)
    """How it is known whether an instance serves: [serve.md](serve.md)."""


@dataclass(frozen=True)
class TargetsBlock:
    """``traffic.targets``: what clients bear; a target left out is none."""

    first_token_s: float | None = None
    """Seconds to the first token of an answer."""
    per_token_s: float | None = None
    """Seconds between its tokens, on average over the answer."""
    share: float = 0.99
    """Of all requests: so many are to meet the targets."""


@dataclass(frozen=True)
class TrafficBlock:
    """``traffic``: what clients ask of a service, for `action=plan` and `action=auto_tune`."""

    rate_per_s: float | None = None
    """Requests a second, arriving at random."""
    concurrency: int | None = field(default=None, metadata={"minimum": 1})
    """Requests in flight, each followed by the next; instead of a rate, and not for a plan."""
    input_tokens: Any = 512
    """Length of prompts: a number, `{from: 64, to: 256}`, `{median: 200, p99: 900}` (log-normal), or
    `{values: [64, 512], weights: [3, 1]}`."""
    output_tokens: Any = 128
    """Length of answers, likewise."""
    num_requests: int = field(default=200, metadata={"minimum": 1})
    """Requests of a measurement."""
    seed: int = 0
    """Of arrivals and lengths."""
    targets: TargetsBlock = field(default_factory=TargetsBlock)


BLOCKS: Mapping[str, type] = {
    "plan": PlanBlock,
    "cluster": ClusterBlock,
    "bridge": BridgeBlock,
    "gateway": GatewayBlock,
    "traffic": TrafficBlock,
}
"""Our own top-level blocks by name."""

LATER: Mapping[str, str] = {
    "profile": "tracing kernels is not there yet (action=profile measures without a block)",
    "report": "reports have no settings yet",
}
"""Blocks that are ours but have no keys yet, and why."""

SHORTHANDS: Mapping[str, str] = {"plan": "file", "cluster": "file"}
"""Blocks that may be written as one value: the key that it stands for."""
