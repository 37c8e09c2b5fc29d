from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagvega.config.nearest import edit_distance, nearest, suggest

KEYS = ("num_layers", "hidden_size", "ffn_hidden_size", "micro_batch_size", "global_batch_size", "lr", "min_lr", "seed")


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("num_layer", "num_layers"),
        ("Num-Layers", "num_layers"),
        ("hiden_size", "hidden_size"),
        ("batch_size", "global_batch_size"),
        ("learning_rate", "lr"),
        ("n_layers", "num_layers"),
        ("intermediate_size", "ffn_hidden_size"),
    ],
)
def test_the_key_that_was_meant_comes_first(word, first):
    assert nearest(word, KEYS)[0] == first


def test_nothing_is_suggested_for_what_is_like_nothing():
    assert nearest("zebra", KEYS) == ()
    assert suggest("zebra", KEYS) == ""


def test_a_word_of_another_tool_is_suggested_only_where_the_engine_has_it():
    assert nearest("learning_rate", ("seed",)) == ()


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_distance_is_symmetric_zero_on_equals_and_bounded(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) <= max(len(a), len(b))
    assert edit_distance(a + c, b + c) <= edit_distance(a, b)


def test_a_swap_of_neighbours_is_one_edit():
    assert edit_distance("layers", "lyaers") == 1
