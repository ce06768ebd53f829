"""Studies: their candidates exist, a study runs to its table, resumes, and names what it does not know."""

import json

import pytest

from training.recipes import RECIPES
from training.study import STUDIES, Study, make_study, table


@pytest.mark.parametrize("name", STUDIES)
def test_every_candidate_is_a_recipe_with_settings_that_exist(name):
    _, candidates = STUDIES[name]
    assert len({candidate.label for candidate in candidates}) == len(candidates)
    for candidate in candidates:
        assert candidate.recipe in RECIPES
        settings = candidate.settings()
        for setting, value in candidate.changes.items():
            holder = settings.model if setting.startswith("model.") else settings
            assert getattr(holder, setting.removeprefix("model.")) == value


def test_a_study_runs_and_does_nothing_twice(tmp_path, capsys):
    wanted = Study(name="vqct", data="scenes", out=tmp_path, budget="tiny", seeds=(0, 1), only=("vqct", "transfer=mlp"), device="cpu")
    path = make_study(wanted)
    text = path.read_text()
    assert "| vqct | 2 |" in text and "| transfer=mlp | 2 |" in text and "±" in text and "mean colour (floor)" in text
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["label"] for row in rows] == ["vqct", "vqct", "transfer=mlp", "transfer=mlp", "mean-color"]
    # Whatever is selected, all codes of a generated codebook move.
    assert rows[0]["codes_moved"] > 0.9
    assert (tmp_path / "report.html").is_file()
    checkpoints = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("state.safetensors")}
    measured = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}
    assert make_study(wanted).read_text() == text
    assert checkpoints == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("state.safetensors")}
    assert measured == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}
    assert "steps are done already" in capsys.readouterr().out


def test_only_selected_codes_of_a_learned_codebook_move(tmp_path):
    make_study(Study(name="papers", data="scenes", out=tmp_path, budget="tiny", only=("vqgan",), device="cpu"))
    (row, _) = json.loads((tmp_path / "table.json").read_text())
    assert 0 < row["codes_moved"] < 0.1


def test_the_table_has_the_columns_that_somebody_has():
    row = {"psnr": 20.0, "ssim": 0.5, "l1": 0.1, "codebook_usage": 0.25, "perplexity": 9.0, "codebook_sizes": [4]}
    text = table([{"label": "a", "seed": 0} | row, {"label": "a", "seed": 1} | row | {"psnr": 21.0}], row | {"psnr": 13.0, "codebook_sizes": None})
    assert text.splitlines()[0] == "| | seeds | PSNR, dB | SSIM | L1 | codes used | perplexity |"
    assert text.splitlines()[2] == "| a | 2 | 20.50 ± 0.50 | 0.5000 ± 0.0000 | 0.1000 ± 0.0000 | 25.0% ± 0.0% | 9 ± 0 |"
    assert text.splitlines()[3] == "| mean colour (floor) |  | 13.00 | 0.5000 | 0.1000 |  |  |"


@pytest.mark.parametrize("arguments, message", [
    ({"name": "paper"}, "study: expected one of .*got 'paper'; did you mean 'papers'"),
    ({"name": "papers", "seeds": ()}, "seeds: expected at least one"),
    ({"name": "papers", "only": ("vqqan",)}, "only: expected some of vqgan, .*got 'vqqan'"),
])
def test_what_it_does_not_know(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Study(data="scenes", out=tmp_path, **arguments)
