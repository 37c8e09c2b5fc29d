"""Is this host ready?"""

from __future__ import annotations

import os
import socket

import pytest

from flagvega.cluster.nodes import Node
from flagvega.launch.preflight import check_devices, check_port
from flagvega.launch.rendezvous import Rendezvous


def test_a_port_in_use_is_named_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (fault,) = check_port(Rendezvous(2, 0, "127.0.0.1", port))
        assert f"in use by process {os.getpid()}" in str(fault)
        assert check_port(Rendezvous(2, 1, "127.0.0.1", port)) == []
    assert check_port(Rendezvous(2, 0, "127.0.0.1", port)) == []


def test_host_0_must_have_the_master_address() -> None:
    (fault,) = check_port(Rendezvous(2, 0, "192.0.2.1", 29500))
    assert "cannot listen here" in str(fault)


@pytest.mark.parametrize(
    ("chip", "words"), [("a100-sxm-40g", "3 x a100-sxm-40g wanted, 0 found"), ("null", "runs nothing")]
)
def test_a_chip_that_is_not_here_is_named(chip: str, words: str) -> None:
    faults = check_devices(Node("here", (chip,) * 3))
    assert words in str(faults[0])


def test_a_cpu_holds_any_number_of_ranks() -> None:
    assert check_devices(Node("here", ("cpu",) * 64)) == []
