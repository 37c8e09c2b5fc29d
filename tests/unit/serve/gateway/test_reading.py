"""What is read of questions and of streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagvega.serve.gateway.errors import ApiError
from flagvega.serve.gateway.question import MOST_COMMAS, MOST_TOKENS, Question, read_question
from flagvega.serve.gateway.stream import StreamReader

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
NAMES = ("model", "prompt", "messages", "stream", "n", "max_tokens", "max_completion_tokens")


def outcome(body: bytes, path: str = "/v1/completions") -> Question | ApiError:
    try:
        return read_question(path, body)
    except ApiError as error:
        return error


@given(value=st.dictionaries(st.sampled_from(NAMES), JSON) | JSON, chat=st.booleans())
def test_any_json_is_read_or_refused_in_openai_s_form(value: Any, chat: bool) -> None:
    found = outcome(json.dumps(value).encode(), "/v1/chat/completions" if chat else "/v1/completions")
    if isinstance(found, ApiError):
        assert found.status == 400
        assert json.loads(found.body)["error"]["message"]
    else:
        assert found.num_answers >= 1
        assert found.max_tokens is None or found.max_tokens >= 1


@given(body=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    found = outcome(body)
    assert not isinstance(found, ApiError) or found.status == 400


def test_a_question_tells_what_routing_needs() -> None:
    body = {"model": "m", "prompt": ["ab" * 300, "c"], "max_tokens": 7, "n": 2, "stream": True}
    found = read_question("/v1/completions", json.dumps(body).encode())
    assert (found.num_characters, found.num_ids, found.max_tokens, found.num_answers) == (601, 0, 7, 4)
    assert found.stream
    assert not found.blocks
    ids = read_question("/v1/completions", json.dumps({"model": "m", "prompt": list(range(130))}).encode())
    assert (ids.num_characters, ids.num_ids, len(ids.blocks), ids.max_tokens) == (0, 130, 2, None)
    parts = [{"type": "text", "text": "y" * 500}, {"type": "image_url", "image_url": {"url": "data:" + "z" * 9999}}]
    chat = {"model": "m", "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 9}
    found = read_question("/v1/chat/completions", json.dumps(chat).encode())
    assert (found.num_characters, found.max_tokens, len(found.blocks)) == (505, 9, 1)


def test_no_number_is_larger_than_what_an_engine_can_give() -> None:
    body = {"model": "m", "prompt": "x", "max_tokens": 10**4000, "n": 10**4000}
    found = read_question("/v1/completions", json.dumps(body).encode())
    assert (found.max_tokens, found.num_answers) == (MOST_TOKENS, MOST_TOKENS)


def test_a_body_of_millions_of_values_is_not_even_read() -> None:
    found = outcome(b'{"model": "m", "prompt": [' + b"1," * MOST_COMMAS + b"1]}")
    assert isinstance(found, ApiError)
    assert (found.status, found.code) == (413, "request_too_large")


def events(*values: Any) -> bytes:
    return b"".join(
        b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n" for value in values
    )


ROLE = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
TOKEN = {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
DEAD = {"error": {"message": "dead", "code": 500}}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_a_stream_is_read_alike_however_it_is_cut(size: int) -> None:
    stream = events(ROLE, TOKEN, TOKEN, USAGE, b"[DONE]")
    reader = StreamReader()
    passed, num = b"", 0
    for i in range(0, len(stream), size):
        num += reader.feed(stream[i : i + size])
        assert reader.whole.endswith(b"\n\n") or not reader.whole
        passed += reader.whole
    assert passed == stream
    assert num == 3  # what is counted comes as an event too
    assert reader.begun
    assert reader.finished
    assert reader.usage() == {"prompt_tokens": 3, "completion_tokens": 2}


def test_a_role_is_no_token_and_an_error_before_the_first_is_no_answer() -> None:
    reader = StreamReader()
    assert reader.feed(events(ROLE)) == 0
    assert not reader.begun
    reader.feed(events(DEAD, b"[DONE]"))  # vLLM sends both at once
    assert reader.error == DEAD["error"]
    assert not reader.begun


@pytest.mark.parametrize("size", [1, 10_000])
def test_lines_of_a_stream_may_end_as_those_of_http_do(size: int) -> None:
    stream = events(TOKEN, TOKEN, b"[DONE]")
    reader, passed, num = StreamReader(), b"", 0
    sent = stream.replace(b"\n", b"\r\n")
    for i in range(0, len(sent), size):
        num += reader.feed(sent[i : i + size])
        passed += reader.whole
    assert (passed, num, reader.finished) == (stream, 2, True)


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_an_error_after_the_first_token_is_no_end_and_no_part_of_the_answer(size: int) -> None:
    stream = events(TOKEN, DEAD, b"[DONE]")
    reader, passed = StreamReader(), b""
    for i in range(0, len(stream), size):
        reader.feed(stream[i : i + size])
        passed += reader.whole
        if reader.error:
            break
    assert passed == events(TOKEN)
    assert reader.error == DEAD["error"]
    assert not reader.finished


def test_an_answer_that_says_what_events_say_is_read_as_text() -> None:
    said = 'data: [DONE]\n\ndata: {"error": 1}'
    stream = events({"choices": [{"delta": {"content": said}}]})
    reader = StreamReader()
    assert [reader.feed(stream), reader.feed(stream)] == [1, 1]
    assert (reader.error, reader.finished) == (None, False)


def test_a_token_without_text_is_a_token() -> None:
    reader = StreamReader()
    assert reader.feed(events({"choices": [{"index": 0, "text": ""}]})) == 1
    assert reader.begun


def test_tokens_are_counted_one_for_each_event() -> None:
    reader = StreamReader()
    assert reader.feed(events(ROLE, TOKEN)) == 1
    assert reader.feed(events(TOKEN, TOKEN)) == 2
    assert reader.feed(events(b"[DONE]")) == 0
    assert reader.usage() == {}
