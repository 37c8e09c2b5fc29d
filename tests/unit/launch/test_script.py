"""The files that a run is."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from flagvega.launch.rendezvous import Rendezvous
from flagvega.launch.script import check_launch, command, render, secrets
from flagvega.layout.job import Job
from tests.toy.job import toy_launch


def test_every_script_is_bash(tmp_path: Path) -> None:
    launch = toy_launch(tmp_path / "a 'b'\n$c", "it's", before_start="ulimit -n 1048576", after_stop="echo done")
    for name, text in render(launch).items():
        if name.endswith(".sh"):
            subprocess.run(["bash", "-n"], input=text.encode(), check=True)


def test_the_script_runs_the_very_command_that_is_printed(tmp_path: Path) -> None:
    launch = toy_launch(tmp_path / "a 'b'\n$c", "$(x)", "")
    script = render(launch)["job/node-0.sh"].replace("\nexec ", "\nprintf '%s\\0' ")
    shown = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, check=True).stdout
    assert shown.decode().split("\0")[:-1] == command(launch, 0)


def test_hosts_of_several_meet_at_the_given_port(tmp_path: Path) -> None:
    launch = toy_launch(tmp_path)
    nodes = Job(tuple(replace(launch.job.nodes[0], node=node) for node in (0, 1)))
    argv = command(replace(launch, job=nodes, rendezvous=Rendezvous(2, 1, "one", 29511)), 1)
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=one", "--master-port=29511"} <= set(argv)


def test_a_secret_is_handed_on_but_not_written(tmp_path: Path) -> None:
    launch = toy_launch(tmp_path, env={"HF_TOKEN": "hush", "TOKENIZERS_PARALLELISM": "false"})
    text = "".join(render(launch).values())
    assert "hush" not in text
    assert "HF_TOKEN comes from the environment" in text
    assert "export TOKENIZERS_PARALLELISM=false" in text
    assert secrets(launch, 0) == {"HF_TOKEN": "hush"}


def test_a_nul_character_is_a_fault(tmp_path: Path) -> None:
    assert "NUL" in str(check_launch(toy_launch(tmp_path, env={"A": "a\0b"}))[0])
