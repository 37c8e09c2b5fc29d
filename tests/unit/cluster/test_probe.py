from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from flagvega.cluster.probe import facts_to_json, probe_host, render_facts
from flagvega.platform import platforms


def test_a_host_is_described_without_importing_torch():
    script = (
        "import json, sys\nfrom flagvega.cluster.probe import facts_to_json, probe_host\n"
        "facts = facts_to_json(probe_host())\nassert not {'torch', 'megatron', 'vllm'} & set(sys.modules)\n"
        "print(json.dumps(facts))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["num_cores"] >= 1
    assert facts["devices"]
    assert "torch" in facts["versions"]


def test_the_tables_show_devices_chips_and_what_was_never_tested(monkeypatch):
    nvidia = platforms.get("nvidia")
    monkeypatch.setattr(type(nvidia), "detect", lambda self: [self.describe(0, "NVIDIA H200", 140 << 30)])
    facts = probe_host()
    console = Console(width=120, record=True, file=StringIO())
    console.print(render_facts(facts))
    shown = console.export_text()
    assert "nvidia 0" in shown
    assert "h200-sxm" in shown
    assert "140.0 GiB" in shown
    assert "untested on hardware by us: nvidia" in shown
    assert json.loads(json.dumps(facts_to_json(facts)))["untested"] == ["nvidia"]


def test_infiniband_ports_are_read_with_their_rate(tmp_path: Path):
    from flagvega.cluster.probe import Network, _list_infiniband

    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert _list_infiniband(tmp_path) == [Network("mlx5_0/1", 400e9)]
    assert _list_infiniband(tmp_path / "none") == []
