from __future__ import annotations

import pytest

from flagvega.config.redact import REDACTED, is_secret, redact


@pytest.mark.parametrize(
    "key",
    ["WANDB_API_KEY", "HF_TOKEN", "token", "password", "AWS_SECRET_ACCESS_KEY", "db-passwd", "api_key", "SSH_KEY",
     "GITHUB_TOKEN", "auth", "private_key", "credentials"],
)  # fmt: skip
def test_names_of_secrets_are_known(key):
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    ["num_tokens", "use_cls_token", "num_memory_tokens", "calculate_per_token_loss", "special_tokens_file", "lr",
     "disable_vision_class_token", "moe_token_dispatcher_type", "tokenizer_model", "eod_token_id", "key", "author",
     "max_tokens", "monkey", "tiktoken_special_tokens", "moe_token_dropping", "keys"],
)  # fmt: skip
def test_harmless_names_are_left_alone(key):
    assert not is_secret(key)


def test_no_engine_argument_but_real_secrets_looks_like_one():
    from backends.megatron.arguments import keys

    assert {name for name in keys() if is_secret(name)} <= {"wandb_api_key"}


def test_values_are_redacted_and_references_stay():
    values = {
        "a": [{"token": "x"}], "secrets": {"b": "plain"}, "url": "https://me:pw@host/x@y",
        "HF_TOKEN": "${oc.env:HF_TOKEN}", "API_KEY": "${oc.env:K,leak}", "password": 5,
    }  # fmt: skip

    assert redact(values) == {
        "a": [{"token": REDACTED}], "secrets": {"b": REDACTED}, "url": "https://host/x@y",
        "HF_TOKEN": "${oc.env:HF_TOKEN}", "API_KEY": REDACTED, "password": REDACTED,
    }  # fmt: skip
