"""What the pictures of a plan show: one simulation, drawn three times."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.table import Table

from flagvega.cli import main
from flagvega.plan.simulate import Pipeline, simulate
from flagvega.report.overview import Bar, StageBox, chip_colours, comparison_svg, layout_svg
from flagvega.report.page import plan_page
from flagvega.report.svg import MEMORY_COLOURS, MemoryBar
from flagvega.report.timeline import Lane, Timeline, make_timeline, picture_windows, ticks, windows
from flagvega.report.trace import trace_events
from tests.conftest import ROOT
from tests.unit.plan.asked import COMMAND_LINE, write

GIB = 2**30


def draw(num: int = 3, micro_batches: int = 5) -> Timeline:
    in_flight = tuple(num - i for i in range(num))
    pipeline = Pipeline((1e-3,) * num, (2e-3,) * num, (0.5e-3,) * (num - 1), in_flight, micro_batches,
                        (0.0,) * (num - 1) + (4e-3,), (1e-3,) * num)  # fmt: skip
    lanes = (Lane(0, "emu-l"), Lane(0, "emu-l"), *[Lane(1, "emu-s")] * num)[:num]
    return make_timeline(lanes, pipeline, (0.25,) * num)


def page_of(timeline: Timeline, title: str = "plan", facts: tuple[str, ...] = ()) -> str:
    table = Table("stage", "chip", title=title)
    table.add_row("0", "<b>")
    bars = [MemoryBar("emu-l", dict.fromkeys(MEMORY_COLOURS, GIB / 4), GIB) for _ in timeline.lanes]
    return plan_page(title, facts, timeline, bars, [table])


class Tags(HTMLParser):
    """Counts tags and sees that each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta",):
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag


def test_a_timeline_has_every_pass_transfer_reduction_and_optimizer_step() -> None:
    timeline = draw(3, 5)
    kinds = [span.kind for span in timeline.spans]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "forward": 15, "backward": 15, "transfer": 20, "reduction": 1, "optimizer": 3,
    }  # fmt: skip
    assert max(span.end_s for span in timeline.spans) == pytest.approx(timeline.total_s)


def test_the_wider_a_stage_the_more_layers_it_has_and_no_text_leaves_its_box() -> None:
    boxes = [
        StageBox("emu-s", ("emb+1", "tp2 <&", "2 devices"), 0.25, "1 ms"),
        StageBox("emu-l", ("3+head",), 0.75, ""),
    ]
    page = layout_svg(boxes)
    widths = [float(width) for width in re.findall(r'<rect x="[^"]*" y="20" width="([^"]*)"', page)]
    assert widths[1] > widths[0]
    assert "tp2 &lt;&amp;" in page
    many = layout_svg([StageBox("emu-s", ("a" * 40,), 0.01, "")] * 60)
    assert 'class="number"' not in many
    assert set(chip_colours(boxes)) == {"emu-s", "emu-l"}


def test_other_layouts_are_measured_by_the_plan() -> None:
    svg = comparison_svg([Bar("the plan", 2.0, "plan"), Bar("x" * 200, 3.0, "layout"), Bar("c", 1.9999, "cluster")])
    assert "+50.0%" in svg
    assert "-0.0%" not in svg
    assert not Tags(svg).opened


def test_a_pass_begins_when_its_transfer_has_arrived_and_not_before() -> None:
    spans = draw(3, 5).spans
    forward = {(s.stage, s.micro_batch): s for s in spans if s.kind == "forward"}
    backward = {(s.stage, s.micro_batch): s for s in spans if s.kind == "backward"}
    for span in (span for span in spans if span.kind == "transfer"):
        passes, source, target = (
            (backward, span.stage + 1, span.stage) if span.back else (forward, span.stage, span.stage + 1)
        )
        assert span.begin_s >= passes[source, span.micro_batch].end_s - 1e-12
        assert passes[target, span.micro_batch].begin_s >= span.end_s - 1e-12


def test_keeping_events_does_not_change_the_time() -> None:
    pipeline = Pipeline((1.0, 2.0), (2.0, 1.0), (0.3,), (3, 1), 7, (0.1, 0.0), (0.1, 0.2))
    assert simulate(pipeline).total_s == simulate(pipeline, with_events=True).total_s
    assert simulate(pipeline).messages == simulate(pipeline).events == ()


