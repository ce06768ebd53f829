"""The table of ratios says what was measured: medians over vqkit's, memory, machine and date."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import naive
from benchmarks.memory import peak_extra_memory
from benchmarks.report import main, table


def row(group, contender, median, memory):
    stats = {"median": median, "min": median / 2, "max": median * 2}
    return {"group": group, "extra_info": {"contender": contender, "extra_memory": memory}, "stats": stats}


RESULTS = {
    "machine_info": {"python_version": "3.11.7", "machine": "x86_64", "vqkit": {"device": "a processor, 2 threads", "versions": {"torch": "2.13"}}},
    "datetime": "2026-01-02T03:04:05",
    "benchmarks": [row("search", "vqkit", 0.002, 2**20), row("search", "cdist", 0.009, None), row("sums", "one-hot", 0.001, 0)],
}


def test_ratios():
    lines = table(RESULTS).splitlines()
    assert "a processor, 2 threads" in lines[0] and "torch 2.13" in lines[0] and "2026-01-02" in lines[0]
    assert lines[4] == "| search | vqkit | 2 ms | 1 ms..4 ms | 1.0 MiB |  |"
    assert lines[5] == "|  | cdist | 9 ms | 4.5 ms..18 ms | - | 4.5x |"
    assert lines[6].endswith("| 0.0 MiB |  |"), "no ratio where vqkit was not measured"


def test_a_file_that_holds_no_results_is_named(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"benchmarks": 1}))
    monkeypatch.setattr(sys, "argv", ["report", str(broken)])
    with pytest.raises(SystemExit):
        main()
    assert "broken.json" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_is_freed_again():
    peak = peak_extra_memory(lambda: float(torch.ones(64 * 2**20 // 4).sum()), "cpu")
    assert peak is not None and 60 * 2**20 < peak < 100 * 2**20


def test_naive_quantizer_computes_what_ours_does():
    import vqkit

    theirs = naive.NaiveQuantizer(6, 9, codebook="learned", top_k=2)
    ours = vqkit.Quantizer(6, 9, codebook="learned", top_k=2, commitment_weight=0.25, channel_first=True)
    with torch.no_grad():
        ours.codebook.codes.copy_(theirs.codes)
    x = torch.randn(2, 6, 3, 5)
    quantized, _, loss = theirs(x)
    result = ours(x)
    torch.testing.assert_close(result.quantized, quantized)
    torch.testing.assert_close(result.loss, loss)


@pytest.mark.slow
def test_every_benchmark_runs():
    result = subprocess.run([sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-disable"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
