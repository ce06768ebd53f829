"""The sweeps measure every point within the limits, say where they stop and why, and draw what they measured."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import scaling
from benchmarks.cases import Shape

SWEEPS = {"n": (50, 200), "size": (32,), "dim": (6,)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(scaling, "BASE", Shape(n=100, size=16, dim=4))
    monkeypatch.setattr(scaling, "SWEEPS", SWEEPS)
    monkeypatch.setattr(scaling, "_TIMED_SECONDS", 0.001)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scaling", *map(str, arguments)])
    scaling.main()


def test_every_point_is_measured_written_and_drawn(tmp_path, monkeypatch):
    run(monkeypatch, "--out", tmp_path / "new" / "folder")
    results = json.loads((tmp_path / "new" / "folder" / "scaling.json").read_text())
    assert results["stopped"] == [] and results["about"]["limits"] == {"seconds_a_point": 120, "memory_bytes": scaling.MEMORY_LIMIT}
    measured = [(p["task"], p["contender"], p["swept"], p["shape"][p["swept"]]) for p in results["points"]]
    assert measured == [
        (task, name, swept, value)
        for task, contenders in scaling.TASKS.items()
        for swept, values in SWEEPS.items()
        for name in contenders
        for value in values
    ]
    for point in results["points"]:
        assert 0 < point["lower"] <= point["median"] <= point["upper"] < 60
        assert point["extra_memory"] is None or 0 <= point["extra_memory"] < 2**30
        others = {name: value for name, value in point["shape"].items() if name != point["swept"]}
        assert others.items() <= {"n": 100, "size": 16, "dim": 4}.items()
    for task in scaling.TASKS:
        with Image.open(tmp_path / "new" / "folder" / f"{task.replace(' ', '_')}.png") as picture:
            assert picture.width >= 1200 and len(picture.convert("RGB").getcolors(1 << 24)) > 10
        axes = scaling.plot(results, task).axes
        assert len(axes) == 6 and [each.get_xlabel() for each in axes[3:]] == list(scaling.LABELS.values())
        assert [line.get_label() for line in axes[0].lines] == list(scaling.TASKS[task])
        first = [p for p in results["points"] if (p["task"], p["contender"], p["swept"]) == (task, "vqkit", "n")]
        assert axes[0].lines[0].get_xydata() == pytest.approx(np.array([[p["shape"]["n"], p["median"] * 1e3] for p in first]))


def test_matrices_over_the_memory_limit_are_left_out(monkeypatch):
    monkeypatch.setattr(scaling, "MEMORY_LIMIT", 32 * 2**20)
    monkeypatch.setattr(scaling, "BASE", Shape(n=100, size=512, dim=4))
    monkeypatch.setattr(scaling, "SWEEPS", {"n": (10_000, 20_000)})
    results = scaling.measure(seconds=600)
    stopped = {(stop["task"], stop["contender"]): (stop["value"], stop["reason"]) for stop in results["stopped"]}
    assert {place: value for place, (value, _) in stopped.items()} == {
        ("nearest_code", "addmm + argmin"): 20_000,
        ("nearest_code", "cdist + argmin"): 20_000,
        ("quantizer training step", "cdist + one-hot"): 10_000,
    }
    assert all("GiB" in reason for _, reason in stopped.values())
    assert sum(point["contender"] == "vqkit" for point in results["points"]) == 4, "vqkit has no such matrix"
    # The crosses of two contenders that stopped, beside three lines; the third contender of the other task has no point at all.
    assert len(scaling.plot(results, "nearest_code").axes[0].lines) == 5
    assert len(scaling.plot(results, "quantizer training step").axes[0].lines) == 1


def test_a_sweep_stops_where_a_point_would_take_too_long(monkeypatch):
    monkeypatch.setattr(scaling, "peak_extra_memory", lambda call, device: None)
    results = scaling.measure(seconds=1e-9)
    assert {p["shape"]["n"] for p in results["points"] if p["swept"] == "n"} == {50}
    assert {p["swept"] for p in results["points"]} == set(SWEEPS), "the first point is always measured"
    assert len(results["stopped"]) == sum(map(len, scaling.TASKS.values()))
    assert all(stop["value"] == 200 and "the limit is 1e-09 s" in stop["reason"] for stop in results["stopped"])
    times, memory = scaling.plot(results, "nearest_code").axes[::3][:2]
    assert len(times.lines) == 6 and not memory.lines, "no memory is drawn where the system does not tell"


def test_no_time_at_all_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--out", tmp_path / "none", "--seconds", "0")
    assert "--seconds: expected more than 0, got 0" in capsys.readouterr().err and not (tmp_path / "none").exists()
