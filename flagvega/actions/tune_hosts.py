"""A search over several hosts: which of them this is, and what the others do while host 0 searches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flagvega.actions.call import Answer, Call
from flagvega.actions.follow import commands_by_host
from flagvega.cluster.source import find_cluster
from flagvega.errors import ConfigError, Fault, PreflightError
from flagvega.launch.rendezvous import Rendezvous, find_rendezvous
from flagvega.tune.folder import FOLDER
from flagvega.tune.measure import Limits
from flagvega.tune.question import Question
from flagvega.tune.turns import Follower

Trial = Callable[[Mapping[str, Any], Path, Limits, Callable[[], bool]], None]
"""Runs this host's part of a trial: of the candidate of a record, in a folder, within limits, while it is wanted."""
Best = Callable[[Mapping[str, Any]], Answer]
"""Runs this host's part of the best."""


def find_host(call: Call, question: Question) -> Rendezvous:
    """The hosts of every trial, and which of them this is; PreflightError when that cannot be told."""
    part = question.parts[0] if question.parts else None
    cluster = part.cluster if part else None
    if cluster is None:
        spec = part.spec if part else call.spec
        cluster = find_cluster(spec, call.engine.request(call.engine.settle(spec, None)))
    hosts = {i: node.host for i, node in enumerate(cluster.nodes) if node.devices}
    found = find_rendezvous(call.spec.runner, hosts, os.environ)
    if found.node is None:
        commands = commands_by_host(call.spec, found, hosts)
        fix = "\n    ".join(["type on each host, all with the same shared experiment.exp_dir:", *commands])
        raise PreflightError(Fault("this host is none of the search's", ", ".join(hosts.values()), fix))
    return found


def follow(call: Call, run_trial: Trial, run_best: Best) -> Answer:
    """Run this host's part of every trial that host 0 chooses, until it says that the search is over."""
    root = call.spec.exp_dir / FOLDER
    follower, num_trials = Follower(root), 0
    call.say(f"host 0 searches: this host runs its part of the trials in {root}")
    while True:
        turn = follower.next()
        if turn.kind == "over":
            call.say(f"the search is over: {turn.reason}")
            return Answer({"num_trials": num_trials, "ended": turn.reason}, (f"{num_trials} trials ran here",))
        assert turn.point is not None
        if turn.kind == "best":
            return run_best(turn.point)
        try:
            follower.rest()
            run_trial(turn.point, root / turn.folder, Limits(**(turn.limits or {})), follower.is_on)
        except ConfigError as error:
            call.say(f"{turn.folder}: {error.faults[0].what}")
        num_trials += 1
        follower.rest()
