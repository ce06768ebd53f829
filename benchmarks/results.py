"""What was measured on a device, as JSON and as Markdown, complete after every row: who is stopped has lost nothing."""

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.floors import Ceilings
from benchmarks.report import factor, mebibytes, milliseconds

NOT_REACHED = "not reached before the run ended"
OURS = "vqkit"


@dataclass
class Row:
    """One contender in one case. Times are seconds; ``reason`` says why there are none."""

    case: str
    contender: str
    part_of: str | None = None
    reason: str | None = NOT_REACHED
    failed: bool = False
    median: float | None = None
    lower: float | None = None
    upper: float | None = None
    repeats: int = 0
    first: float | None = None
    floor: float | None = None
    extra_memory: int | None = None
    wrong: float | None = None


@dataclass
class Results:
    """All rows of one run, written to ``<folder>/<name>.json`` and ``.md``."""

    device: str
    about: dict
    rows: list[Row] = field(default_factory=list)
    ceilings: Ceilings | None = None

    def median(self, case: str | None, contender: str) -> float | None:
        return next((row.median for row in self.rows if (row.case, row.contender) == (case, contender)), None)

    def of_floor(self, row: Row) -> str:
        return f"{row.floor / row.median:.0%}" if row.floor and row.median else ""

    def of_step(self, row: Row) -> str:
        whole = self.median(row.part_of, row.contender)
        return f"{row.median / whole:.1%}" if whole and row.median else ""

    def ratio(self, row: Row) -> str:
        """How many times slower than vqkit."""
        ours = self.median(row.case, OURS)
        return "" if row.contender == OURS or not ours or not row.median else factor(row.median / ours)

    def write(self, folder: Path, name: str) -> None:
        """Replace both files, each in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) for row in self.rows]
        content = {"device": self.device, **self.about, "ceilings": self.ceilings and asdict(self.ceilings), "rows": rows}
        for suffix, text in ((".json", json.dumps(content, indent=1)), (".md", self.markdown())):
            part = folder / f"{name}{suffix}.part"
            part.write_text(text + "\n")
            os.replace(part, folder / f"{name}{suffix}")

    def markdown(self) -> str:
        """Everything as tables: what was measured, then what was not and why."""
        lines = [
            f"# {self.device}",
            "",
            *(f"- {name}: {value}" for name, value in self.about.items() if isinstance(value, str) and "\n" not in value),
            f"- ceilings: {self._ceilings()}",
            "",
            "Medians, with the quartiles beside them; inputs take turns until they exceed the cache. *Of floor*: the least time that the work takes at "
            "these ceilings (benchmarks/floors.py) over the median. *Wrong*: the share of the checked rows whose code is not the nearest in float64. "
            "*Of step*: the share of the whole training step. The last column is the contender's median over vqkit's.",
            "",
            "| what | contender | median | quartiles | of floor | extra memory | wrong | of step | vqkit is faster by |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [self._line(row) for row in self.rows if row.median is not None]
        missing = [row for row in self.rows if row.median is None]
        if missing:
            lines += ["", "Not measured:", "", "| what | contender | why |", "| --- | --- | --- |"]
            lines += [f"| {row.case} | {row.contender} | {_cell(row.reason)} |" for row in missing]
        return "\n".join(lines)

    def summary(self) -> str:
        """vqkit's rows in brief, each with the best of the others."""
        lines = []
        for row in self.rows:
            if row.contender != OURS:
                continue
            if row.median is None:
                lines.append(f"{row.case:<70} {row.reason}")
                continue
            others = [r for r in self.rows if r.case == row.case and not r.contender.startswith(OURS) and r.median]
            best = min(others, key=lambda r: r.median, default=None)
            against = f"{self.ratio(best)} against {best.contender}" if best else "nobody else was measured"
            note = f"{self.of_floor(row)} of floor" if row.floor else f"{self.of_step(row)} of step" if self.of_step(row) else ""
            lines.append(f"{row.case:<70} {milliseconds(row.median):>10}  {note:<14}  {against}")
        missing = sum(row.median is None for row in self.rows)
        lines.append(f"{len(self.rows) - missing} rows measured, {missing} not; {self._ceilings()}")
        return "\n".join(lines)

    def _line(self, row: Row) -> str:
        quartiles = f"{milliseconds(row.lower)}..{milliseconds(row.upper)}"
        wrong = "" if row.wrong is None else f"{row.wrong:.2%}"
        cells = (row.case, row.contender, milliseconds(row.median), quartiles, self.of_floor(row), mebibytes(row.extra_memory))
        return "| " + " | ".join((*cells, wrong, self.of_step(row), self.ratio(row))) + " |"

    def _ceilings(self) -> str:
        if self.ceilings is None:
            return "not measured yet"
        alu = f"{self.ceilings.alu / 1e12:.1f} T ALU operations/s (computed)" if self.ceilings.alu else "ALUs not modelled"
        return f"copy {self.ceilings.bandwidth / 1e12:.3g} TB/s, bf16 product {self.ceilings.tensor / 1e12:.3g} TFLOP/s, {alu}"


def slug(device: str) -> str:
    """A file name from a device's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "/")
