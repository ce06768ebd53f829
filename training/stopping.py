"""Ctrl-C and SIGTERM ask a run to stop after the step it is in; a second one stops it at once."""

from __future__ import annotations

import signal
import threading

import torch

from training.distributed import Ranks


class Stop:
    """Inside the context `asked` turns to the signal's number when SIGINT or SIGTERM comes."""

    def __init__(self):
        self.asked = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        # Python delivers signals to the main thread only, and refuses handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def agreed(self, ranks: Ranks) -> int:
        """The signal that any rank got, the same on every rank; 0 without one."""
        if ranks.world == 1:
            return self.asked
        return int(ranks.maximum(torch.tensor([self.asked])).item())

    def _note(self, number: int, _frame) -> None:
        self.asked = number
        signal.signal(number, self._before[number])
