"""The tool from its command line to the files that training reads."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.megatron.preparation.corpus import python_corpus
from backends.megatron.tokenizer import arguments_for, open_tokenizer

TOOL = Path(__file__).parents[3] / "tools" / "prepare_data.py"


@pytest.fixture
def tool() -> Any:
    """The tool's main function, in this process: starting it takes seconds."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("prepare_data", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def documents(prefix: Path) -> list[list[int]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    return [np.asarray(dataset[i]).tolist() for i in range(len(dataset))]


def write_lines(file: Path, *objects: Any) -> Path:
    file.write_text("".join(json.dumps(item) + "\n" for item in objects), encoding="utf-8")
    return file


def test_files_patterns_and_directories_become_documents_in_order(tmp_path: Path, tool: Any) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("bé", encoding="utf-8")
    (folder / "ignored.bin").write_bytes(b"\xff")
    with gzip.open(folder / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "c.log").write_text("c", encoding="utf-8")
    assert tool(folder, f"{tmp_path}/*.log", "--tokenizer", "byte", "--workers", 1, "--output", tmp_path / "out") == 0
    texts = [*map(list, (b"one", b"two", "bé".encode(), b"c"))]
    assert documents(tmp_path / "out") == [[*text, 256] for text in texts]
    assert json.loads((tmp_path / "out.json").read_text())["vocab_size"] == 257
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.bin", "out.idx", "out.json"]


def test_workers_write_what_one_process_writes(tmp_path: Path, tool: Any) -> None:
    lines = [{"text": f"document {i} " * 2000} for i in range(100)]
    file = write_lines(tmp_path / "a.jsonl", *lines)
    for workers in (1, 2):
        output = tmp_path / str(workers)
        options = ("--tokenizer", "byte", "--workers", workers, "--no-append-eod")
        assert tool(file, *options, "--output", output) == 0
    assert (tmp_path / "1.bin").read_bytes() == (tmp_path / "2.bin").read_bytes()
    assert (tmp_path / "1.idx").read_bytes() == (tmp_path / "2.idx").read_bytes()
    assert len(documents(tmp_path / "1")) == 100


def test_answers_alone_are_counted(tmp_path: Path, tool: Any) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"q": "1+1? ", "a": "2"}, {"q": "ok?", "a": "yes"})
    output = tmp_path / "qa_text_document"
    options = ("--sft", "--prompt-key", "q", "--answer-key", "a", "--tokenizer", "byte", "--workers", 1)
    assert tool(file, *options, "--output", output) == 0
    assert documents(output) == [[*b"1+1? 2", 256], [*b"ok?yes", 256]]
    assert documents(tmp_path / "qa_loss_mask_document") == [[0] * 5 + [1, 1], [0] * 3 + [1] * 4]


def test_a_trained_tokenizer_is_used_and_round_trips(tmp_path: Path, tool: Any, capsys: Any) -> None:
    file, trained, output = tmp_path / "a.txt", tmp_path / "new" / "tokenizer.json", tmp_path / "out"
    file.write_text("the cat and the dog and the cow " * 50)
    options = ("--train-tokenizer", trained, "--vocab-size", 270, "--workers", 1, "--output", output)
    assert tool(file, *options) == 0
    tokenizer = open_tokenizer(arguments_for(trained))
    (ids,) = documents(output)
    assert tokenizer.decode(ids) == file.read_text()
    assert (ids[-1], len(ids) < 500) == (tokenizer.vocabulary.eod, True)
    assert f"tokenizer_model: {trained}" in capsys.readouterr().out
    assert tool(file, *options) == 0
    assert "up to date" in capsys.readouterr().out
    file.write_text("else")
    assert tool(file, *options) == 0
    assert tokenizer.vocabulary.size > open_tokenizer(arguments_for(trained)).vocabulary.size


def test_the_python_corpus_is_the_same_every_time_and_has_no_tests() -> None:
    first, second = (list(python_corpus(600_000)) for _ in range(2))
    assert first == second
    assert 600_000 <= sum(len(text.encode()) for text in first) < 900_000
    assert any('The "if" statement' in text for text in first)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ('{"text": "a"}\n{"text": \n', (), "a.jsonl:2: not JSON"),
        ('{"body": "a"}\n', (), "its fields are: body"),
        ("[1]\n", (), "expected a JSON object"),
        ('{"text": 1}\n', (), "no text in field 'text'"),
        ('{"prompt": "a"}\n', ("--sft",), "no text in field 'answer'"),
        ("\n", (), "the input has no text"),
    ],
)
def test_bad_lines_are_named_and_nothing_is_written(
    tmp_path: Path, tool: Any, capsys: Any, content: str, options: tuple[str, ...], words: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    output = tmp_path / "out"
    assert tool(file, *options, "--tokenizer", "byte", "--workers", 1, "--output", output) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_missing_inputs_and_tokenizers_exit_with_2(tmp_path: Path, tool: Any, capsys: Any) -> None:
    assert tool(tmp_path / "none*", "--tokenizer", "byte", "--output", tmp_path / "out") == 2
    assert "no input file" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("a")
    assert tool(tmp_path / "a.txt", "--tokenizer", tmp_path / "none", "--output", tmp_path / "out") == 2
    assert "no such tokenizer" in capsys.readouterr().err


def test_a_fault_in_a_worker_is_told_like_any_other(tmp_path: Path, tool: Any, capsys: Any) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{\n')
    assert tool(file, "--tokenizer", "byte", "--workers", 2, "--output", tmp_path / "out") == 2
    assert f"{file}:2: not JSON" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    argv = [sys.executable, "-P", "-X", "importtime", str(TOOL), "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "--train-tokenizer" in done.stdout
    assert " torch" not in done.stderr
