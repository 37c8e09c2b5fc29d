"""What an engine must offer, and the registry that finds engines. No engine is named here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flagvega.cluster.nodes import Cluster
from flagvega.config.keys import Key
from flagvega.config.spec import Spec
from flagvega.errors import Fault
from flagvega.layout.job import Job
from flagvega.layout.plan import Boundary, Mesh, Plan
from flagvega.layout.request import LayoutRequest
from flagvega.model.workload import Offer, Workload
from flagvega.registry import Registry


class Backend(Protocol):
    """What every engine offers, whether it trains or serves: pure functions of the spec, no torch."""

    name: str

    def keys(self) -> Mapping[str, Key]:
        """Every engine argument that this engine knows, supported or not."""

    def check(self, spec: Spec) -> Sequence[Fault]:
        """Faults of the arguments that need no plan."""

    def check_host(self) -> Sequence[Fault]:
        """What this host lacks to run the engine, or has in the wrong version; not asked by a dry run."""


class Engine(Backend, Protocol):
    """The control side of an engine that trains."""

    def check_files(self, spec: Spec) -> Sequence[Fault]:
        """Faults of the files that the run reads on this host; not asked by a dry run, which may be elsewhere."""

    def warnings(self, spec: Spec, plan: Plan) -> Sequence[str]:
        """What the YAML asks for and does not get."""

    def request(self, spec: Spec) -> LayoutRequest:
        """The layout that the YAML gives by hand."""

    def workload(self, spec: Spec) -> Workload:
        """The work of a step, whatever the layout."""

    def offer(self, spec: Spec) -> Offer:
        """The work of a step and what of the layout is open, for `plan: auto`."""

    def settle(self, spec: Spec, plan: Plan | None) -> Spec:
        """The spec with what may be left to a planner: from the plan, or the least that can be before there is one."""

    def free(self, spec: Spec) -> Spec:
        """The spec without a word about its layout: it goes with any plan."""

    def legal_mesh(self, spec: Spec, mesh: Mesh) -> str | None:
        """Why this mesh cannot run the spec's model, or None."""

    def legal_boundary(self, spec: Spec, sender: Mesh, receiver: Mesh, boundary: Boundary) -> str | None:
        """Why these meshes cannot be neighbours, or None."""

    def check_plan(self, spec: Spec, plan: Plan) -> Sequence[Fault]:
        """Faults of a whole plan: illegal meshes and boundaries, and what no single one shows."""

    def construct(self, spec: Spec, plan: Plan) -> Sequence[Fault]:
        """What the installed engine's own configuration classes refuse, asked in a child process."""

    def finished_step(self, spec: Spec, plan: Plan) -> int | None:
        """The step at which nothing was left to train, by the checkpoints that a run would go on from; None otherwise.

        :raises VerdictError: no run can go on from these.
        """

    def export(
        self, spec: Spec, checkpoint: Path | None, folder: Path, dtype: str | None, tell: Callable[[float], None]
    ) -> Mapping[str, Any]:
        """Write the weights of a run as a HuggingFace folder, telling the share that is done; what was written."""

    def job(self, spec: Spec, plan: Plan, cluster: Cluster) -> Job:
        """Commands for every node."""

    def version(self) -> str:
        """What is installed, in words: measured costs hold for it."""

    def probe_job(self, spec: Spec, plan: Plan, cluster: Cluster, questions: Mapping[str, Any]) -> Job:
        """Commands that measure, on the devices of a plan, what :mod:`flagvega.plan.questions` asks."""


engines: Registry[Engine] = Registry("engine", folder="backends", module="engine", group="flagvega.engines")
