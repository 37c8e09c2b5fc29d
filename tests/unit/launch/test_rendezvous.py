"""Which host this is."""

from __future__ import annotations

import socket

import pytest

from flagvega.config.spec import Runner
from flagvega.errors import ConfigError
from flagvega.launch.rendezvous import Rendezvous, find_interface, find_rendezvous

HOSTS = {0: "one", 1: "two"}


def test_a_job_of_this_host_needs_no_port() -> None:
    assert find_rendezvous(Runner(), {0: "localhost"}, {}) == Rendezvous(1, 0, "127.0.0.1", 0)


def test_a_job_of_another_host_is_not_here_unless_the_user_says_so() -> None:
    assert find_rendezvous(Runner(), {0: "elsewhere"}, {}).node is None
    assert find_rendezvous(Runner(node_rank=0), {0: "elsewhere"}, {}).node == 0


def test_keys_come_before_the_environment() -> None:
    environ = {"NODE_RANK": "0", "MASTER_ADDR": "three", "MASTER_PORT": "3"}
    assert find_rendezvous(Runner(nnodes=2, node_rank=1), HOSTS, environ) == Rendezvous(2, 1, "three", 3)
    runner = Runner(node_rank=1, master_addr="four", master_port=4)
    assert find_rendezvous(runner, HOSTS, environ) == Rendezvous(2, 1, "four", 4)


@pytest.mark.parametrize("name", ["NODE_RANK", "PET_NODE_RANK", "GROUP_RANK", "RANK"])
def test_clusters_name_the_node_rank_in_several_ways(name: str) -> None:
    assert find_rendezvous(Runner(), HOSTS, {name: "1"}) == Rendezvous(2, 1, "one", 29500)


def test_a_host_finds_itself_by_its_name() -> None:
    assert find_rendezvous(Runner(), {0: "elsewhere", 1: socket.gethostname()}, {}).node == 1
    assert find_rendezvous(Runner(), HOSTS, {}).node is None


@pytest.mark.parametrize("environ", [{"NODE_RANK": "2"}, {"NODE_RANK": "first"}])
def test_a_wrong_node_rank_is_a_fault(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        find_rendezvous(Runner(), HOSTS, environ)


def test_hosts_that_the_plan_leaves_out_keep_their_numbers() -> None:
    hosts = {1: "two", 3: "four"}
    assert find_rendezvous(Runner(node_rank=3), hosts, {}) == Rendezvous(2, 1, "two", 29500)
    with pytest.raises(ConfigError, match=r"it uses 1 \(two\), 3 \(four\)"):
        find_rendezvous(Runner(node_rank=0), hosts, {})


def test_the_interface_that_leads_to_the_others_is_found() -> None:
    assert find_interface(Rendezvous(2, 1, "127.0.0.1", 1)) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert find_interface(Rendezvous(2, 1, "no-such-host.invalid", 1)) == {}
    assert find_interface(Rendezvous()) == {}
