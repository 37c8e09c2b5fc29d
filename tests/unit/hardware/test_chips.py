from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

import hardware
from flagvega.errors import ConfigError
from flagvega.platform import all_chips, find_chip, match_chip, platforms

GIB = 2**30
FILES = sorted(Path(hardware.__path__[0]).glob("*/chips.yaml"))
MADE_UP = {"cpu", "null", "emulated"}
KEYS = {
    "name",
    "aliases",
    "memory_gib",
    "bandwidth_gb_s",
    "peak_tflops",
    "link_gb_s",
    "source",
    "certainty",
    "note",
}
DTYPES = {"fp32", "tf32", "fp16", "bf16", "fp8", "int8"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_chips_file_has_known_keys_and_says_nothing_where_nothing_is_known(path):
    for entry in yaml.safe_load(path.read_text()):
        assert set(entry) <= KEYS, entry["name"]
        assert set(entry.get("peak_tflops", {})) <= DTYPES
        figures = [entry.get(key, 1) for key in ("memory_gib", "bandwidth_gb_s", "link_gb_s")]
        assert all(figure > 0 for figure in (*figures, *entry.get("peak_tflops", {"": 1}).values())), entry["name"]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent.name not in MADE_UP], ids=lambda p: p.parent.name
)
def test_a_figure_of_a_real_chip_has_a_source_and_a_certainty(path):
    for entry in yaml.safe_load(path.read_text()):
        assert entry["certainty"] in ("read", "said", "memory"), entry["name"]
        assert entry["source"], entry["name"]


def test_a_name_means_one_chip_and_an_alias_too_but_for_the_one_that_two_generations_share():
    chips = all_chips().values()
    aliases = Counter(name.casefold() for chip in chips for name in {chip.name, *chip.aliases})
    assert {name for name, count in aliases.items() if count > 1} == {"ascend910"}


@pytest.mark.parametrize(
    ("vendor", "device_name", "memory_gib", "chip"),
    [
        ("nvidia", "NVIDIA H20", 95.6, "h20"),
        ("nvidia", "NVIDIA H200", 139.8, "h200-sxm"),
        ("nvidia", "NVIDIA H200 NVL", 139.8, "h200-nvl"),
        ("nvidia", "NVIDIA GH200 480GB", 94.5, "gh200-96g"),
        ("nvidia", "NVIDIA GB200", 185, "gb200"),
        ("nvidia", "NVIDIA B200", 179, "b200-sxm"),
        ("nvidia", "NVIDIA A10", 22.5, "a10"),
        ("nvidia", "NVIDIA A100-SXM4-40GB", 39.4, "a100-sxm-40g"),
        ("nvidia", "NVIDIA A100-SXM4-80GB", 79.2, "a100-sxm-80g"),
        ("nvidia", "NVIDIA A100 80GB PCIe", 79.2, "a100-pcie-80g"),
        ("nvidia", "NVIDIA H100 80GB HBM3", 79.6, "h100-sxm"),
        ("nvidia", "NVIDIA H100 PCIe", 79.6, "h100-pcie"),
        ("nvidia", "NVIDIA L4", 22.5, "l4"),
        ("nvidia", "NVIDIA L40S", 45, "l40s"),
        ("nvidia", "NVIDIA L40", 45, "l40"),
        ("nvidia", "Tesla T4", 15, "t4"),
        ("nvidia", "NVIDIA GeForce RTX 3090", 24, "rtx-3090"),
        ("ascend", "Ascend910B4", 32, "ascend-910b4"),
        ("ascend", "Ascend910B4-1", 64, "ascend-910b4-1"),
        ("ascend", "Ascend910_9392", 64, "ascend-910c-die"),
        ("ascend", "Ascend910", 64, "ascend-910c-die"),
        ("ascend", "Ascend910", 32, "ascend-910a"),
        ("hygon", "K100_AI", 64, "dcu-k100-ai"),
        ("hygon", "K100", 64, "dcu-k100"),
        ("hygon", "BW200, UBB BW1000", 64, "dcu-bw1000"),
        ("amd", "AMD Instinct MI250X", 64, "mi250x"),
        ("amd", "AMD Instinct MI300X VF", 192, "mi300x"),
        ("intel_gaudi", "GAUDI3", 128, "gaudi3"),
        ("intel", "Intel(R) Data Center GPU Max 1550", 64, "max-1550"),
    ],
)
def test_a_device_name_means_the_longest_chip_name_in_it(vendor, device_name, memory_gib, chip):
    found = match_chip(device_name, platforms.get(vendor).chips().values(), round(memory_gib * GIB))
    assert found is not None
    assert found.name == chip


@pytest.mark.parametrize(
    ("vendor", "device_name", "memory_gib"),
    [
        ("nvidia", "GeForce RTX 3090 Ti", 24),
        ("nvidia", "GeForce RTX 4090 D", 24),
        ("nvidia", "GeForce RTX 4090 Laptop GPU", 16),
        ("nvidia", "A100-SXM4-80GB MIG 3g.40gb", 39.4),
        ("nvidia", "A100 80GB PCIe MIG 3g.40gb", 39.4),
        ("nvidia", "A10G", 22.5),
        ("nvidia", "Tesla V100S-PCIE-32GB", 32),
        ("nvidia", "A100-SXM-64GB", 64),
        ("cambricon", "MLU370-S8", 48),
        ("iluvatar", "Iluvatar BI-V150", 32),
    ],
)
def test_a_variant_or_a_slice_of_a_chip_is_not_that_chip(vendor, device_name, memory_gib):
    found = match_chip(device_name, platforms.get(vendor).chips().values(), round(memory_gib * GIB))
    assert found is None or found.name == vendor


def test_a_device_that_is_not_listed_is_its_vendors_nameless_chip_without_facts():
    device = platforms.get("nvidia").describe(0, "NVIDIA Z9000", 10 * GIB)
    assert device.chip == "nvidia"
    assert find_chip("nvidia").memory_bytes is None


@pytest.mark.parametrize(("name", "devices_memory_gib"), [("mi250", 64), ("MI250X", 64), ("910C", 64), ("PVC", 64)])
def test_a_card_that_is_two_devices_is_listed_by_device(name, devices_memory_gib):
    chip = find_chip(name)
    assert chip.memory_bytes == devices_memory_gib * GIB
    assert "two" in chip.note


@pytest.mark.parametrize(
    ("name", "chip"), [("H100", "h100-sxm"), ("h100-sxm", "h100-sxm"), ("K100_AI", "dcu-k100-ai"), ("EMU-L", "emu-l")]
)
def test_a_chip_is_found_by_name_or_alias_in_any_case(name, chip):
    assert find_chip(name).name == chip


def test_an_unknown_chip_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown chip 'emu-xl'\n.*did you mean emu-l"):
        find_chip("emu-xl")


def test_an_alias_of_two_chips_is_answered_with_both():
    with pytest.raises(ConfigError, match="ascend-910a, ascend-910c-die"):
        find_chip("Ascend910")


def test_an_unknown_figure_is_none_and_a_known_one_has_its_unit():
    assert find_chip("c500").peak_flops is None
    h100 = find_chip("h100-sxm")
    assert (h100.memory_bytes, h100.memory_bytes_per_s, h100.link_bytes_per_s) == (80 * GIB, 3350e9, 450e9)
    assert h100.peak_flops is not None
    assert h100.peak_flops["bf16"] == 989e12
