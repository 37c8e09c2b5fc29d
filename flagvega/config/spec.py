"""The spec: what the user asked for, after composing, before any decision. Frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Task:
    """``experiment.task``: what is to be done, and by which engine."""

    type: Literal["train", "serve", "inference"] = "train"
    """What to do."""
    backend: str = "megatron"
    """The engine that trains, or that infers (then `vllm`). Services name theirs in `serve`."""
    entrypoint: str | None = None
    """FlagScale's training script: read, and replaced by the engine's own program."""


@dataclass(frozen=True)
class Deploy:
    """``experiment.runner.deploy``: FlagScale's words about an endpoint."""

    port: int | None = field(default=None, metadata={"minimum": 1, "maximum": 65535})
    """Port where clients ask: the gateway's, or that of a single instance, whatever its `engine_args` say."""
    prefill_decode_disaggregation: bool = False
    """Make instances that read prompts and others that write answers out of the one service."""
    prefill_num: int = field(default=1, metadata={"minimum": 1})
    """How many read."""
    decode_num: int = field(default=1, metadata={"minimum": 1})
    """How many write."""
    prefill_address: str | None = None
    """Host of those that read: only `auto`."""
    decode_address: str | None = None
    """Host of those that write: only `auto`."""
    prefill_decode_strategy: str | None = None
    """Read, and not used: instances are chosen by what they can do."""
    use_fs_serve: bool | None = None
    """Read, and not used: FlagScale's choice between Ray and vLLM's own server; here it is always the latter."""


@dataclass(frozen=True)
class Runner:
    """``experiment.runner``: where ranks start."""

    type: Literal["local", "ssh", "cloud"] = "local"
    """`local`: this machine. `ssh` and `cloud` are FlagScale's words for several hosts: the same command is
    typed on each of them."""
    backend: Literal["torchrun"] = "torchrun"
    """What starts the ranks of a host."""
    hostfile: str | None = None
    """A file with a line `host slots=8 type=A800` for each host."""
    nnodes: int = field(default=1, metadata={"minimum": 1})
    """Hosts of the run."""
    nproc_per_node: int | None = field(default=None, metadata={"minimum": 1})
    """Ranks of a host; without it, one for each device."""
    node_rank: int | None = field(default=None, metadata={"minimum": 0})
    """Which of the hosts this is, from 0."""
    master_addr: str | None = None
    """Name or address of host 0."""
    master_port: int | None = field(default=None, metadata={"minimum": 1, "maximum": 65535})
    """Port of host 0 where the others join; without it, a free one (one host) or the launcher's own."""
    deploy: Deploy | None = None
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"ours": True})
    """FlagScale's other keys, as they stand; nothing here acts on them."""


@dataclass(frozen=True)
class Commands:
    """``experiment.cmds``: the only shell text there is."""

    before_start: str = ""
    """Shell text run on each host before its ranks start, in the same shell."""
    after_stop: str = ""
    """Shell text run on each host after its ranks have ended."""


Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True)
class Service:
    """A model behind an engine, in one or several instances alike."""

    name: str
    engine: str
    arguments: Mapping[str, Any]
    """Engine arguments that the user gave, of the types that the engine's keys have."""
    num_replicas: int = 1
    chip: str | None = None
    role: Role = "both"
    """What its instances do of a request: read the prompt, write the answer, or both."""
    capacity: Mapping[str, float] = field(default_factory=dict)
    """What the user says of an instance: ``prefill_tokens_per_s``, ``decode_tokens_per_s``, ``step_s``."""
    traffic: Mapping[str, Any] = field(default_factory=dict)
    """What its own ``profile`` says that clients ask, in the form of the block ``traffic``."""

    @property
    def tp(self) -> int:
        """Devices over which matrices are cut."""
        return int(self.arguments.get("tensor_parallel_size") or 1)

    @property
    def pp(self) -> int:
        """Devices over which layers are cut."""
        return int(self.arguments.get("pipeline_parallel_size") or 1)

    @property
    def num_devices(self) -> int:
        """Devices of an instance."""
        return self.tp * self.pp


@dataclass(frozen=True)
class Spec:
    """One experiment and its task."""

    name: str
    exp_dir: Path
    task: Task
    runner: Runner
    envs: Mapping[str, str]
    cmds: Commands
    arguments: Mapping[str, Any]
    """Engine arguments that the user gave, flat, hyphens as ``_``, of the types that the engine's keys have."""
    blocks: Mapping[str, Mapping[str, Any]]
    """Those of our own top-level blocks that were given; keys left out have their defaults, None is left out."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Key path (``train.model.num_layers``) or argument (``num_layers``) -> ``file:line key.path``."""
    composed: Mapping[str, Any] = field(default_factory=dict)
    """The whole configuration as composed, references unresolved, secrets redacted: what may be written to a file."""
    services: tuple[Service, ...] = ()
    """What is served; empty where something is trained."""
    generate: Mapping[str, Any] = field(default_factory=dict)
    """Of an inference: ``prompts`` and ``sampling``."""
    warnings: tuple[str, ...] = ()
    folder: Path = Path()
    """Where the experiment's YAML is: files that it names are looked for here too."""
