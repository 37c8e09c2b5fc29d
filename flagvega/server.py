"""What an engine that serves must offer, and the registry that finds them. No engine is named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flagvega.config.spec import Service, Spec
from flagvega.engine import Backend
from flagvega.errors import Fault
from flagvega.layout.serving import Instance
from flagvega.registry import Registry


@dataclass(frozen=True)
class Command:
    """The process of one instance."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    """What clients call the model."""
    start_s: float = 1800
    """It is given up when it does not answer within this."""
    hang_s: float = 120
    """Once it has served, it is ended and started again when its ``/health`` has not answered for this long."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """What its ``/metrics`` calls these, any of which may be missing: ``running``, ``waiting``, ``kv_share``,
    ``requests``, ``prompt_tokens``, ``output_tokens``, ``prefix_queries``, ``prefix_hits``, ``first_token_s``,
    ``per_token_s``; and ``cache_tokens``, a label: the tokens that its cache holds."""


class Server(Backend, Protocol):
    """The control side of an engine that serves: an OpenAI-compatible server per instance."""

    def check_plan(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[Fault]:
        """What the chips that the instances are on cannot do."""

    def check_files(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[Fault]:
        """Models that are not on this host, or that those chips do not compute; not asked by a dry run."""

    def warnings(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[str]:
        """What a user should know and nothing stops at."""

    def shares(self, service: Service, services: Sequence[Service]) -> bool:
        """Whether others of the ``services`` read prompts for its instances, or write answers after them."""

    def command(self, service: Service, instance: Instance, num_on_host: int, handover: Path | None = None) -> Command:
        """What starts an instance, of ``num_on_host`` that share its host.

        ``handover`` is a folder for what passes between instances that share requests; None: it does all of its own.
        """

    def bench(self) -> Command:
        """What starts the engine's own benchmark, which :class:`flagvega.serve.load.Bench` talks to.

        A line on stdin is a load, ``{"url", "model", "tokenizer", "requests": [[at_s, input_tokens, output_tokens],
        ...], "concurrency"}``; without ``concurrency`` each request is sent at its time. The first line on stdout says
        that it can take loads, each further one what came of one: ``{"answers", "duration_s"}`` with the fields of
        :class:`flagvega.serve.traffic.Answered` for every request in order, or ``{"error"}``.
        """


servers: Registry[Server] = Registry("server", folder="backends", module="server", group="flagvega.servers")
