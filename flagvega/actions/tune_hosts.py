"""A search over several hosts: which of them this is, what the others do while host 0 searches, and groups of hosts
that run trials side by side."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from flagvega.actions.call import Answer, Call
from flagvega.actions.meeting import commands_by_host
from flagvega.cluster.nodes import Node
from flagvega.cluster.source import find_cluster
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault, PreflightError
from flagvega.launch.join import TIMEOUT_S
from flagvega.launch.rendezvous import find_rendezvous
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.records import read_json, write_json
from flagvega.tune.folder import FOLDER
from flagvega.tune.measure import Limits
from flagvega.tune.study import Outcome, read_outcome_row
from flagvega.tune.turns import Follower, Leader

OUTCOME_FILE = "outcome.json"
"""In the folder of a trial: what the first host of another group found."""
POLL_S = 0.1
Trial = Callable[[Mapping[str, Any], Path, Limits, Callable[[], bool]], Outcome]
"""Runs this host's part of a trial: of the candidate of a record, in a folder, within limits, while it is wanted."""
Best = Callable[[Mapping[str, Any]], Answer]
"""Runs this host's part of the best."""


@dataclass(frozen=True)
class Place:
    """Where this host stands among those of a search."""

    num_groups: int = 1
    """That run trials side by side."""
    size: int = 1
    """Hosts of a group."""
    group: int = 0
    member: int = 0
    """Which host of its group this is."""

    @property
    def leads(self) -> bool:
        """Whether it is the one that searches."""
        return self.group == self.member == 0


def find_place(call: Call, num_groups: int) -> tuple[Place, Spec]:
    """Where this host stands, and the experiment of its group; PreflightError when it cannot be told."""
    spec = call.spec
    nodes = [node for node in find_cluster(spec, LayoutRequest((MeshRequest(),), 1, 1, 1)).nodes if node.devices]
    hosts = {i: node.host for i, node in enumerate(nodes)}
    size = len(nodes) // num_groups
    if num_groups == 1 and size == 1:
        return Place(), spec
    groups = [nodes[g * size : (g + 1) * size] for g in range(num_groups)]
    unlike = any([node.devices for node in group] != [node.devices for node in groups[0]] for group in groups)
    if len(nodes) % num_groups or unlike:
        where = spec.where.get("experiment.auto_tuner.control.parallel", "experiment.auto_tuner.control.parallel")
        what = f"the {len(nodes)} hosts of the cluster are not {num_groups} groups alike, in their order"
        raise ConfigError(Fault(what, where, "name alike hosts in cluster.nodes, group by group, or leave it out"))
    found = find_rendezvous(spec.runner, hosts, os.environ)
    if found.node is None:
        commands = commands_by_host(spec, found, hosts)
        fix = "\n    ".join(["type on each host, all with the same shared experiment.exp_dir:", *commands])
        raise PreflightError(Fault("this host is none of the search's", ", ".join(hosts.values()), fix))
    group, member = divmod(found.node, size)
    place = Place(num_groups, size, group, member)
    return place, spec if num_groups == 1 else _of_group(spec, groups[group], place)


def _of_group(spec: Spec, nodes: list[Node], place: Place) -> Spec:
    """The experiment on the hosts of a group alone."""
    entries = [
        {"host": node.host, "chip": chip, "devices": len(list(devices))}
        for node in nodes
        for chip, devices in groupby(node.devices)
    ]
    address = spec.runner.master_addr if place.group == 0 else nodes[0].host
    # Ranks of one host meet at any free port.
    port = spec.runner.master_port if place.size > 1 else None
    runner = replace(
        spec.runner, hostfile=None, nnodes=place.size, node_rank=place.member, master_addr=address, master_port=port
    )
    return replace(spec, runner=runner, blocks={**spec.blocks, "cluster": {"nodes": entries}})


def follow(call: Call, place: Place, run_trial: Trial, run_best: Best) -> Answer:
    """Run this host's part of every trial that host 0 chooses for its group, until the search is over."""
    root = call.spec.exp_dir / FOLDER
    follower, num_trials = Follower(root, place.group), 0
    call.say(f"host 0 searches: this host runs its part of the trials in {root}")
    while True:
        turn = follower.next()
        if turn.kind == "over":
            call.say(f"the search is over: {turn.reason}")
            return Answer({"num_trials": num_trials, "ended": turn.reason}, (f"{num_trials} trials ran here",))
        assert turn.point is not None
        if turn.kind == "best":
            return run_best(turn.point)
        folder = root / turn.folder
        follower.rest()
        try:
            outcome = run_trial(turn.point, folder, Limits(**(turn.limits or {})), follower.is_on)
        except ConfigError as error:
            call.say(f"{turn.folder}: {error.faults[0].what}")
            outcome = Outcome("refused", error.faults[0].what)
        except BaseException:
            follower.leave()
            raise
        if place.group and place.member == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / OUTCOME_FILE, asdict(outcome))
        num_trials += 1
        follower.rest()


class Groups:
    """Where host 0 runs trials: with its own group, or by telling another; a context manager."""

    def __init__(self, root: Path, place: Place) -> None:
        self._stack = ExitStack()
        self._leaders = {g: Leader(root, g) for g in range(place.num_groups) if g or place.size > 1}
        self._free: queue.Queue[int] = queue.Queue()
        for group in range(place.num_groups):
            self._free.put(group)

    def __enter__(self) -> Groups:
        for leader in self._leaders.values():
            self._stack.enter_context(leader)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def end(self, reason: str) -> None:
        """What the others will be told."""
        for leader in self._leaders.values():
            leader.reason = reason

    def best(self, point: Mapping[str, Any]) -> None:
        """Host 0's group runs the best now."""
        if 0 in self._leaders:
            self._leaders[0].best(point)

    def run(self, point: Mapping[str, Any], folder: Path, limits: Limits, here: Trial,
            is_wanted: Callable[[], bool]) -> Outcome:  # fmt: skip
        """Run a trial on a free group."""
        while True:
            group = self._free.get()
            if group in self._leaders:
                self._leaders[group].trial(folder, point, limits)
            if group == 0:
                try:
                    return here(point, folder, limits, is_wanted)
                finally:
                    self._free.put(group)
            outcome = self._await(group, folder / OUTCOME_FILE, limits.max_time_s + TIMEOUT_S, is_wanted)
            if outcome is not None:
                self._free.put(group)
                return outcome

    def _await(self, group: int, path: Path, timeout_s: float, is_wanted: Callable[[], bool]) -> Outcome | None:
        """What another group found; None where its hosts are gone: it is not asked again."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self._leaders[group].is_left:
            if path.exists():
                return read_outcome_row(read_json(path))
            if not is_wanted():
                return Outcome("crash", "it was not wanted any more")
            time.sleep(POLL_S)
        return None
