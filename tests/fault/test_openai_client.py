"""OpenAI's own client, unchanged, against the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.toy.serving import Served, said


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder: Path = tmp_path_factory.mktemp("served")
    with Served(folder) as served:
        for _ in range(2):
            served.add_toy()
        served.start(env={"KEY": "secret"}, api_key_env="KEY", limits={"prompt_tokens": 1000})
        yield openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").owned_by == "flagvega"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="toy", prompt="hello", max_tokens=5)
    assert answer.choices[0].text == said(5)
    assert answer.usage
    assert answer.usage.completion_tokens == 5
    stream = client.completions.create(model="toy", prompt="hello", max_tokens=5, stream=True)
    assert "".join(part.choices[0].text for part in stream) == said(5)


def test_conversations(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = client.chat.completions.create(model="toy", messages=messages, max_tokens=5)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == said(5)
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="toy", messages=messages, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == said(5)
    assert parts[-1].usage.completion_tokens == 5


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="toy", prompt="x " * 4000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
