"""Plans of services: which instances, why, and what would have to change; and the files that they are written to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flagvega.actions.call import OPTIONS, Call
from flagvega.actions.serve_profile import find_forms, find_pair
from flagvega.cli import ACTIONS, main
from flagvega.config.command import parse
from flagvega.errors import ConfigError, ExitCode
from flagvega.serve.advice import tell_roles
from flagvega.serve.choose import choose
from flagvega.serve.curve import Handover, Level, Passing, Reading, Row, ServeProfile, profile_to_json
from flagvega.serve.fleets import PARTS, Problem, devices_of, holds, look, pack, price_of, take_alone, whole
from flagvega.serve.kinds import Kind, find_kind
from flagvega.serve.place import find_host
from flagvega.serve.roles import find_roles, most_with_roles
from flagvega.serve.traffic import Lengths, Targets, Traffic, fixed


def row(chip: str, base_s: float, sequence_s: float, readings: tuple[float, float], tp: int = 1) -> Row:
    levels = tuple(Level(n, base_s + sequence_s * n) for n in (1, 8, 24))
    short, long = readings
    return Row("m", chip, levels, (Reading(100, short), Reading(900, long)), tp, model="model", max_tokens=1024)


FAST = row("emu-l", 0.04, 0.0006, (0.05, 0.12))
WIDE = row("emu-l", 0.025, 0.0003, (0.03, 0.07), tp=2)
SLOW = row("emu-s", 0.08, 0.003, (0.13, 0.45))
TRAFFIC = Traffic(Lengths(least=20, most=200), fixed(30), rate_per_s=12, num_requests=200)
TARGETS = Targets(1.0, 0.15, 0.95)


@cache
def kinds_of(has_wide: bool) -> tuple[Kind, ...]:
    """The rate of the traffic means nothing to them."""
    rows = {3.0: FAST, 1.0: SLOW, **({6.0: WIDE} if has_wide else {})}
    found = [find_kind(row, TRAFFIC, TARGETS, price) for price, row in rows.items()]
    return tuple(kind for kind in found if kind)


def problem(rate: float, counts: dict[str, int], objective: Any = "goodput", has_wide: bool = False) -> Problem:
    kinds = kinds_of(has_wide)
    return Problem(kinds, counts, replace(TRAFFIC, rate_per_s=rate), TARGETS, objective)


def test_the_limit_of_requests_at_once_keeps_the_time_between_tokens() -> None:
    kind = find_kind(SLOW, TRAFFIC, TARGETS, 1.0)
    assert kind is not None
    assert SLOW.levels[-1].step_s > 0.15
    assert kind.curve.step_s(kind.slots) < 0.15
    assert "too slow" in kind.bound
    assert find_kind(SLOW, TRAFFIC, Targets(1.0, 0.05, 0.95), 1.0) is None


def test_what_an_instance_takes_alone_is_where_its_targets_just_hold() -> None:
    asked = problem(1.0, {"emu-l": 1})
    (fast, _) = asked.kinds
    shares = []
    for rate in (0.93 * fast.rate_per_s, 1.15 * fast.rate_per_s):
        at = problem(rate, {"emu-l": 1})
        shares.append(look(((at.kinds[0], 1),), at).outcome.good_share)
    assert shares[0] >= 0.94 > shares[1]


def test_most_goodput_takes_every_chip_in_need_and_no_more_otherwise() -> None:
    counts = {"emu-l": 2, "emu-s": 2}
    much, little = problem(40.0, counts), problem(3.0, counts)
    full = choose(much, 10)
    assert devices_of(full.fleet).total() == 4
    assert not holds(full, much)
    alone = choose(little, 10)
    assert holds(alone, little)
    assert alone.price_per_hour <= 3


@pytest.mark.parametrize("rate", [4.0, 16.0])
def test_no_cheaper_set_holds_the_targets(rate: float) -> None:
    asked = problem(rate, {"emu-l": 2, "emu-s": 3}, "cost")
    best = choose(asked, 60)
    assert holds(best, asked)
    fast, slow = asked.kinds
    for first, second in product(range(3), range(4)):
        fleet = tuple(pair for pair in ((fast, first), (slow, second)) if pair[1])
        if fleet and price_of(fleet) < best.price_per_hour - 1e-9:
            assert not holds(look(fleet, asked), asked)


def test_chips_are_put_together_where_that_takes_more() -> None:
    asked = problem(10.0, {"emu-l": 5}, has_wide=True)
    alone, _, wide = asked.kinds
    sizes = {kind.row.num_devices: number for kind, number in pack(asked.kinds, "emu-l", 5)[5]}
    better = wide.rate_per_s > 2 * alone.rate_per_s
    assert sizes == ({2: 2, 1: 1} if better else {1: 5})
    most = max(2 * wide.rate_per_s + alone.rate_per_s, 5 * alone.rate_per_s)
    assert take_alone(whole(asked), asked) == pytest.approx(most)


# ---- roles ----

LONG = Traffic(Lengths(least=300, most=700), fixed(30), num_requests=200)
TIGHT = Targets(1.5, 0.055, 0.95)
"""Between two tokens of an answer there is no time to read long prompts."""
APART = frozenset({frozenset({"emu-l"}), frozenset({"emu-l", "emu-s"}), frozenset({"emu-s"})})


@cache
def parts_of() -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Those that do whole requests, and those that do parts of them."""
    both = [find_kind(row, LONG, TIGHT, price) for row, price in ((FAST, 3.0), (SLOW, 1.0))]
    parts = [find_kind(row, LONG, TIGHT, price, role) for row, price in ((FAST, 3.0), (SLOW, 1.0)) for role in PARTS]
    return tuple(kind for kind in both if kind), tuple(kind for kind in parts if kind)


