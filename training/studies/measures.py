"""What a study measures of a run, how each is read from its metrics, and the tables of means and spreads."""

from __future__ import annotations

import html
import statistics
from dataclasses import dataclass

from training.tasks import find_task, task_names


@dataclass(frozen=True)
class Measure:
    """A column: its name, the table it is in, the key in a run's metrics, its format, and whether it is of codebooks only."""

    name: str
    table: str
    key: str
    form: str
    of_codes: bool = False

    def read(self, row: dict) -> float | None:
        """The value of a run, None where it has none."""
        return None if self.of_codes and not row.get("codebook_sizes") else row.get(self.key)

    def spread(self, values: list[float]) -> str:
        """The mean, and of several values half the range: "20.50 ± 0.50"; "" of none."""
        if not values:
            return ""
        middle = format(statistics.fmean(values), self.form)
        return middle if len(values) == 1 else f"{middle} ± {(max(values) - min(values)) / 2:{self.form}}"


_PICTURES = "Pictures and codes"
_GUIDED, _TRANSLATED = "Language, by the guidance that was trained along", "Language, by the translation that was trained along"
_PROBED = "Language, by a probe on the frozen codes"
NOTES = {
    _PICTURES: "PSNR, SSIM and L1 (on a scale of 0 to 1) of 8-bit pictures; codes used: selected at least once on the evaluated pictures; moved: the "
               "fraction of codes whose vector one step of gradient descent moves where a single position selected.",
    _GUIDED: "Measured by the module that was trained together with the tokenizer, of guided ones only.",
    _TRANSLATED: "Captions given the codes of their picture, of VQCT-VLT only; of another picture: what the language alone tells.",
    _PROBED: "A new guidance module, trained on each frozen tokenizer with the same captions, masks and steps: the same question to guided and unguided codes.",
    **{name: find_task(name).note for name in task_names()},
}
MEASURES: dict[str, Measure] = {measure.key: measure for measure in (
    Measure("PSNR, dB", _PICTURES, "psnr", ".2f"),
    Measure("SSIM", _PICTURES, "ssim", ".4f"),
    Measure("L1", _PICTURES, "l1", ".4f"),
    Measure("codes used", _PICTURES, "codebook_usage", ".1%", of_codes=True),
    Measure("perplexity", _PICTURES, "perplexity", ".0f", of_codes=True),
    Measure("codes a picture", _PICTURES, "codes_per_image", ".0f", of_codes=True),
    Measure("codes moved by one position", _PICTURES, "codes_moved", ".1%"),
    Measure("steps/s", _PICTURES, "steps_per_second", ".2f"),
    *(Measure(name, table, prefix + key, form) for table, prefix in ((_GUIDED, ""), (_PROBED, "probe_")) for name, key, form in (
        ("word-code similarity MSE", "word_code_similarity_mse", ".4f"),
        ("masked word recall@1", "masked_word_recall@1", ".1%"),
        ("of a grey picture", "masked_word_grey_picture", ".1%"),
        ("3 masked words recall@1", "masked_3_words_recall@1", ".1%"),
        ("image-to-text recall@1", "image_to_text_recall@1", ".1%"),
        ("@5", "image_to_text_recall@5", ".1%"),
        ("@10", "image_to_text_recall@10", ".1%"),
    )),
    Measure("nats a token", _TRANSLATED, "caption_nats", ".3f"),
    Measure("of another picture", _TRANSLATED, "caption_nats_other_picture", ".3f"),
    Measure("own picture likelier", _TRANSLATED, "caption_own_picture", ".1%"),
    # of priors on the tokenizer's codes, "captioning/cider_d"
    *(Measure(column.name, task, f"{task}/{column.key}", column.form) for task in task_names() for column in find_task(task).columns),
)}


def _cells(rows: list[dict], floor: dict | None) -> dict[str, list[list[str]]]:
    """Of each table that has values its lines, headings first; a line a label, and columns that nobody has are left out."""
    found = {label: [row for row in rows if row["label"] == label] for label in dict.fromkeys(row["label"] for row in rows)}
    tables = {}
    for table in NOTES:
        shown = [one for one in MEASURES.values() if one.table == table and any(one.read(row) is not None for row in rows)]
        lines = [["", "seeds", *(one.name for one in shown)]]
        for label, several in (found | ({"mean colour (floor)": [floor]} if floor else {})).items():
            values = [[value for row in several if (value := one.read(row)) is not None] for one in shown]
            if any(values):
                lines.append([label, "" if several == [floor] else str(len(several)), *(one.spread(some) for one, some in zip(shown, values))])
        if shown:
            tables[table] = lines
    return tables


def tables(rows: list[dict], floor: dict | None = None) -> str:
    """Markdown of the rows (one a candidate and seed, with its "label"): means over the seeds, with half the range of several.

    floor: a row below the others, the metrics of mean colours.
    """
    parts = []
    for title, (head, *lines) in _cells(rows, floor).items():
        text = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *(f"| {' | '.join(line)} |" for line in lines)]
        parts.append(f"## {title}\n\n{NOTES[title]}\n\n" + "\n".join(text) + "\n")
    return "\n".join(parts)


def tables_html(rows: list[dict], floor: dict | None = None) -> str:
    """The same for a page."""
    parts = []
    for title, (head, *lines) in _cells(rows, floor).items():
        headings = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = "".join(f"<tr><th>{html.escape(line[0])}</th>{''.join(f'<td>{cell}</td>' for cell in line[1:])}</tr>" for line in lines)
        parts.append(f"""<h2>{title}</h2><p class="quiet">{NOTES[title]}</p>
<div class="wide"><table class="numbers"><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table></div>""")
    return "".join(parts)
