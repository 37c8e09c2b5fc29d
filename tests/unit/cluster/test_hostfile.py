"""Hostfiles, good and bad."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagvega.cluster.hostfile import parse_hostfile, read_hostfile
from flagvega.errors import ConfigError


def fault(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_hostfile(text, "hosts")
    return str(error.value)


def test_hosts_come_in_order_with_slots_and_types() -> None:
    hosts = parse_hostfile("# a cluster\n\nnode-1 slots=8 type=A800  # rack 1\n10.0.0.2 type=BI100 slots=16\n", "hosts")
    assert [(host.host, host.slots, host.type, host.where) for host in hosts] == [
        ("node-1", 8, "A800", "hosts:3"),
        ("10.0.0.2", 16, "BI100", "hosts:4"),
    ]


@pytest.mark.parametrize("host", ["fe80::1", "[fe80::1]", "2001:db8::10.0.0.1", "fe80::1%eth0", "node_7.rack.local"])
def test_any_form_of_host_is_read(host: str) -> None:
    assert parse_hostfile(f"{host} slots=2", "hosts")[0].host == host.strip("[]")


def test_a_host_may_stand_alone() -> None:
    host = parse_hostfile("node-1\n", "hosts")[0]
    assert (host.slots, host.type) == (None, None)


def test_a_host_listed_twice_is_a_fault_that_names_both_lines() -> None:
    text = fault("a slots=2\nb slots=2\na slots=4\n")
    assert "hosts:3: host a is listed twice" in text
    assert "hosts:1" in text


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        ("a slots=0", "slots=0 is no number of devices", "at least slots=1"),
        ("a slots=-2", "slots=-2", "at least slots=1"),
        ("a slots=8x", "slots=8x", "at least slots=1"),
        ("a slots=²", "slots=²", "at least slots=1"),
        ("a slots=8 tpye=A800", "'tpye=A800' is not understood", "did you mean type=A800?"),
        ("a slot=8", "'slot=8' is not understood", "did you mean slots=8?"),
        ("a slots =8", "'slots' is not understood", "slots"),
        ("a slots=8 8", "'8' is not understood", "host slots=8 type=A800"),
        ("a slots=8 slots=4", "slots is given twice", "keep one"),
        ("a:22 slots=8", "'a:22' is no host name", "ports belong to"),
        ("-oProxyCommand=x slots=8", "is no host name or address", "host name"),
        ("$(reboot) slots=8", "is no host name or address", "host name"),
    ],
)
def test_a_line_that_is_not_understood_is_named_with_a_remedy(line: str, what: str, fix: str) -> None:
    text = fault(f"ok slots=1\n{line}\n")
    assert "hosts:2" in text
    assert what in text
    assert fix in text


def test_all_hosts_have_a_type_or_none() -> None:
    text = fault("a slots=2 type=A800\nb slots=2\n")
    assert "hosts:2: host b has no type, but a has one" in text


def test_all_faults_come_in_one_message() -> None:
    assert len(fault("a slots=0\nb tpye=x\na\n").split("hosts:")) >= 4


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_a_hostfile_without_hosts_is_a_fault(text: str) -> None:
    assert "lists no host" in fault(text)


def test_a_hostfile_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the hostfile"):
        read_hostfile(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read the hostfile"):
        read_hostfile(tmp_path / "binary")


@given(st.text(alphabet="aF0:.%[]=#- \n\t²slotype", max_size=40))
def test_no_text_makes_a_traceback(text: str) -> None:
    with suppress(ConfigError):
        assert parse_hostfile(text, "hosts")
