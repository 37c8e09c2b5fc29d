"""The predicted step in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (times in microseconds).
"""

from __future__ import annotations

from typing import Any

from flagvega.report.timeline import Span, Timeline, windows

MAX_SPANS = 200_000
"""A step that has more is written with its beginning and its end: browsers give up on larger files."""


def trace_events(timeline: Timeline) -> dict[str, Any]:
    """A process for each mesh, in it a thread for each stage and for each direction of the boundary behind it."""
    shown = windows(timeline, MAX_SPANS)
    events: list[dict[str, Any]] = []
    for mesh, chip in dict.fromkeys((lane.mesh, lane.chip) for lane in timeline.lanes):
        events.append(_meta("process_name", mesh, 0, name=f"mesh {mesh}: {chip}"))
        events.append(_meta("process_sort_index", mesh, 0, sort_index=mesh))
    last = len(timeline.lanes) - 1
    for stage, lane in enumerate(timeline.lanes):
        names = [f"stage {stage}"]
        after = (stage + 1) % len(timeline.lanes)
        if stage < last or timeline.is_ring:
            names += [f"stage {stage} to {after}", f"stage {after} to {stage}"]
        for i, name in enumerate(names):
            events.append(_meta("thread_name", lane.mesh, 3 * stage + i, name=name))
            events.append(_meta("thread_sort_index", lane.mesh, 3 * stage + i, sort_index=3 * stage + i))
    spans = dict.fromkeys(span for window in shown for span in window.spans)
    events += [_complete(span, timeline) for span in spans]
    about = {"what": "predicted, not measured", "step_us": timeline.total_s * 1e6}
    if len(shown) > 1:
        about["left_out_us"] = [shown[0].end_s * 1e6, shown[1].begin_s * 1e6]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _meta(what: str, pid: int, tid: int, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _complete(span: Span, timeline: Timeline) -> dict[str, Any]:
    # A boundary is shown with the stage before it, each direction on a line of its own: both may be busy at once.
    line = (2 if span.back else 1) if span.kind == "transfer" else 0
    number = "" if span.micro_batch is None else f" {span.micro_batch}"
    return {
        "ph": "X",
        "name": f"{span.kind}{number}",
        "cat": span.kind,
        "pid": timeline.lanes[span.stage].mesh,
        "tid": 3 * span.stage + line,
        "ts": span.begin_s * 1e6,
        "dur": (span.end_s - span.begin_s) * 1e6,
        "args": {} if span.micro_batch is None else {"micro_batch": span.micro_batch},
    }
