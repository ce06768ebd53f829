"""One process at a time writes into a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:
    # Windows has no such locks: there nobody is kept out.
    fcntl = None

_LOCK = ".lock"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes on this machine out of a folder, which is made where it is missing and removed again where it stays empty.

    The lock ends with the process, however that ends. Raises ValueError where another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    with path.open("a+") as file:
        if fcntl is not None:
            try:
                # Of the process: workers that it forks hold nothing when it is gone.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as taken:
                file.seek(0)
                raise ValueError(f"out: {folder} is being written by another process ({file.read().strip() or 'just begun'}); "
                                 "wait for it, or choose another --out") from taken
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            if [entry.name for entry in folder.iterdir()] == [_LOCK]:
                path.unlink()
                folder.rmdir()
