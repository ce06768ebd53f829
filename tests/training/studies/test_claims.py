"""Verdicts follow from the numbers alone; every study's claims are about rows and measures that it has."""

import pytest

from training.studies.candidates import STUDIES
from training.studies.claims import Claim, claims_html, claims_table, judge
from training.studies.measures import MEASURES, tables, tables_html


def rows(**values):
    """A row a seed of each label: rows(a=[20, 21], b=[19, 18]) in PSNR."""
    return [{"label": label, "seed": seed, "psnr": value} for label, several in values.items() for seed, value in enumerate(several)]


@pytest.mark.parametrize("values, options, verdict, reason", [
    ({"a": [20.0, 21.0], "b": [19.0, 19.9]}, {}, "holds", "every one of 2 and 2 seeds"),
    ({"a": [19.0, 19.9], "b": [20.0, 21.0]}, {}, "does not hold", "none of 2 and 2"),
    ({"a": [19.0, 20.5], "b": [20.0, 21.0, 22.0]}, {}, "not decided", "ranges overlap"),
    ({"a": [20.0], "b": [19.0, 18.0]}, {}, "not decided", "one seed has no spread; it points that way"),
    ({"a": [20.0, 20.0], "b": [21.0]}, {}, "not decided", "it points the other way"),
    ({"a": [19.0, 19.9], "b": [20.0, 21.0]}, {"lower": True}, "holds", "every one"),
    # As where a probe learned one constant answer: it says nothing of either.
    ({"a": [20.0, 20.0], "b": [20.0, 20.0]}, {}, "not decided", "the same number"),
    ({"a": [20.0, 20.0], "b": [20.0, 21.0]}, {}, "does not hold", "none"),
    # Half a dB below is allowed: 19.6 against 20 is, 19.4 is not.
    ({"a": [19.6, 19.7], "b": [20.0, 20.0]}, {"margin": -0.5}, "holds", "every one"),
    ({"a": [19.4, 19.7], "b": [20.0, 20.0]}, {"margin": -0.5}, "not decided", "overlap"),
    ({"a": [20.4, 20.4], "b": [20.0, 20.0]}, {"margin": 0.5}, "does not hold", "none"),
    ({"a": [20.0, 20.0]}, {}, "not measured", "no value of b"),
    ({}, {}, "not measured", "no value of a and b"),
])
def test_the_spread_over_seeds_decides(values, options, verdict, reason):
    judged = judge(Claim("a is above b", "psnr", "a", "b", **options), rows(**values))
    assert judged.verdict == verdict and reason in judged.reason
    assert judged.of == values.get("a", []) and judged.than == values.get("b", [])


def test_a_claim_has_a_line_with_both_sides_and_what_was_published():
    judged = judge(Claim("a <is> above b", "psnr", "a", "b", published="19 -> 20"), rows(a=[20.0, 21.0], b=[19.0, 18.0]))
    assert claims_table([judged]).splitlines()[2] == \
        "| a <is> above b | PSNR, dB | a 20.50 ± 0.50; b 18.50 ± 0.50 | 19 -> 20 | holds (of every one of 2 and 2 seeds) |"
    assert "a &lt;is&gt; above b" in claims_html([judged]) and "19 -&gt; 20" in claims_html([judged])


def test_a_measure_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="measure: expected one of psnr, .*got 'fid'"):
        Claim("a is above b", "fid", "a", "b")


@pytest.mark.parametrize("name", STUDIES)
def test_claims_compare_rows_of_their_study(name):
    candidates = STUDIES[name].candidates
    labels = {candidate.label for candidate in candidates} | {f"{one.label} at {rate}" for one in candidates for rate in one.rates}
    for claim in STUDIES[name].claims:
        assert {claim.of, claim.than} <= labels and claim.of != claim.than
        # A probed measure exists for every candidate, one of the trained guidance for guided ones alone.
        assert MEASURES[claim.measure].table != "Language, by the guidance that was trained along"
    assert len({claim.sentence for claim in STUDIES[name].claims}) == len(STUDIES[name].claims)


def test_tables_have_the_columns_that_somebody_has():
    row = {"psnr": 20.0, "ssim": 0.5, "l1": 0.1, "codebook_usage": 0.25, "perplexity": 9.0, "codes_per_image": 4, "codebook_sizes": [4]}
    floor = {"psnr": 13.0, "ssim": 0.5, "l1": 0.1, "codebook_usage": 0.0, "codebook_sizes": None}
    several = [{"label": "a", "seed": 0} | row, {"label": "a", "seed": 1} | row | {"psnr": 21.0},
               {"label": "b<", "seed": 0} | floor | {"probe_masked_word_recall@1": 0.25}]
    pictures, probe = tables(several, floor).split("## Language, by a probe")
    lines = [line for line in pictures.splitlines() if line.startswith("|")]
    assert lines == [
        "|  | seeds | PSNR, dB | SSIM | L1 | codes used | perplexity | codes a picture |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| a | 2 | 20.50 ± 0.50 | 0.5000 ± 0.0000 | 0.1000 ± 0.0000 | 25.0% ± 0.0% | 9 ± 0 | 4 ± 0 |",
        "| b< | 1 | 13.00 | 0.5000 | 0.1000 |  |  |  |",
        "| mean colour (floor) |  | 13.00 | 0.5000 | 0.1000 |  |  |  |",
    ]
    assert [line for line in probe.splitlines() if line.startswith("|")] == ["|  | seeds | masked word recall@1 |", "| --- | --- | --- |", "| b< | 1 | 25.0% |"]
    assert "<th>b&lt;</th>" in tables_html(several, floor)
