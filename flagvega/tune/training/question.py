"""From a spec to all candidates: what may be tried, what of it is legal, and what is predicted of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from flagvega.cluster.nodes import Cluster
from flagvega.config.spec import Spec
from flagvega.engine import Engine
from flagvega.errors import ConfigError, Fault
from flagvega.layout.build import build_plan
from flagvega.layout.check import check_plan
from flagvega.layout.plan import Boundary, Mesh, Plan
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.plan.layouts import cuts_across_hosts, make_request
from flagvega.plan.planner import pose
from flagvega.plan.space import Problem
from flagvega.platform import find_chip
from flagvega.tune.candidates import Settings
from flagvega.tune.training.facts import Facts
from flagvega.tune.training.forecast import Forecast
from flagvega.tune.training.layouts import Tally, list_shapes
from flagvega.tune.training.shape import Point, Shape, degrees_of
from flagvega.tune.training.space import LAYOUT, Space, read_space


@dataclass(frozen=True)
class Part:
    """The candidates that share their settings."""

    settings: Settings
    spec: Spec
    """With the settings, without a layout."""
    layout: LayoutRequest | None = None
    """All of a layout that no candidate changes; None where the layout is the YAML's own."""
    cluster: Cluster | None = None
    forecast: Forecast | None = None
    shapes: tuple[Shape, ...] = ()
    scale: float = 1.0
    """By what its seconds a step are multiplied, to compare steps of unlike numbers of samples."""

    @property
    def samples(self) -> int:
        """Of a step."""
        assert self.forecast is not None
        return self.forecast.problem.work.global_batch

    @property
    def layers(self) -> int:
        """Of the model."""
        assert self.forecast is not None
        return self.forecast.problem.work.shape.layers

    def plan(self, point: Point, engine: Engine) -> Plan:
        """The plan of a candidate; ConfigError when the engine refuses it after all."""
        shape = point.shape
        assert self.forecast is not None
        assert self.layout is not None
        assert self.cluster is not None
        outlook = self.forecast.look(shape, point.split)
        pinned = shape.recompute
        request = make_request(
            outlook.candidate, outlook.stages, self.forecast.problem.machine, self.layout,
            shape.distributed_optimizer, pinned,
        )  # fmt: skip
        request = replace(request, meshes=shape.meshes)
        plan = build_plan(request, self.cluster)
        faults = [*check_plan(plan), *engine.check_plan(engine.settle(self.spec, plan), plan)]
        if cuts_across_hosts(plan):
            faults.append(Fault("tensor parallelism would cross hosts"))
        if faults:
            raise ConfigError(faults)
        return plan


@dataclass(frozen=True)
class Question:
    """All that may be tried."""

    space: Space
    parts: tuple[Part, ...]
    tally: Tally
    refused: tuple[tuple[Settings, str], ...] = ()
    """Settings that the engine does not take, and why."""

    @cached_property
    def by_settings(self) -> Mapping[Settings, Part]:
        """The part of each combination of settings."""
        return {part.settings: part for part in self.parts}


def ask(spec: Spec, engine: Engine) -> Question:
    """Read the space of a spec and write it out; ConfigError when it cannot be read."""
    space = read_space(spec, engine)
    has_layouts = is_layout_open(space)
    base, tally = engine.free(spec) if has_layouts else spec, Tally()
    parts: list[Part] = []
    refused: list[tuple[Settings, str]] = []
    for settings in space.combinations():
        chosen = with_settings(base, settings)
        try:
            if faults := engine.check(engine.settle(chosen, None)):
                raise ConfigError(faults)
            if has_layouts:
                part = _part(chosen, settings, space, spec, engine, tally)
                part = replace(part, scale=parts[0].samples / part.samples if parts else 1.0)
            else:
                part = Part(settings, chosen)
            parts.append(part)
        except ConfigError as error:
            refused.append((settings, error.faults[0].what))
            if space.num_settings == 1:
                raise
    return Question(space, tuple(parts), tally, tuple(refused))


def with_settings(spec: Spec, settings: Settings) -> Spec:
    """The spec with engine arguments, environment variables and keys of the bridge as a candidate has them."""
    arguments, envs, bridge = dict(spec.arguments), dict(spec.envs), dict(spec.blocks.get("bridge", {}))
    for name, item in settings:
        value = list(item) if isinstance(item, tuple) else item
        head, _, tail = name.partition(".")
        if head == "env" and tail:
            envs[tail] = str(value)
        elif head == "bridge" and tail:
            bridge[tail] = value
        else:
            arguments[name] = value
    return replace(spec, arguments=arguments, envs=envs, blocks={**spec.blocks, "bridge": bridge})