def test_a_trace_puts_meshes_into_processes_and_never_overlaps_on_a_thread() -> None:
    timeline = draw(3, 5)
    document = json.loads(json.dumps(trace_events(timeline)))
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(timeline.spans)
    assert {event["cat"] for event in events} == {"forward", "backward", "transfer", "reduction", "optimizer"}
    names = {e["pid"]: e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"}
    assert names == {0: "mesh 0: emu-l", 1: "mesh 1: emu-s"}
    first = next(event for event in events if event["cat"] == "forward")
    assert (first["ts"], first["dur"]) == (0, pytest.approx(1000))
    for thread in {(event["pid"], event["tid"]) for event in events}:
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if (e["pid"], e["tid"]) == thread)
        assert all(end <= begin + 1e-6 for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))


def test_a_step_with_very_many_spans_is_shown_by_its_beginning_and_its_end() -> None:
    timeline = draw(4, 2000)
    head, tail = picture_windows(timeline)
    assert head.begin_s == 0
    assert tail.end_s == timeline.total_s
    assert head.end_s < tail.begin_s
    assert len(head.spans) + len(tail.spans) < 1000
    assert windows(timeline, 10**6)[0].spans == timeline.spans


def test_a_page_needs_nothing_else_and_is_well_formed() -> None:
    text = page_of(draw())
    tags = Tags(text)
    assert tags.opened == []
    assert not {"script", "link", "img", "iframe"} & set(tags.seen)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text


def test_what_a_page_is_told_is_never_markup() -> None:
    text = page_of(draw(), title="<script>x</script>", facts=("a < b & c",))
    assert "<script" not in text
    assert "a &lt; b &amp; c" in text
    assert "<td>&lt;b&gt;</td>" in text


def test_a_page_has_a_bar_with_its_times_for_every_span() -> None:
    timeline = draw()
    text = page_of(timeline)
    assert all(f"<title>{span.words}:" in text for span in timeline.spans)


def test_a_stage_beyond_its_memory_is_marked() -> None:
    bars = [MemoryBar("emu-l", dict.fromkeys(MEMORY_COLOURS, GIB), 2 * GIB)]
    assert 'class="over">6 of 2 GiB' in plan_page("plan", (), draw(1), bars, [])


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, 0.0179), (430.2, 491), (3e-7, 8e-7)])
def test_ticks_are_few_round_and_inside(begin: float, end: float) -> None:
    found = ticks(begin, end, 10)
    assert 4 <= len(found) <= 11
    assert begin <= found[0] <= found[-1] <= end * (1 + 1e-9)


def plan_by_hand(tmp_path: Path, action: str, *words: str) -> int:
    write(tmp_path)
    return main([*COMMAND_LINE, f"action={action}", "output=json", *words])


def test_a_plan_is_drawn_in_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert plan_by_hand(tmp_path, "plan") == 0
    answer = json.loads(capsys.readouterr().out)
    names = [Path(file).name for file in answer["pictures"]]
    assert names == ["plan.html", "plan.trace.json", "plan.png"]
    assert all(Path(file).stat().st_size < 200_000 for file in answer["pictures"])
    png = Path("out/report/plan.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">I", png[16:20])[0] > 1000
    page = Path("out/report/plan.html").read_text()
    assert answer["limited_by"] in page
    assert "alone" in page


def test_without_matplotlib_the_rest_is_written_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flagvega.report.pictures.can_draw", lambda: False)
    words = ["plan.file=null", "train.model.micro_batch_size=1", "output=text"]
    assert plan_by_hand(tmp_path, "estimate", *words) == 0
    said = capsys.readouterr().out
    assert said.count("matplotlib is not installed") == 1
    assert "plan.html" in said
    assert sorted(path.name for path in Path("out/report").iterdir()) == ["plan.html", "plan.trace.json"]


def test_matplotlib_is_only_imported_where_something_is_drawn() -> None:
    code = "import sys, flagvega.actions.plan; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
