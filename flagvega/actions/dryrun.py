"""``action=dryrun``: everything that would run, and nothing runs or is written."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import Decision, decide
from flagvega.config.redact import REDACTED, is_secret
from flagvega.errors import ConfigError
from flagvega.launch.script import command, render
from flagvega.layout.codec import plan_to_json
from flagvega.report.tables import cluster_table, plan_table


def act(call: Call) -> Answer:
    """The cluster, the plan, and the scripts to the letter."""
    decision = decide(call)
    if call.flag("construct", default=True) and (faults := call.engine.construct(decision.spec, decision.plan)):
        raise ConfigError(faults)
    return Answer(_document(decision), _shown(decision))


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
                "ranks": list(launch.ranks[node.node]),
                "argv": command(launch, node),
                "env": {name: REDACTED if is_secret(name) else value for name, value in node.env.items()},
            }
            for node in launch.job.nodes
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
        "Nothing was started or written.",
    )
