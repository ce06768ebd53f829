"""The table of exactness counts what it says, and vqkit has no entry in it."""

import sys

import pytest
import torch

from benchmarks import exactness

SMALL = ((96, 5), (130, 40))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(exactness, "ROWS", 64)
    monkeypatch.setattr(exactness, "SHAPES", SMALL)


def test_vqkit_is_right_everywhere_and_plain_pytorch_is_not():
    counts = exactness.measure(64, SMALL, seed=0)
    assert exactness.mistakes(counts) == []
    for table in counts.values():
        assert ("vqkit, reference", "cpu") in table and all(len(row) == len(exactness.DATA) for row in table.values())
        offset = dict(zip(exactness.DATA, table["torch.cdist + argmin, fp32", "cpu"]))["offset +1000"]
        assert 64 // 10 < offset <= 64
        rounded = dict(zip(exactness.DATA, table["x.c - h, bf16 operands, fp32 sums", "cpu"]))
        assert rounded["offset +20"] > 64 // 4 and rounded["bf16 input"] == 0, "bf16 input loses nothing in bf16"


def test_what_counts_as_wrong():
    codes = torch.tensor([[0.0, 1], [1, 0], [3, 3], [0, 1], [1, 0]])
    oracle = exactness.Oracle(torch.zeros(7, 2), codes)
    # Two nearest codes at the same distance, each with a copy; one that is not nearest; none.
    assert [oracle.wrong(torch.full((7,), index)) for index in (0, 1, 2, 3, 4, -1)] == [0, 0, 7, 7, 7, 7]
    last_bit = torch.tensor([[1.0], [torch.tensor(1.0).nextafter(torch.tensor(0.0)).item()]])
    assert exactness.Oracle(torch.zeros(1, 1), last_bit).wrong(torch.tensor([0])) == 1, "one float32 bit further is further"


def test_the_tables_name_the_machine_the_versions_and_the_seed(small, monkeypatch, capsys, tmp_path):
    out = tmp_path / "exactness.md"
    monkeypatch.setattr(sys, "argv", ["exactness", "--out", str(out)])
    exactness.main()
    text = out.read_text()
    assert capsys.readouterr().out == text
    assert all(part in text for part in (f"torch {torch.__version__}", "seed 0", "64 latents", "K = 130, D = 40:"))
    lines = text.splitlines()
    assert {line.count("|") for line in lines if line.startswith("|")} == {3 + len(exactness.DATA)}
    ours = [line for line in lines if line.startswith("| **vqkit, reference**")]
    assert len(ours) == 1 + len(SMALL) and all(set(line.split("|")[3:-1]) == {" 0 "} for line in ours)


def test_a_wrong_code_of_ours_is_the_exit_status(small, monkeypatch, capsys):
    monkeypatch.setattr(exactness, "nearest_code", lambda latents, codes, backend: torch.zeros(len(latents), dtype=torch.int64))
    monkeypatch.setattr(sys, "argv", ["exactness"])
    with pytest.raises(SystemExit) as stopped:
        exactness.main()
    assert "vqkit, reference on cpu" in str(stopped.value) and "offset +20, K = 96, D = 5" in str(stopped.value)