def _part(chosen: Spec, settings: Settings, space: Space, spec: Spec, engine: Engine, tally: Tally) -> Part:
    problems = {}
    slow = _slow(settings, spec)
    posed = replace(chosen, blocks={**chosen.blocks, "plan": {**chosen.blocks.get("plan", {}), "file": "auto"}})
    posed = replace(posed, blocks={**posed.blocks, "bridge": _without_slow(posed.blocks["bridge"])})
    for sharded in (True, False):
        its = replace(posed, arguments={**posed.arguments, "use_distributed_optimizer": sharded})
        offer, problem, cluster = pose(its, engine)
        problems[sharded] = problem
    memory = spec.blocks.get("auto_tuner", {}).get("memory_model", {})
    forecast = Forecast(_limited(problems, memory), max(memory.get("gpu_utilization") or (1.0,)), slow)
    facts = _facts(problems[True], posed, engine)
    shapes = list_shapes(space, facts, _order(spec, facts), tally)
    layout = replace(offer.layout, slow_boundaries=slow)
    free = replace(posed, blocks={**posed.blocks, "plan": {}})
    return Part(settings, free, layout, cluster, forecast, tuple(shapes))


def _order(spec: Spec, facts: Facts) -> tuple[str, ...] | None:
    """Chips of the meshes in pipeline order, where the YAML gives them."""
    given = spec.arguments.get("hetero_device_types")
    if not given:
        return None
    order = tuple(find_chip(name).name for name in given)
    if absent := [name for name in order if name not in facts.counts]:
        where = spec.where.get("hetero_device_types", "hetero_device_types")
        raise ConfigError(
            Fault(f"there is no {absent[0]} in the cluster", where, f"there is: {', '.join(facts.counts)}")
        )
    return order


def _slow(settings: Settings, spec: Spec) -> tuple[int, ...] | None:
    given = dict(settings).get("bridge.slow_boundaries", spec.blocks.get("bridge", {}).get("slow_boundaries"))
    return None if given is None else tuple(given)


def _without_slow(bridge: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in bridge.items() if name != "slow_boundaries"}


def _limited(problems: Mapping[bool, Problem], memory: Mapping[str, Any]) -> dict[bool, Problem]:
    """With no more memory than ``gpu_memory`` says."""
    limit = memory.get("gpu_memory")
    if limit is None:
        return dict(problems)
    found = {}
    for sharded, problem in problems.items():
        groups = tuple(
            replace(group, memory_bytes=min(group.memory_bytes, limit * 10**6)) for group in problem.machine.groups
        )
        found[sharded] = replace(problem, machine=replace(problem.machine, groups=groups))
    return found


def _facts(problem: Problem, spec: Spec, engine: Engine) -> Facts:
    settled = engine.settle(spec, None)

    def mesh_of(mesh: MeshRequest) -> Mesh:
        its = degrees_of(mesh)
        devices = tuple((0, i) for i in range(its.size))
        return Mesh(0, str(mesh.chip), its.tp, its.cp, its.ep, its.dp, its.etp, its.sp, devices)

    def refusal(mesh: MeshRequest) -> str | None:
        its = degrees_of(mesh)
        if its.size % (its.ep * its.etp):
            return f"etp {its.etp} x ep {its.ep} does not divide {its.size} devices of a stage"
        return engine.legal_mesh(settled, mesh_of(mesh))

    @cache
    def boundary(sender: MeshRequest, receiver: MeshRequest) -> str | None:
        joint = Boundary("native" if sender.chip == receiver.chip else "bridge")
        return engine.legal_boundary(settled, mesh_of(sender), mesh_of(receiver), joint)

    groups = problem.machine.groups
    return Facts(
        problem.work, {group.chip: group.count for group in groups},
        {group.chip: group.node_size for group in groups}, refusal, boundary,
    )  # fmt: skip


def is_layout_open(space: Space) -> bool:
    """Whether some dimension of the layout is tuned: it is named, or nothing at all is named."""
    return not space.tuned or any(name in LAYOUT for name in space.tuned)
