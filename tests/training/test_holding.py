"""Folders that one process at a time writes."""

import pytest

from training.holding import held
from training.tokenizer import train

_HOLD = """
import pathlib, sys, time
from training.holding import held
with held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_that_another_process_trains_is_refused_until_that_is_killed(tiny, launch):
    settings = tiny(steps=2)
    other = launch("-c", _HOLD, str(settings.out))
    assert other.stdout.readline().strip() == "held"
    with pytest.raises(ValueError, match=rf"out: .*run is being written by another process \(process {other.pid}\); wait for it"):
        train("vqgan", settings)
    assert [entry.name for entry in settings.out.iterdir()] == [".lock"]
    other.kill()
    other.wait()
    assert (train("vqgan", settings) / "model").is_dir()
    # And a finished run may be trained further by the process that trained it.
    assert train("vqgan", settings) == settings.out


def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "new"):
        raise RuntimeError
    assert not (tmp_path / "new").exists()
    with held(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert (tmp_path / "new" / "file").exists()