def tight(rate: float, counts: dict[str, int], objective: Any = "goodput", **changes: Any) -> Problem:
    kinds, split = (tuple(kind for kind in found if kind.row.chip in counts) for found in parts_of())
    traffic = replace(LONG, rate_per_s=rate)
    return replace(Problem(kinds, counts, traffic, TIGHT, objective, split, Passing(0.005, 1e-6)), **changes)


def test_who_is_too_slow_to_write_may_read() -> None:
    kinds, split = parts_of()
    assert [kind.name for kind in kinds] == ["emu-l"]
    assert [kind.name for kind in split] == ["emu-l reads", "emu-l writes", "emu-s reads"]


def test_roles_are_taken_where_they_bring_more() -> None:
    asked = tight(9.0, {"emu-l": 2})
    best = choose(asked, 20)
    assert sorted(kind.name for kind in best.members) == ["emu-l reads", "emu-l writes"]
    assert best.other
    assert best.outcome.good_share > 1.15 * best.other.outcome.good_share
    assert "without them" in tell_roles(best, asked)
    assert choose(replace(asked, split=()), 20).outcome.good_share == pytest.approx(best.other.outcome.good_share, 0.02)


def test_roles_are_not_taken_where_nothing_is_gained_or_no_prompt_can_be_handed_over() -> None:
    little, apart = tight(0.5, {"emu-l": 2}), tight(9.0, {"emu-l": 2}, apart=APART)
    for asked in (little, apart):
        assert not choose(asked, 20).has_roles
    assert "nearly all requests meet the targets without them" in tell_roles(choose(little, 20), little)


def test_a_chip_that_meets_no_targets_by_itself_reads_for_another() -> None:
    asked = tight(4.0, {"emu-l": 1, "emu-s": 2})
    best = choose(asked, 20)
    assert "emu-s reads" in {kind.name for kind in best.members}
    assert best.other
    assert best.outcome.good_share > best.other.outcome.good_share


def test_two_that_meet_no_targets_alone_are_a_plan_together_and_one_is_none() -> None:
    one, two = (tight(2.0, {"emu-l": number}, kinds=()) for number in (1, 2))
    assert find_roles(one, (), 0.0) is None
    found = find_roles(two, (), 0.0)
    assert found
    assert devices_of(choose(two, 20).fleet).total() == 2


