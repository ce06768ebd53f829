"""Claims of the papers, and the verdict that a study's numbers give on each."""

from __future__ import annotations

import html
import statistics
from dataclasses import dataclass
from typing import Literal

from training.studies.measures import MEASURES

Verdict = Literal["holds", "does not hold", "not decided", "not measured"]


@dataclass(frozen=True)
class Claim:
    """That one candidate's measure is above another's.

    sentence: the claim in words.  measure: a key of `measures.MEASURES`.  of, than: the rows that are compared.
    lower: below, not above.  margin: how far above at least; a negative one allows to be so far below.  published: what the paper
    reports, with the data set.
    """

    sentence: str
    measure: str
    of: str
    than: str
    lower: bool = False
    margin: float = 0.0
    published: str = ""

    def __post_init__(self):
        if self.measure not in MEASURES:
            raise ValueError(f"measure: expected one of {', '.join(MEASURES)}, got {self.measure!r}")


@dataclass(frozen=True)
class Judged:
    """A claim with both sides' values over the seeds, the verdict, and why it is that."""

    claim: Claim
    of: list[float]
    than: list[float]
    verdict: Verdict
    reason: str


def judge(claim: Claim, rows: list[dict]) -> Judged:
    """The verdict of the rows (one a candidate and seed, with "label" and the measures) on a claim.

    It holds where every seed of one side is above every seed of the other by more than the margin, and does not hold where every one
    is not. In between, where all numbers are the same, and of a single seed a side, which has no spread, nothing is decided. "not measured" where a side is missing.
    """
    measure = MEASURES[claim.measure]
    of, than = ([value for row in rows if row["label"] == label and (value := measure.read(row)) is not None] for label in (claim.of, claim.than))
    if not of or not than:
        missing = [label for label, values in ((claim.of, of), (claim.than, than)) if not values]
        return Judged(claim, of, than, "not measured", f"no value of {' and '.join(missing)}")
    sign = -1.0 if claim.lower else 1.0
    gains = [sign * (one - other) - claim.margin for one in of for other in than]
    if min(len(of), len(than)) < 2:
        mean = statistics.fmean(gains)
        way = "points that way" if mean > 0 else "points the other way" if mean < 0 else "points neither way"
        return Judged(claim, of, than, "not decided", f"one seed has no spread; it {way}")
    if min(gains) > 0:
        return Judged(claim, of, than, "holds", f"of every one of {len(of)} and {len(than)} seeds")
    if not any(gains):
        return Judged(claim, of, than, "not decided", "the same number on both sides")
    if max(gains) <= 0:
        return Judged(claim, of, than, "does not hold", f"of none of {len(of)} and {len(than)} seeds")
    return Judged(claim, of, than, "not decided", "the seeds' ranges overlap")


_HEADINGS = ("claim", "measure", "here", "published", "verdict")


def claims_table(judged: list[Judged]) -> str:
    """Markdown, a line a claim."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "| --- " * len(_HEADINGS) + "|"]
    for one in judged:
        lines.append("| " + " | ".join(_cells(one)) + " |")
    return "\n".join(lines) + "\n"


def claims_html(judged: list[Judged]) -> str:
    """The same as a table of a page."""
    head = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(one)) + "</tr>" for one in judged)
    return f'<div class="wide"><table class="claims"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(judged: Judged) -> tuple[str, ...]:
    claim, measure = judged.claim, MEASURES[judged.claim.measure]
    here = "; ".join(f"{label} {measure.spread(values)}" for label, values in ((claim.of, judged.of), (claim.than, judged.than)) if values)
    return claim.sentence, measure.name, here, claim.published, f"{judged.verdict} ({judged.reason})"
