"""``action=estimate``: time and memory of the layout in the YAML, without a search."""

from __future__ import annotations

from dataclasses import replace

from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import decide_plan
from flagvega.layout.codec import plan_to_json
from flagvega.plan.explain import binding, predict
from flagvega.plan.planner import estimate_plan
from flagvega.report.pictures import write_pictures
from flagvega.report.planning import memory_table, outlook_table, seconds


def act(call: Call) -> Answer:
    """Predict the plan that a run would have, and draw it."""
    spec, cluster, plan = decide_plan(call.spec, call.engine, call.console)
    outlook, problem = estimate_plan(spec, call.engine, cluster, plan)
    facts = predict(outlook, problem)
    title = f"{seconds(outlook.total_s)} a step, {facts['tokens_per_s']:,.0f} tokens/s, MFU {facts['mfu']:.1%}"
    full = [
        i for i, stage in enumerate(facts["stages"]) if stage["memory_bytes"]["total"] > stage["memory_limit_bytes"]
    ]
    lines = [
        f"limited by {binding(outlook, problem)}",
        *(f"stage {i} does not fit into its devices' memory" for i in full),
        f"predicted from {facts['source']}",
        *(f"assumed: {what}" for what in facts["assumed"]),
    ]
    tables = [outlook_table(outlook, problem, title), memory_table(outlook, problem)]
    pictures = write_pictures(spec.exp_dir, plan, outlook, problem, title, lines, tables)
    predicted = plan_to_json(replace(plan, predictions=facts))
    document = {"plan": predicted, "too_large": full, "pictures": list(pictures.files)}
    return Answer(document, (*tables, *lines, *pictures.lines))
