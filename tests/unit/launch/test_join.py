"""Hosts that meet before they start."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flagvega.errors import PreflightError, TransientError
from flagvega.launch.join import agree, differences
from flagvega.launch.rendezvous import Rendezvous


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def meet(*facts: Mapping[str, Any], tokens: tuple[str, ...] = (), timeout_s: float = 20.0) -> list[str]:
    """What each host hears: empty when all is well."""
    port = free_port()

    def come(node: int) -> str:
        rendezvous = Rendezvous(len(facts), node, "127.0.0.1", port)
        token = tokens[node] if tokens else "token"
        try:
            agree(rendezvous, token, facts[node], lambda text: None, timeout_s)
        except (PreflightError, TransientError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(facts)) as pool:
        return list(pool.map(come, range(len(facts))))


def test_hosts_that_are_about_to_run_the_same_start() -> None:
    assert meet(*[{"plan": {"meshes": [1, 2]}}] * 3) == ["", "", ""]


def test_the_port_is_free_again_at_once() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            nodes = [Rendezvous(2, node, "127.0.0.1", port) for node in range(2)]
            list(pool.map(lambda node: agree(node, "t", {}, lambda text: None, 10.0), nodes))
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_all_hosts_hear_what_differs_and_where() -> None:
    facts = [{"plan": {"meshes": [{"tp": 1}, {"tp": 2}]}} for _ in range(3)]
    facts[2]["plan"]["meshes"][1]["tp"] = 4
    heard = meet(*facts)
    assert all("plan.meshes[1].tp: host 0 has 2, host 2 has 4" in words for words in heard)


def test_a_stranger_is_turned_away_and_the_run_goes_on_waiting() -> None:
    heard = meet({}, {}, tokens=("ours", "theirs"), timeout_s=2.0)
    assert "host 1 did not come" in heard[0]
    assert "another run" in heard[1]


def test_nonsense_on_the_port_does_no_harm() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        nodes = [Rendezvous(2, node, "127.0.0.1", port) for node in range(2)]
        first = pool.submit(agree, nodes[0], "t", {}, lambda text: None, 20.0)
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x02[]", b"\0\0\0\x05{oops"):
            with socket.socket() as peer:
                while peer.connect_ex(("127.0.0.1", port)):
                    pass
                peer.sendall(junk)
        agree(nodes[1], "t", {}, lambda text: None, 20.0)
        first.result()


def test_a_host_that_does_not_come_is_named_and_may_come_at_the_next_try() -> None:
    with pytest.raises(TransientError, match="host 1 did not come"):
        agree(Rendezvous(2, 0, "127.0.0.1", free_port()), "t", {}, lambda text: None, 0.2)
    with pytest.raises(TransientError, match="host 0 did not answer"):
        agree(Rendezvous(2, 1, "127.0.0.1", free_port()), "t", {}, lambda text: None, 0.2)


def test_differences_name_each_leaf() -> None:
    ours, theirs = {"a": [1, {"b": 2}], "c": 3}, {"a": [1, {"b": 4}], "d": 5}
    assert list(differences(ours, theirs)) == [("a[1].b", 2, 4), ("c", 3, None), ("d", None, 5)]
