"""Hosts of one job meet before they start, and find out whether they are about to run the same thing.

One JSON document each way over TCP, of limited size. Host 0 compares what every host is about to
run with its own; all hear the outcome, and all start or none does.
"""

from __future__ import annotations

import hmac
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from flagvega.errors import ConfigError, Fault, PreflightError, TransientError
from flagvega.launch.rendezvous import Rendezvous

MAX_BYTES = 64 << 20
LENGTH_BYTES = 4
TIMEOUT_S = 600.0
RETRY_S = 0.5
MAX_DIFFERENCES = 20


def agree(rendezvous: Rendezvous, token: str, facts: Mapping[str, Any], say: Callable[[str], None],
          timeout_s: float = TIMEOUT_S) -> None:  # fmt: skip
    """Meet the other hosts; ``token`` must be the same on all, and ``facts`` are compared leaf by leaf.

    :raises PreflightError: when they are about to run something else.
    :raises TransientError: when one has not come in time.
    """
    if rendezvous.num_nodes == 1:
        return
    deadline = time.monotonic() + timeout_s
    where = f"{rendezvous.address}:{rendezvous.port}"
    try:
        if rendezvous.node == 0:
            faults = _receive_all(rendezvous, token, facts, say, deadline)
        else:
            say(f"joining host 0 at {where}")
            faults = _join(rendezvous, token, facts, deadline)
    except TimeoutError as error:
        raise TransientError(Fault(str(error), where, "start the same command on every host")) from error
    if faults:
        raise PreflightError(faults)


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, our value, their value) of every leaf that differs."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys([*ours, *theirs]):
            yield from differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{path}[{i}]")
    elif ours != theirs:
        yield path, ours, theirs


# ---- host 0 ----


def _receive_all(rendezvous: Rendezvous, token: str, facts: Mapping[str, Any], say: Callable[[str], None],
                 deadline: float) -> list[Fault]:  # fmt: skip
    missing = set(range(1, rendezvous.num_nodes))
    faults: list[Fault] = []
    family = socket.AF_INET6 if ":" in rendezvous.address else socket.AF_INET
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((rendezvous.address, rendezvous.port), family=family))
        joined = []
        while missing:
            say(f"waiting at {rendezvous.address}:{rendezvous.port} for host {', '.join(map(str, sorted(missing)))}")
            peer = stack.enter_context(_accept(server, missing, deadline))
            with suppress(OSError, ValueError):
                message = _receive(peer, deadline)
                if not _is_token(message, token):
                    _send(peer, {"faults": [["belongs to another run (runner.rdzv_id or exp_name differ)", "", ""]]})
                elif message["node"] not in missing:
                    what = f"is not awaited as host {message['node']}: another host said so, or node_rank is wrong"
                    _send(peer, {"faults": [[what, "", "experiment.runner.node_rank"]]})
                else:
                    missing.discard(message["node"])
                    joined.append(peer)
                    faults += compare(facts, message["facts"], message["node"])
        for peer in joined:
            with suppress(OSError):
                _send(peer, {"faults": [[fault.what, fault.where, fault.fix] for fault in faults]})
                peer.recv(1)  # the other end closes first, so that the port is free at once
    return faults


def _accept(server: socket.socket, missing: set[int], deadline: float) -> socket.socket:
    server.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
        peer, _ = server.accept()
    except TimeoutError:
        raise TimeoutError(f"host {', '.join(map(str, sorted(missing)))} did not come") from None
    peer.settimeout(30.0)
    return peer


def _is_token(message: Any, token: str) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("token"), str)
        and isinstance(message.get("facts"), dict)
        and hmac.compare_digest(message["token"].encode(), token.encode())
    )


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], node: int) -> list[Fault]:
    """What host ``node`` is about to run otherwise than host 0, whose facts are ``ours``."""
    ours, theirs = json.loads(json.dumps([ours, theirs]))  # of one of them, lists may be tuples still
    found = [
        Fault(f"host 0 has {_short(one)}, host {node} has {_short(other)}", path, "give every host the same YAML")
        for path, one, other in differences(ours, theirs)
    ]
    more = len(found) - MAX_DIFFERENCES
    return found[:MAX_DIFFERENCES] + ([Fault(f"{more} more differences")] if more > 0 else [])


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


# ---- the others ----


def _join(rendezvous: Rendezvous, token: str, facts: Mapping[str, Any], deadline: float) -> list[Fault]:
    while True:
        try:
            with socket.create_connection((rendezvous.address, rendezvous.port), timeout=5.0) as peer:
                _send(peer, {"token": token, "node": rendezvous.node, "facts": facts})
                peer.settimeout(max(deadline - time.monotonic(), 0.001))
                return [Fault(*words) for words in _receive(peer, deadline)["faults"]]
        except socket.gaierror as error:
            raise ConfigError(Fault(f"unknown host '{rendezvous.address}'", "experiment.runner.master_addr")) from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"host 0 did not answer: {error}") from error
            time.sleep(RETRY_S)


# ---- the wire ----


def _send(peer: socket.socket, value: Any) -> None:
    data = json.dumps(value).encode()
    peer.sendall(len(data).to_bytes(LENGTH_BYTES, "big") + data)


def _receive(peer: socket.socket, deadline: float) -> Any:
    """One JSON document; ConnectionError when the peer leaves, ValueError when it talks nonsense."""
    size = int.from_bytes(_read(peer, LENGTH_BYTES, deadline), "big")
    if size > MAX_BYTES:
        raise ValueError(f"a message of {size} bytes")
    return json.loads(_read(peer, size, deadline))


def _read(peer: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        if time.monotonic() > deadline:
            raise TimeoutError("too slow")
        part = peer.recv(min(size - len(data), 1 << 20))
        if not part:
            raise ConnectionResetError("the other end left")
        data += part
    return bytes(data)
