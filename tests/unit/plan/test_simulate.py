from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flagvega.plan.simulate import Pipeline, lower_bound_s, period_s, simple_bound_s, simulate

SECONDS = st.floats(0.01, 1.0)


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    num = draw(st.integers(1, 6))
    slow = [draw(st.booleans()) for _ in range(num - 1)]
    return Pipeline(
        forward=tuple(draw(SECONDS) for _ in range(num)),
        backward=tuple(draw(SECONDS) for _ in range(num)),
        transfer=tuple(draw(st.sampled_from([0.0, 0.05, 0.3, 1.5])) for _ in range(num - 1)),
        in_flight=tuple(num - s + sum(slow[s:]) for s in range(num)),
        num_micro_batches=draw(st.integers(1, 20)),
        reduction=tuple(draw(st.sampled_from([0.0, 0.2])) for _ in range(num)),
        optimizer=tuple(draw(st.sampled_from([0.0, 0.1])) for _ in range(num)),
    )


def balanced(num: int, m: int, transfer: float = 0.0, extra: int = 0) -> Pipeline:
    """Stages of one second; the middle boundary is slow by ``transfer``."""
    middle = (num - 1) // 2
    return Pipeline(
        (1 / 3,) * num, (2 / 3,) * num, tuple(transfer * (s == middle) for s in range(num - 1)),
        tuple(num - s + extra * (s <= middle) for s in range(num)), m, (0.0,) * num, (0.0,) * num,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(pipelines())
def test_no_bound_exceeds_the_simulation(pipeline: Pipeline) -> None:
    total = simulate(pipeline).total_s
    times = [f + b for f, b in zip(pipeline.forward, pipeline.backward, strict=True)]
    assert simple_bound_s(times, pipeline.transfer, pipeline.num_micro_batches) <= total + 1e-9
    assert lower_bound_s(pipeline) <= total + 1e-9


@settings(max_examples=100, deadline=None)
@given(pipelines())
def test_the_period_is_that_of_the_simulation(pipeline: Pipeline) -> None:
    from dataclasses import replace

    short, long = (simulate(replace(pipeline, num_micro_batches=m)).total_s for m in (240, 480))
    assert abs((long - short) / 240 / period_s(pipeline) - 1) < 0.005


def test_equal_stages_without_transfers_take_what_the_textbook_says() -> None:
    assert abs(simulate(balanced(4, 16)).total_s - (16 + 3)) < 1e-9


def test_stock_1f1b_hides_no_transfer_and_one_more_in_flight_hides_it() -> None:
    assert abs(period_s(balanced(4, 8, transfer=0.4)) - 1.4) < 1e-9
    assert abs(period_s(balanced(4, 8, transfer=0.4, extra=1)) - 1.0) < 1e-9


def test_events_are_those_of_every_micro_batch_and_never_overlap_on_a_stage() -> None:
    events = simulate(balanced(3, 5, 0.2), with_events=True).events
    assert len(events) == 2 * 3 * 5
    for stage in range(3):
        spans = sorted((begin, end) for s, _, _, begin, end in events if s == stage)
        assert all(end <= begin + 1e-12 for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))


def test_a_late_reduction_hides_behind_the_stages_that_finish_later() -> None:
    early = Pipeline((1.0, 1.0), (1.0, 1.0), (0.0,), (2, 1), 4, (0.0, 0.9), (0.1, 0.2))
    late = Pipeline((1.0, 1.0), (1.0, 1.0), (0.0,), (2, 1), 4, (0.9, 0.0), (0.1, 0.2))
    assert simulate(early).total_s == simulate(Pipeline(*early.__dict__.values())).total_s
    assert abs(simulate(late).total_s - simulate(early).total_s - 0.9) < 1e-9
