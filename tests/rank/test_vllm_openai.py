"""What OpenAI's own client can ask of the real vLLM through the gateway, and what it is told where it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rank.served import Served, make_model, needs_vllm
from tools.bench.serve_engines import free_port

openai = pytest.importorskip("openai")

pytestmark = needs_vllm

M, CONTEXT = "m", 1024
ASKED: Any = [{"role": "user", "content": "hello"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
SCHEMA = {
    "type": "object",
    "properties": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}, "word": {"enum": ["yes", "no"]}},
    "required": ["digit", "word"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TOOLS: Any = [{"type": "function", "function": {"name": "tell", "strict": True, "parameters": SCHEMA}}]


DENSE = {"9": -100, "10": -100, "13": -100, "32": -100}
"""A bias against spaces, which random weights like to repeat."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("openai")
    given = {
        "model": str(make_model(root / "model", text=True)),
        "port": free_port(),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": CONTEXT,
        "chat_template": TEMPLATE,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
    served = Served(root, [{"serve_id": M, "engine_args": given}], gateway={})
    try:
        served.wait_for_all()
        yield openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120)
    finally:
        served.stop()


def check_schema(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"digit", "word"}
    assert found["digit"] in range(10)
    assert found["word"] in ("yes", "no")


def test_a_conversation_goes_through_the_template_whole_and_streamed(client: Any) -> None:
    whole = client.chat.completions.create(model=M, messages=ASKED, max_tokens=6, temperature=0)
    assert whole.usage.prompt_tokens == len("user: hello\nassistant: ")
    parts = list(
        client.chat.completions.create(
            model=M, messages=ASKED, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    said = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert said == whole.choices[0].message.content
    assert (parts[-1].choices, parts[-1].usage.completion_tokens) == ([], 6)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_schema_is_kept_to(client: Any, stream: bool) -> None:
    answer = client.chat.completions.create(
        model=M, messages=ASKED, max_tokens=100, response_format=FORMAT, stream=stream
    )
    check_schema(
        "".join(part.choices[0].delta.content or "" for part in answer) if stream else answer.choices[0].message.content
    )


def test_a_choice_and_a_pattern_are_kept_to(client: Any) -> None:
    def ask(**wanted: Any) -> str:
        answer = client.completions.create(
            model=M, prompt="x", max_tokens=20, extra_body={"structured_outputs": wanted}
        )
        return str(answer.choices[0].text)

    assert ask(choice=["left", "right"]) in ("left", "right")
    assert ask(regex="[a-f]{4}").strip("abcdef") == ""


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "tell"}}])
def test_a_tool_is_called_with_arguments_of_its_schema(client: Any, choice: Any) -> None:
    asked = {"model": M, "messages": ASKED, "max_tokens": 200, "tools": TOOLS, "logit_bias": DENSE}
    answer = client.chat.completions.create(**asked, tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "tell"
    check_schema(call.function.arguments)


def test_logprobs_are_of_the_tokens(client: Any) -> None:
    (choice,) = client.completions.create(model=M, prompt="ab", max_tokens=3, temperature=0, logprobs=2).choices
    assert "".join(choice.logprobs.tokens) == choice.text
    assert all(len(best) == 2 for best in choice.logprobs.top_logprobs)
    (choice,) = client.chat.completions.create(
        model=M, messages=ASKED, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    ).choices
    assert len(choice.logprobs.content) == 3
    assert all(each.logprob == max(best.logprob for best in each.top_logprobs) for each in choice.logprobs.content)


def test_several_answers_and_several_prompts_are_told_apart(client: Any) -> None:
    many = client.chat.completions.create(model=M, messages=ASKED, max_tokens=3, n=2)
    assert [choice.index for choice in many.choices] == [0, 1]
    parts = client.chat.completions.create(model=M, messages=ASKED, max_tokens=3, n=2, stream=True)
    assert {choice.index for part in parts for choice in part.choices} == {0, 1}
    prompts: list[Any] = ["ab", "cd"]
    both = client.completions.create(model=M, prompt=prompts, max_tokens=3, temperature=0)
    alone = [client.completions.create(model=M, prompt=each, max_tokens=3, temperature=0) for each in prompts]
    assert [choice.text for choice in both.choices] == [answer.choices[0].text for answer in alone]


def test_tokens_may_be_given_and_asked_for_by_number(client: Any) -> None:
    asked = {"model": M, "max_tokens": 4, "temperature": 0, "extra_body": {"return_token_ids": True}}
    answers = [client.completions.create(**asked, prompt=prompt) for prompt in ("abc", [97, 98, 99])]
    assert [answer.choices[0].prompt_token_ids for answer in answers] == [[97, 98, 99]] * 2
    assert answers[0].choices[0].token_ids == answers[1].choices[0].token_ids
    biased = client.completions.create(model=M, prompt="x", max_tokens=3, temperature=0, logit_bias={"65": 100})
    assert biased.choices[0].text == "AAA"


def test_an_answer_ends_at_a_stop_and_is_drawn_again_by_its_seed(client: Any) -> None:
    asked = {"model": M, "prompt": "x", "max_tokens": 12, "logit_bias": {"65": 100}, "temperature": 0}
    (choice,) = client.completions.create(**asked, stop=["AAA"]).choices
    assert (choice.text, choice.finish_reason) == ("", "stop")
    drawn = {
        client.completions.create(model=M, prompt="x", max_tokens=12, temperature=2, seed=5).choices[0].text
        for _ in range(3)
    }
    assert len(drawn) == 1


def test_what_vllm_refuses_arrives_as_it_said_it(client: Any) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"prompt": [1] * (CONTEXT + 1)}, f"maximum context length is {CONTEXT} tokens"),
        ({"prompt": [257]}, "Token id 257 is out of vocabulary"),
        ({"prompt": "x", "max_tokens": -3}, "max_tokens must be at least 1"),
        ({"prompt": "x", "temperature": -3}, "temperature must be non-negative"),
        ({"prompt": "x", "stream": True, "top_p": 0}, "top_p must be in"),
        ({"prompt": "x", "suffix": "z"}, "suffix is only supported"),
        ({"prompt": "x", "extra_body": {"structured_outputs": {"regex": "("}}}, "regex"),
    ]
    for asked, words in refused:
        with pytest.raises(openai.BadRequestError) as told:
            client.completions.create(model=M, **asked)
        assert words in told.value.message
    image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="not a multimodal model"):
        client.chat.completions.create(model=M, messages=[{"role": "user", "content": [image]}])


def test_what_is_not_offered_is_not_found(client: Any) -> None:
    for route in (client.embeddings, client.responses, client.moderations):
        with pytest.raises(openai.NotFoundError) as told:
            route.create(model=M, input="x")
        assert told.value.code == "not_found"
