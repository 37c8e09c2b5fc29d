"""What the gateway is told: a JSON file, read whole and refused with all of its faults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flagvega.config.fields import read
from flagvega.config.report import Report
from flagvega.config.spec import Role
from flagvega.errors import ConfigError, Fault
from flagvega.serve.curve import DEFAULT_SLOTS


@dataclass(frozen=True)
class InstanceSettings:
    """An instance behind the gateway."""

    id: int
    url: str
    """``http://host:port`` of its OpenAI-compatible server."""
    chip: str = ""
    """What it runs on; shown only."""
    role: Role = "both"
    """What it does of a request: `prefill` reads the prompt, `decode` writes the answer."""
    slots: int = field(default=DEFAULT_SLOTS, metadata={"minimum": 1})
    """Requests that it works on at once (vLLM: `max_num_seqs`); more wait inside it."""
    prefill_tokens_per_s: float | None = field(default=None, metadata={"minimum": 1})
    """Measured alone. Learned from what it serves when not given."""
    decode_tokens_per_s: float | None = field(default=None, metadata={"minimum": 1})
    """Measured alone, of all slots together. Learned from what it serves when not given."""
    step_s: float | None = None
    """Measured time per token of a request that is alone; without it, that of full slots."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for, and how long it may take to do so."""

    body_bytes: int = field(default=16 << 20, metadata={"minimum": 1024})
    """Size of a request's body; larger ones are answered 413."""
    prompt_tokens: int | None = field(default=None, metadata={"minimum": 1})
    """Tokens of a prompt, as estimated; without it, what the instances say they can hold."""
    answers: int = field(default=1024, metadata={"minimum": 1})
    """Answers to one request, prompts times `n`; more are answered 400."""
    connections: int = field(default=16_384, metadata={"minimum": 1})
    """Connections of clients at once; those beyond are closed."""
    header_s: float = field(default=60.0)
    """A connection that has sent no whole head of a request by then is closed."""
    body_s: float = field(default=60.0)
    """A request whose body is not there by then is answered 408."""
    idle_s: float = field(default=75.0)
    """A connection without a request is kept so long."""


@dataclass(frozen=True)
class Waiting:
    """How long things may take before they are given up."""

    first_token_s: float = field(default=60.0)
    """A request that is expected to wait longer than this for its first token is refused at once."""
    silence_s: float = field(default=300.0)
    """An answer in which nothing has come for so long is broken off."""
    connect_s: float = field(default=5.0)
    """For a connection to an instance."""
    attempts: int = field(default=3, metadata={"minimum": 1})
    """Instances that a request is tried on before it is given up."""
    drain_s: float = field(default=60.0)
    """What is being answered has so long to end when the gateway is asked to stop."""


@dataclass(frozen=True)
class Probing:
    """How it is known whether an instance serves."""

    interval_s: float = field(default=1.0)
    """Between two looks at `/health`."""
    health_s: float = field(default=2.0)
    """`/health` must answer within this."""
    completion_s: float = field(default=30.0)
    """A completion of one token must be there within this; asked of an instance that gives no tokens by itself."""
    completion_every_s: float = field(default=15.0)
    """An instance that gave no token for so long is asked for one."""
    stall_s: float = field(default=15.0)
    """An instance that works on streams and gives no token for so long, nor a completion when asked, is ejected."""
    failures: int = field(default=3, metadata={"minimum": 1})
    """So many failed looks in a row eject an instance; one that refuses connections is ejected at once."""
    slow_start_s: float = field(default=10.0)
    """A new instance gets its full share of requests after this; 0: at once."""


@dataclass(frozen=True)
class Settings:
    """The gateway's JSON file."""

    instances: tuple[InstanceSettings, ...]
    host: str = "127.0.0.1"
    """Address to listen at; anything else than this machine's own is reachable by others."""
    port: int = field(default=8080, metadata={"minimum": 0, "maximum": 65535})
    """0: any that is free; the status file tells which."""
    run_dir: str | None = None
    """Where records are written: `serve/gateway.json` (status) and `serve/gateway.jsonl` (one line a while)."""
    record_s: float = field(default=5.0)
    """Time between two records."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key which clients must show."""
    admin_key_env: str | None = None
    """Name of the environment variable that holds the key of `POST /drain`; without it, nobody may."""
    instance_key_env: str | None = None
    """Name of the environment variable that holds the key which the instances ask for."""
    limits: Limits = field(default_factory=Limits)
    waiting: Waiting = field(default_factory=Waiting)
    probing: Probing = field(default_factory=Probing)


def read_settings(path: Path, env: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a file.

    :raises ConfigError: with everything that is wrong with it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(Fault(f"cannot be read: {error.strerror}", str(path))) from error
    except ValueError as error:
        raise ConfigError(Fault(f"not JSON: {error}", str(path))) from error
    return check_settings(value, str(path), env)


def check_settings(value: Any, name: str, env: Mapping[str, str] = os.environ) -> Settings:
    """A JSON value as settings; ``name`` is what its faults call it."""
    report = Report({})
    settings = read(Settings, value, name, report)
    if settings:
        _check_instances(settings, name, report)
        for key in ("api_key_env", "admin_key_env", "instance_key_env"):
            variable = getattr(settings, key)
            if variable and not env.get(variable):
                report.fault(f"{name}.{key}", f"the environment has no {variable}", "set it, or leave the key out")
    report.raise_faults()
    assert settings
    return settings


def _check_instances(settings: Settings, name: str, report: Report) -> None:
    if not settings.instances:
        report.fault(f"{name}.instances", "there is none", "give at least one: {id: 0, url: http://127.0.0.1:8000}")
    seen: set[int] = set()
    for i, instance in enumerate(settings.instances):
        where = f"{name}.instances[{i}]"
        if instance.id in seen:
            report.fault(f"{where}.id", f"{instance.id} is the id of two instances", "number them")
        seen.add(instance.id)
        parts = urlsplit(instance.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            report.fault(f"{where}.url", f"'{instance.url}' is no server's address", "write http://host:port")
