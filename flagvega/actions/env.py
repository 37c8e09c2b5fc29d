"""``action=env``: chips, drivers, versions and links of this host."""

from __future__ import annotations

from flagvega.actions.call import Answer, Call
from flagvega.cluster.probe import facts_to_json, probe_host, render_facts


def act(call: Call) -> Answer:
    """What is here; needs no configuration."""
    facts = probe_host()
    return Answer(facts_to_json(facts), (render_facts(facts),))
