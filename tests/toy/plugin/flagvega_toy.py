"""An engine that computes nothing, found by its entry point as a stranger's would be."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flagvega.cluster.nodes import Cluster
from flagvega.config.keys import Key
from flagvega.config.spec import Service, Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.codec import plan_to_json
from flagvega.layout.job import Job, NodeJob
from flagvega.layout.plan import Boundary, Mesh, Plan
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.layout.serving import Instance
from flagvega.model.workload import Offer, Workload
from flagvega.server import Command

PROGRAM = Path(__file__).parents[1] / "rank.py"
PACED = Path(__file__).parents[1] / "paced.py"
LOAD = Path(__file__).parents[1] / "load.py"
SERVER = Path(__file__).parents[1] / "server.py"

TROUBLES = {
    "oom": ["--error", "OutOfMemoryError"],
    "nan": ["--loss", "nan"],
    "crash": ["--crash", "0"],
    "hang": ["--step-s", "60"],
    "late once": ["--late", "1"],
    "late": ["--late", "9"],
}
"""What may befall a toy's ranks."""


class ToyEngine:
    """Ranks of tests/toy/rank.py over one data-parallel mesh."""

    name = "toy"

    def keys(self) -> Mapping[str, Key]:
        """What the toy can be told, and what short runs are told."""
        keys = [
            Key("words", "str_list", ()),
            Key("ranks", "int", 2),
            Key("train_iters", "int", 5),
            Key("step_s", "float"),
            Key("trouble", "str", choices=("none", *TROUBLES)),
            *(Key(name, "any") for name in ("exit_interval", "save", "save_interval", "eval_interval", "log_interval")),
        ]
        return {key.name: key for key in keys}

    def check(self, spec: Spec) -> Sequence[Fault]:
        """Anything goes."""
        return ()

    def check_host(self) -> Sequence[Fault]:
        """Nothing is needed."""
        return ()

    def check_files(self, spec: Spec) -> Sequence[Fault]:
        """Nothing is read."""
        return ()

    def request(self, spec: Spec) -> LayoutRequest:
        """One mesh."""
        mesh = MeshRequest(dp=int(spec.arguments.get("ranks", 2)))
        return LayoutRequest(meshes=(mesh,), num_layers=2, micro_batch_size=1, padded_vocab_size=128)

    def workload(self, spec: Spec) -> Workload:
        """Not for planners."""
        raise ConfigError(Fault("the toy computes nothing"))

    def offer(self, spec: Spec) -> Offer:
        """Not for planners."""
        raise ConfigError(Fault("the toy has one layout"))

    def settle(self, spec: Spec, plan: Plan | None) -> Spec:
        """Nothing is left open."""
        return spec

    def free(self, spec: Spec) -> Spec:
        """Any plan will do."""
        return spec

    def legal_mesh(self, spec: Spec, mesh: Mesh) -> str | None:
        """Any."""
        return None

    def legal_boundary(self, spec: Spec, sender: Mesh, receiver: Mesh, boundary: Boundary) -> str | None:
        """Any."""
        return None

    def check_plan(self, spec: Spec, plan: Plan) -> Sequence[Fault]:
        """Any."""
        return ()

    def construct(self, spec: Spec, plan: Plan) -> Sequence[Fault]:
        """Nothing to construct."""
        return ()

    def warnings(self, spec: Spec, plan: Plan) -> Sequence[str]:
        """None."""
        return ()

    def finished_step(self, spec: Spec, plan: Plan) -> int | None:
        """It goes on from where it is told."""
        words = [str(word) for word in spec.arguments.get("words", ())]
        step = int(words[words.index("--start") + 1]) if "--start" in words else 0
        return step if step >= spec.arguments.get("train_iters", 5) else None

    def job(self, spec: Spec, plan: Plan, cluster: Cluster) -> Job:
        """The toy's ranks, told the arguments."""
        steps = spec.arguments.get("exit_interval") or spec.arguments.get("train_iters", 5)
        words = [str(word) for word in spec.arguments.get("words", ())]
        if step_s := spec.arguments.get("step_s"):
            words += ["--step-s", str(step_s)]
        words += TROUBLES.get(str(spec.arguments.get("trouble")), [])
        argv = (sys.executable, "-P", str(PROGRAM), "--run-dir", str(spec.exp_dir), "--steps", str(steps), *words)
        env = {name: str(value) for name, value in spec.envs.items()} | {"OMP_NUM_THREADS": "1"}
        counts = dict.fromkeys(range(len(cluster.nodes)), 0)
        for mesh in plan.meshes:
            for node, _ in mesh.devices:
                counts[node] += 1
        nodes = tuple(
            NodeJob(node, cluster.nodes[node].host, count, argv, {**env, "FLAGVEGA_NODE": str(node)})
            for node, count in counts.items()
            if count
        )
        settings = {"arguments": {"train_iters": steps, "words": words}, "report": {"flops_per_token": 1e6}}
        return Job(nodes, {"plan.json": plan_to_json(plan), "job/rank.json": settings})


engine = ToyEngine()


class ToyServer:
    """Instances of tests/toy/server.py."""

    name = "toy"

    def keys(self) -> Mapping[str, Key]:
        """What a toy's server can be told."""
        keys = [Key("way", "str"), Key("port", "int"), Key("host", "str"), Key("model", "str"),
                Key("max_num_seqs", "int"), Key("step_s", "float")]  # fmt: skip
        return {key.name: key for key in keys}

    def check(self, spec: Spec) -> Sequence[Fault]:
        """Anything goes."""
        return ()

    def check_host(self) -> Sequence[Fault]:
        """Nothing is needed."""
        return ()

    def check_plan(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[Fault]:
        """Any chip will do."""
        return ()

    def check_files(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[Fault]:
        """Nothing is read."""
        return ()

    def warnings(self, spec: Spec, instances: Sequence[Instance]) -> Sequence[str]:
        """Nothing to say."""
        return ()

    def shares(self, service: Service, services: Sequence[Service]) -> bool:
        return False

    def command(self, service: Service, instance: Instance, num_on_host: int, handover: Path | None = None) -> Command:
        """The toy's server."""
        way = str(service.arguments.get("way", ""))
        if way == "paced":
            given = {"--slots": "max_num_seqs", "--step-s": "step_s"}
            words = [f"{word}={service.arguments[name]}" for word, name in given.items() if name in service.arguments]
            place = ("--host", instance.host, "--port", str(instance.port))
            return Command((sys.executable, str(PACED), *place, *words), {}, "toy", start_s=30)
        return Command((sys.executable, str(SERVER), str(instance.port), way), {}, "m", start_s=30)

    def bench(self) -> Command:
        """The toy's client."""
        return Command((sys.executable, str(LOAD)))


server = ToyServer()
