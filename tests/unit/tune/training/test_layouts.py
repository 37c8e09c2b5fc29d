from __future__ import annotations

import numpy as np
import pytest

from flagvega.layout.request import MeshRequest
from flagvega.tune.training.layouts import list_splits
from flagvega.tune.training.shape import Shape
from flagvega.tune.training.space import Space

AUTO = Space({"hetero_pipeline_layer_split": None})


def shape(*stages: int, virtual: int = 1) -> Shape:
    return Shape(tuple(MeshRequest(dp=1, pp=pp, chip=f"chip-{i}") for i, pp in enumerate(stages)), 1, virtual)


@pytest.mark.parametrize(("stages", "layers"), [((1,), 8), ((4,), 8), ((1, 1), 8), ((2, 4), 16), ((1, 2, 1), 9)])
def test_every_split_is_whole_without_empty_stages_and_there_once(stages, layers):
    splits = list_splits(AUTO, shape(*stages), layers)

    assert splits.shape[1] == sum(stages)
    assert (splits.sum(axis=1) == layers).all()
    assert (splits >= 1).all()
    assert len(np.unique(splits, axis=0)) == len(splits)


def test_layers_are_cut_everywhere_between_meshes():
    splits = list_splits(AUTO, shape(1, 1), 5).tolist()

    assert splits == [[1, 4], [2, 3], [3, 2], [4, 1]]


def test_the_stage_with_the_head_may_be_lighter_than_the_others_of_its_mesh():
    splits = list_splits(AUTO, shape(3), 12).tolist()

    assert [4, 4, 4] in splits
    assert [5, 4, 3] in splits
    assert [6, 5, 1] in splits
    assert [4, 3, 5] not in splits


def test_an_interleaved_schedule_has_equal_chunks():
    assert list_splits(AUTO, shape(2, virtual=2), 8).tolist() == [[4, 4]]


def test_lists_are_taken_where_they_fit():
    space = Space({"hetero_pipeline_layer_split": ((3, 5), (4, 4), (8,), (1, 1))})

    assert list_splits(space, shape(1, 1), 8).tolist() == [[3, 5], [4, 4]]
    assert list_splits(space, shape(1), 8).tolist() == [[8]]