def test_no_roles_take_more_than_as_much_read_as_written() -> None:
    asked = tight(1.0, {"emu-l": 3, "emu-s": 2})
    fleet = whole(asked)
    most = most_with_roles(fleet, asked)
    reads, writes, _ = asked.split  # the last one is emu-s
    for readers in (1, 2):
        pair = ((reads, readers), (writes, 3 - readers))
        assert take_alone(pair, asked) <= most
    assert most <= 3 * writes.rate_per_s


def test_a_cheaper_set_with_roles_is_found() -> None:
    counts = {"emu-l": 4}
    with_roles, without = (choose(tight(8.0, counts, "cost", **given), 60) for given in ({}, {"split": ()}))
    assert with_roles.has_roles
    assert holds(with_roles, tight(8.0, counts))
    assert not holds(without, tight(8.0, counts)) or with_roles.price_per_hour < without.price_per_hour


# ---- the action ----

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """What ``action=plan`` answers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_text(json.dumps(profile_to_json(ServeProfile((FAST, SLOW)))))

    def ask(rate: float, action: str = "plan", plan: Any = None, **blocks: Any) -> tuple[int, dict[str, Any]]:
        nodes = [
            {"chip": "emu-l", "devices": 2, "price_per_hour": 3},
            {"chip": "emu-s", "devices": 2, "price_per_hour": 1},
        ]
        targets = {"first_token_s": 1, "per_token_s": 0.15, "share": 0.95}
        traffic = {"rate_per_s": rate, "input_tokens": {"from": 20, "to": 200}, "output_tokens": 30, "targets": targets}
        document = {
            "experiment": {"exp_name": "s", "exp_dir": "out", "task": {"type": "serve"}},
            "cluster": {"nodes": nodes},
            "serve": [{"serve_id": "m", "engine_args": {"model": "model", "max_model_len": 1024}}],
            "traffic": traffic,
            "plan": {"profile": "p.json", **(plan or {})},
            **blocks,
        }
        (tmp_path / "exp.yaml").write_text(yaml.safe_dump(document))
        code = main(["--config-path", ".", "--config-name", "exp", f"action={action}", "output=json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


def test_a_plan_is_a_yaml_that_runs_with_the_gateway_knowing_its_instances(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = ask(20.0)
    assert code == 0
    assert found["predictions"]["holds"]
    assert set(found["predictions"]["one_more"]) == {"emu-l", "emu-s"}
    assert "was not measured" in found["predictions"]["roles"]
    assert {each["role"] for each in found["predictions"]["instances"]} == {"both"}
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == found
    words = ["--config-path", "out", "--config-name", "planned", "action=dryrun", "output=json"]
    assert main(words) == 0
    dry = json.loads(capsys.readouterr().out)
    assert dry["plan"]["decisions"] == found["decisions"]
    settings = json.loads(dry["files"]["job/gateway.json"])
    assert settings["waiting"]["first_token_s"] == found["predictions"]["first_token_limit_s"]
    fast = settings["instances"][0]
    assert fast["chip"] == "emu-l"
    assert fast["step_s"] == pytest.approx(0.0406)
    assert fast["decode_tokens_per_s"] == pytest.approx(fast["slots"] / (0.04 + 0.0006 * fast["slots"]))
    assert fast["prefill_tokens_per_s"] == pytest.approx(800 / 0.07)
    models = {command["argv"][command["argv"].index("--served-model-name") + 1] for command in dry["commands"]}
    assert models == {"m"}


def test_a_plan_with_roles_runs_and_tells_why(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handed = Handover("model", "emu-l", "emu-l", (Reading(100, 0.05), Reading(900, 0.051)))
    (tmp_path / "p.json").write_text(json.dumps(profile_to_json(ServeProfile((FAST,), handovers=(handed,)))))
    targets = {"first_token_s": 1.5, "per_token_s": 0.055, "share": 0.95}
    traffic = {"rate_per_s": 9, "input_tokens": {"from": 300, "to": 700}, "output_tokens": 30, "targets": targets}
    code, found = ask(9.0, traffic=traffic, cluster={"nodes": [{"chip": "emu-l", "devices": 2}]})
    assert code == 0
    assert {each["role"] for each in found["predictions"]["instances"]} == {"prefill", "decode"}
    assert "without them" in found["predictions"]["roles"]
    assert main(["--config-path", "out", "--config-name", "planned", "action=dryrun", "output=json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert dry["plan"]["decisions"] == found["decisions"]
    instances = json.loads(dry["files"]["job/gateway.json"])["instances"]
    assert {each["role"] for each in instances} == {"prefill", "decode"}


def test_the_cheapest_plan_that_cannot_be_says_what_would_have_to_change(ask: Ask) -> None:
    code, found = ask(40.0, plan={"objective": "cost"})
    assert code == ExitCode.NO_PLAN
    (fault,) = found["faults"]
    assert "not even all chips" in fault["what"]
    assert "requests/s" in fault["fix"]
    assert "more emu-l" in fault["fix"]


def test_targets_that_no_chip_meets_are_told_with_what_each_does(ask: Ask) -> None:
    traffic = {"rate_per_s": 1, "input_tokens": 20, "output_tokens": 5, "targets": {"per_token_s": 0.01}}
    code, found = ask(1.0, traffic=traffic)
    assert code == ExitCode.NO_PLAN
    assert "emu-l: alone, a token comes every 0.0406 s" in found["faults"][0]["what"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": {"objective": "time"}}, "'time' is of training"),
        ({"plan": {"order": ["emu-l"]}}, "'order' means nothing for services"),
        ({"plan": {"profile": "none.json"}}, "the profile cannot be read"),
        ({"traffic": {"concurrency": 3}}, "a plan needs a rate"),
        ({"experiment": {"exp_name": "s", "task": {"type": "inference"}}}, "a batch of prompts is not"),
        ({"plan": {"objective": "cost"}, "cluster": {"nodes": [{"chip": "emu-l"}]}}, "emu-l has none"),
        ({"cluster": {"nodes": [{"chip": "emu-m"}]}}, "no measurement of model on emu-m"),
    ],
)
def test_what_cannot_be_planned_is_told(ask: Ask, changes: dict[str, Any], words: str) -> None:
    code, found = ask(5.0, **changes)
    assert code == ExitCode.CONFIG
    assert words in json.dumps(found["faults"])


def test_a_plan_is_for_the_chips_of_all_hosts(ask: Ask) -> None:
    hosts = [{"chip": "emu-l", "host": "a"}, {"chip": "emu-l", "host": "b"}]
    code, found = ask(30.0, cluster={"nodes": hosts})
    assert code == 0
    assert [(each["node"], each["address"]) for each in found["decisions"]["instances"]] == [(0, "a"), (1, "b")]


def test_requests_that_no_instance_holds_leave_no_plan(ask: Ask) -> None:
    code, found = ask(1.0, traffic={"rate_per_s": 1, "input_tokens": 1000, "output_tokens": 100})
    assert code == ExitCode.NO_PLAN
    assert "1100 tokens" in json.dumps(found["faults"])


def test_a_service_is_measured_on_each_kind_of_chip_and_at_each_degree_that_fits(ask: Ask, tmp_path: Path) -> None:
    nodes = [{"chip": "emu-l", "devices": 2}, {"chip": "emu-s", "devices": 1}]
    code, _ = ask(1.0, cluster={"nodes": nodes})
    assert code == 0
    words = ["--config-path", str(tmp_path), "--config-name", "exp", "action=profile", "output=json"]
    call = Call(parse([*words, "tp=1,2"], ACTIONS, OPTIONS), Console(stderr=True))
    forms = list(find_forms(call.spec, find_host(call.spec), (1, 2)))
    assert [form.name for form in forms] == ["m-emu-l", "m-emu-l-tp2", "m-emu-s"]
    reader, writer = find_pair(call, call.spec, forms)
    assert (reader.row_name, writer.row_name) == ("emu-l", "emu-s")
    assert (reader.service.role, writer.service.role) == ("prefill", "decode")
    with pytest.raises(ConfigError, match="roles take two instances"):
        find_pair(call, call.spec, forms[2:])
    assert main([*words, "tp=two"]) == ExitCode.CONFIG
