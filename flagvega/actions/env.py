"""``action=env``: chips, drivers, versions and links of this host; or a cluster file from those of several."""

from __future__ import annotations

from pathlib import Path

from flagvega.actions.call import Answer, Call
from flagvega.cluster.merge import merge_hosts, render_cluster
from flagvega.cluster.probe import facts_to_json, probe_host, render_facts


def act(call: Call) -> Answer:
    """What is here; needs no configuration."""
    if files := call.command.options.get("merge"):
        entries = merge_hosts([Path(name.strip()) for name in files.strip("[]").split(",") if name.strip()])
        return Answer({"nodes": entries}, (render_cluster(entries),))
    facts = probe_host()
    return Answer(facts_to_json(facts), (render_facts(facts),))
