"""``action=run``: start, and follow to the end or return at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagvega.actions import serve
from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import Decision, check_shared, decide
from flagvega.actions.follow import environment, follow, next_commands, ready, summary
from flagvega.actions.meeting import say_commands
from flagvega.report.progress import duration
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.prepare import start_detached

GO_ON = "raise train_iters (or train_samples) to go on, or give another experiment.exp_dir to begin anew"


def act(call: Call) -> Answer:
    """Run it; the exit code is the job's."""
    if call.serves:
        return serve.run(call)
    check_shared(call.spec)
    return start(call, decide(call))


def start(call: Call, decision: Decision) -> Answer:
    """Start what is decided, and follow it; nothing where nothing is left."""
    step = call.engine.finished_step(decision.spec, decision.plan)
    if step is not None:
        return _finished(decision, step)
    say_commands(decision.spec, decision.launch, call.say)
    directory = ready(call, decision)
    if call.flag("detach"):
        return _started(directory, start_detached(directory, environment(decision)))
    call.say(f"run in {directory.root}")
    run, progress = follow(call, decision, directory)
    facts = summary(run, progress, directory)
    return Answer(facts, _ended(run, facts), run.exit_code or 0)


def _finished(decision: Decision, step: int) -> Answer:
    root = decision.launch.run_dir
    document = {"run_dir": str(root), "state": "done", "exit_code": 0, "start_step": step, "nothing_left": True}
    line = f"nothing was started: {decision.spec.name} was finished already, at step {step}: {GO_ON}"
    return Answer(document, (line,))


def _started(directory: RunDirectory, run: Run) -> Answer:
    commands = next_commands(directory.root)
    document = {"run_id": run.run_id, "run_dir": str(directory.root), "state": run.state, "next": commands}
    return Answer(document, (f"run {run.run_id} started in {directory.root}", *_listed(commands)))


def _ended(run: Run, facts: Mapping[str, Any]) -> tuple[str, ...]:
    took = duration((run.ended or run.started) - run.started)
    lines = [f"run {run.run_id} {run.state} with exit code {run.exit_code} after {took}"]
    lines += [run.reason] if run.exit_code else []
    if facts["steps"]:
        mfu = f", MFU {facts['mfu']:.1%}" if facts["mfu"] else ""
        loss = f"loss {facts['first_loss']:.4f} -> {facts['loss']:.4f}"
        lines.append(f"step {facts['steps']}, {loss}, {facts['tokens_per_s']:,.0f} tokens/s{mfu}")
    lines += run.notes
    return (*lines, *_listed({name: line for name, line in facts["next"].items() if name != "stop"}))


def _listed(commands: Mapping[str, str]) -> list[str]:
    return [f"  {name:<7} {command}" for name, command in commands.items()]
