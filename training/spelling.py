"""The names that a misspelt one is near to, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'raq'? or 'raq-f4'?" with up to three, "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(f'{other!r}?' for other in near)}" if near else ""
