"""``action=dryrun``: everything that would run, and nothing runs.

All it writes is that the engine's own classes took the configuration, in the run directory.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any

from rich.console import RenderableType

from flagvega.actions import serve
from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import Decision, decide
from flagvega.actions.meeting import installed_version
from flagvega.config.redact import REDACTED, is_secret
from flagvega.errors import ConfigError
from flagvega.launch.script import command, render
from flagvega.layout.codec import plan_to_json
from flagvega.records import read_json, write_json
from flagvega.report.tables import cluster_table, plan_table

CONSTRUCTED = "job/constructed.json"
"""The last configuration that the engine's classes took, by its hash."""


def act(call: Call) -> Answer:
    """The cluster, the plan, and the scripts to the letter."""
    if call.serves:
        return serve.dryrun(call)
    decision = decide(call)
    if call.flag("construct", default=True):
        _construct(call, decision)
    return Answer(_document(decision), _shown(decision))


def _construct(call: Call, decision: Decision) -> None:
    """Ask the engine's own classes; once for every configuration, since it takes seconds."""
    file = decision.launch.run_dir / CONSTRUCTED
    versions = [(package, installed_version(package)) for package in ("torch", "megatron-core")]
    asked = json.dumps([versions, decision.launch.job.files], sort_keys=True)
    key = hashlib.sha256(asked.encode()).hexdigest()
    with suppress(OSError, ValueError):
        if read_json(file) == key:
            return
    if faults := call.engine.construct(decision.spec, decision.plan):
        raise ConfigError(faults)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, key)


def _document(decision: Decision) -> dict[str, Any]:
    launch = decision.launch
    return {
        "name": decision.spec.name,
        "run_dir": str(launch.run_dir),
        "warnings": list(decision.warnings),
        "cluster": [{"host": node.host, "devices": list(node.devices)} for node in decision.cluster.nodes],
        "plan": plan_to_json(decision.plan),
        "commands": [
            {
                "node": node.node,
                "host": node.host,
                "ranks": list(launch.ranks[i]),
                "argv": command(launch, i),
                "env": {name: REDACTED if is_secret(name) else value for name, value in node.env.items()},
            }
            for i, node in enumerate(launch.job.nodes)
        ],
        "files": render(launch),
    }


def _shown(decision: Decision) -> tuple[RenderableType | str, ...]:
    launch = decision.launch
    scripts = [
        f"\n--- {launch.run_dir / name}\n{text}" for name, text in render(launch).items() if name.endswith(".sh")
    ]
    data = ", ".join(name for name in render(launch) if not name.endswith(".sh"))
    return (
        cluster_table(decision.cluster),
        plan_table(decision.plan),
        *scripts,
        f"beside these: {data} (output=json shows them)",
        "Nothing was started.",
    )
