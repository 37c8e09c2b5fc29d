"""The control side of the Megatron-Core engine: pure functions of the spec, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.megatron.arguments import complete, keys
from backends.megatron.check import check_arguments, check_files, unusable_values, warnings_of
from backends.megatron.export import export
from backends.megatron.fields import installed
from backends.megatron.host import check_host, installed_version
from backends.megatron.job import make_job, make_probe_job
from backends.megatron.legality import boundary_fault, kernel_warnings, mesh_faults, plan_faults
from backends.megatron.offer import free, read_offer, read_workload, settle
from backends.megatron.request import read_request
from backends.megatron.resume import finished_step
from backends.megatron.shape import model_facts
from flagvega.cluster.nodes import Cluster
from flagvega.config.keys import Key
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.job import Job, source_path
from flagvega.layout.plan import Boundary, Mesh, Plan
from flagvega.layout.request import LayoutRequest
from flagvega.model.workload import Offer, Workload


class MegatronEngine:
    """Trains GPT-like models with an unchanged megatron-core."""

    name = "megatron"

    def keys(self) -> Mapping[str, Key]:
        """Every engine argument by name, supported or not."""
        return keys()

    def check(self, spec: Spec) -> Sequence[Fault]:
        """Faults of the arguments that need no plan."""
        return check_arguments(spec)

    def check_host(self) -> Sequence[Fault]:
        """What must be installed before a run; not asked by a dry run."""
        return check_host()

    def check_files(self, spec: Spec) -> Sequence[Fault]:
        """Faults of the files that the run reads on this host; not asked by a dry run."""
        return check_files(spec)

    def warnings(self, spec: Spec, plan: Plan) -> Sequence[str]:
        """What the YAML asks for and does not get."""
        return [*warnings_of(spec), *kernel_warnings(spec, plan)]

    def request(self, spec: Spec) -> LayoutRequest:
        """The layout that the YAML gives by hand; ConfigError when it gives none."""
        if unusable := unusable_values(spec):
            raise ConfigError(unusable)
        return read_request(spec)

    def workload(self, spec: Spec) -> Workload:
        """The work of a step, whatever the layout."""
        return read_workload(spec)

    def offer(self, spec: Spec) -> Offer:
        """The work of a step and what of the layout is open; ConfigError when the YAML gives one by hand."""
        if unusable := unusable_values(settle(spec, None)):
            raise ConfigError(unusable)
        return read_offer(spec)

    def settle(self, spec: Spec, plan: Plan | None) -> Spec:
        """The spec with what may be left to a planner filled in."""
        return settle(spec, plan)

    def free(self, spec: Spec) -> Spec:
        """The spec without a word about its layout."""
        return free(spec)

    def legal_mesh(self, spec: Spec, mesh: Mesh) -> str | None:
        """Why this mesh cannot run the spec's model, or None."""
        return next((reason for reason, _ in mesh_faults(spec, mesh)), None)

    def legal_boundary(self, spec: Spec, sender: Mesh, receiver: Mesh, boundary: Boundary) -> str | None:
        """Why these meshes cannot be neighbours, or None."""
        return boundary_fault(spec, sender, receiver, boundary)

    def check_plan(self, spec: Spec, plan: Plan) -> Sequence[Fault]:
        """Faults of a whole plan: its meshes, its batch, and where it disagrees with the YAML."""
        return plan_faults(spec, plan)

    def construct(self, spec: Spec, plan: Plan) -> Sequence[Fault]:
        """What the engine's own classes refuse, asked in a child process; nothing where it is not installed."""
        if installed() is None:
            return []
        meshes = [
            {
                "tensor_model_parallel_size": mesh.tp,
                "context_parallel_size": mesh.cp,
                "expert_model_parallel_size": mesh.ep,
                "expert_tensor_parallel_size": mesh.etp,
                "sequence_parallel": mesh.sp,
            }
            for mesh in plan.meshes
        ]
        argv = [sys.executable, "-P", "-m", "backends.megatron.construct"]
        question = json.dumps({"arguments": complete(spec.arguments), "meshes": meshes})
        answer = subprocess.run(
            argv, input=question, capture_output=True, text=True, check=True, env=source_path(with_environment=True)
        )
        refusals: list[str] = json.loads(answer.stdout.splitlines()[-1])
        return [Fault(f"megatron-core refuses: {refusal}", "train") for refusal in refusals]

    def export(
        self, spec: Spec, checkpoint: Path | None, folder: Path, dtype: str | None, tell: Callable[[float], None]
    ) -> Mapping[str, Any]:
        """Write the weights of a run as a HuggingFace folder; what was written."""
        return export(spec, checkpoint, folder, dtype, tell)

    def finished_step(self, spec: Spec, plan: Plan) -> int | None:
        """The step at which nothing was left to train; VerdictError for checkpoints that no run can go on from."""
        arguments = complete(spec.arguments)
        model = model_facts(arguments, plan.batch.padded_vocab_size, plan.tied_embeddings)
        return finished_step(arguments, spec.exp_dir, model)

    def job(self, spec: Spec, plan: Plan, cluster: Cluster) -> Job:
        """Commands for every node."""
        return make_job(spec, plan, cluster)

    def version(self) -> str:
        """What measurements are valid for."""
        return f"megatron-core {installed_version('megatron-core')}, torch {installed_version('torch')}"

    def probe_job(self, spec: Spec, plan: Plan, cluster: Cluster, questions: Mapping[str, Any]) -> Job:
        """Commands that measure on the plan's devices."""
        return make_probe_job(spec, plan, cluster, questions)


engine = MegatronEngine()
