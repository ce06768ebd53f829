"""Studies: their candidates exist, a study runs to its tables, claims and page, resumes, and names what does not fit."""

import dataclasses
import json
import shutil

import pytest
import torch

from training.__main__ import main
from training.data.sources import SceneSource
from training.recipes import RECIPES
from training.studies.candidates import STUDIES, Candidate
from training.studies.study import Study, make_study


@pytest.mark.parametrize("name", STUDIES)
def test_every_candidate_is_a_recipe_with_settings_that_exist(name, tmp_path):
    study = Study(name=name, data="scenes", out=tmp_path, budget="tiny")
    assert len({study.folder(candidate, 0) for candidate in study.candidates}) == len(study.candidates)
    for candidate in study.candidates:
        assert candidate.recipe in RECIPES
        settings = study.settings(candidate, 1)
        assert (settings.seed, settings.steps, settings.resolution) == (1, 4, 16)
        for setting, value in candidate.changes.items():
            holder, _, field = setting.rpartition(".")
            assert getattr(getattr(settings, holder) if holder else settings, field) == value


def test_a_change_of_a_part_leaves_the_rest_of_it():
    settings = Candidate("a", "vqgan+lg", {"lg.gamma": 0.0, "lg.beta": 0.5, "model.code_dim": 8, "lr": 1.0}).settings()
    plain = RECIPES["vqgan+lg"].settings
    assert (settings.lg.alpha, settings.lg.beta, settings.lg.gamma) == (plain.lg.alpha, 0.5, 0.0)
    assert (settings.model.code_dim, settings.model.channels, settings.lr, settings.guidance) == (8, plain.model.channels, 1.0, "lgvq")


def modified(folder, pattern):
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern)}


def test_a_study_runs_and_does_nothing_twice(pictures, words, text_model, tmp_path, capsys):
    # Every second picture is mirrored in no run of this study, guided or not.
    wanted = Study(name="papers", data=str(pictures), out=tmp_path / "study", budget="tiny", seeds=(0, 1), only=("vqgan", "vqct"),
                   device="cpu", words=str(words), probe_text_encoder=str(text_model))
    path = make_study(wanted)
    text = path.read_text()
    assert "| vqgan | 2 |" in text and "| vqct | 2 |" in text and "±" in text and "mean colour (floor)" in text
    rows = json.loads((wanted.out / "table.json").read_text())
    assert [(row["label"], row["seed"]) for row in rows] == [("vqgan", 0), ("vqgan", 1), ("vqct", 0), ("vqct", 1), ("mean-color", None)]
    # Three codes of 2,048 were selected; through the graph all others move with them.
    assert [row["codes_moved"] for row in rows[:4]] == [3 / 2048, 3 / 2048, 1.0, 1.0]
    assert "moves more of VQCT's codes than of VQ-GAN's | codes moved by one position | vqct 100.0% ± 0.0%; vqgan 0.1% ± 0.0%" in text
    assert "| holds (of every one of 2 and 2 seeds) |" in text and "| not measured (no value of vqgan+lg) |" in text
    assert all(0 <= row["probe_word_code_similarity_mse"] <= 4 and row["steps_per_second"] > 0 for row in rows[:4])
    page = (wanted.out / "report.html").read_text()
    for heading in ("Pictures and codes", "Language, by a probe on the frozen codes", "Claims", "Originals and reconstructions", "Words of vqct"):
        assert f"<h2>{heading}" in page
    assert page.count("<th>vqgan</th>") == 3
    before = [modified(wanted.out, name) for name in ("state.safetensors", "metrics.json", "log.jsonl")]
    capsys.readouterr()
    assert make_study(wanted).read_text() == text
    assert before[:2] == [modified(wanted.out, name) for name in ("state.safetensors", "metrics.json")]
    said = capsys.readouterr().out
    assert said.count("steps are done already") == 4 and "[4/4] vqct, seed 1" in said

    # One more seed of one of them: what is there already is shown beside it.
    more = Study(name="papers", data=str(pictures), out=wanted.out, budget="tiny", seeds=(2,), only=("vqgan",), device="cpu", probe_steps=0)
    assert "| vqgan | 3 |" in (text := make_study(more).read_text()) and "| vqct | 2 |" in text


def test_a_stopped_study_goes_on(pictures, tmp_path):
    wanted = Study(name="papers", data=str(pictures), out=tmp_path / "study", budget="tiny", only=("vqgan", "simvq"), device="cpu", probe_steps=0)
    whole = make_study(wanted).read_text()
    # As a kill while the second run trains leaves it.
    shutil.rmtree(wanted.out / "simvq-seed0" / "checkpoints", ignore_errors=True)
    for name in ("study.json", "metrics.json"):
        (wanted.out / "simvq-seed0" / name).unlink()
    (wanted.out / "table.md").unlink()
    first = modified(wanted.out / "vqgan-seed0", "*")
    again = make_study(wanted).read_text()

    def without_speed(text):
        return ["|".join(line.split("|")[:-2]) for line in text.splitlines() if line.startswith(("| vqgan", "| simvq", "| mean"))]

    assert without_speed(again) == without_speed(whole)
    assert {path: time for path, time in modified(wanted.out / "vqgan-seed0", "*").items() if path.name in ("metrics.json", "vocabulary.safetensors")
            or "checkpoint" in str(path)}.items() <= first.items()


@pytest.mark.parametrize("arguments, message", [
    ({"name": "paper"}, "study: expected one of .*got 'paper'; did you mean 'papers'"),
    ({"name": "papers", "seeds": ()}, "seeds: expected at least one"),
    ({"name": "papers", "seeds": (1, 1)}, "seeds: expected different ones"),
    ({"name": "papers", "only": ("vqqan",)}, "only: expected some of vqgan, .*got 'vqqan'; did you mean 'vqgan'"),
    ({"name": "papers", "probe_steps": -1}, "probe_steps: expected 0 or more, got -1"),
])
def test_what_it_does_not_know(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Study(data="scenes", out=tmp_path, **arguments)


def test_what_does_not_fit_is_said_before_anything_is_written(pictures, tmp_path):
    def study(**changes):
        return Study(**{"name": "papers", "data": str(pictures), "out": tmp_path / "study", "budget": "tiny", "device": "cpu"} | changes)

    # The second folder is a run of another recipe: the first candidate is not trained before that is found.
    foreign = tmp_path / "study" / "simvq-seed0"
    foreign.mkdir(parents=True)
    (foreign / "config.json").write_text(json.dumps({"recipe": "vqct"}))
    with pytest.raises(ValueError, match="simvq-seed0 is a run with other settings; recipe: was 'vqct', now 'simvq'"):
        make_study(study(only=("vqgan", "simvq")))
    assert list((tmp_path / "study").iterdir()) == [foreign] and list(foreign.iterdir()) == [foreign / "config.json"]

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text(json.dumps({"study": "vqct"}))
    with pytest.raises(ValueError, match="holds the study 'vqct', now 'papers'"):
        make_study(study(out=tmp_path / "other"))

    for split in ("train", "val", "test"):
        blank = [json.dumps({"file_name": f"{number:02d}.png", "captions": [" "]}) for number in range(20)]
        (pictures / split / "metadata.jsonl").write_text("\n".join(blank))
    with pytest.raises(ValueError, match=r"has no captions, which vqgan\+lg need; name the others with --only"):
        make_study(study(out=tmp_path / "mute", only=("vqgan", "vqgan+lg")))
    for split in ("train", "val", "test"):
        (pictures / split / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has no captions, which vqgan\+lg need; name the others with --only"):
        make_study(study(out=tmp_path / "mute", only=("vqgan", "vqgan+lg")))
    assert not (tmp_path / "mute").exists()


def test_one_raq_is_measured_at_every_rate(pictures, tmp_path):
    make_study(Study(name="rates", data=str(pictures), out=tmp_path, budget="tiny", only=("raq", "vqvae of 16"), device="cpu", probe_steps=0))
    rows = {row["label"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert list(rows) == ["raq", "raq at 16", "raq at 64", "raq at 256", "vqvae of 16", "mean-color"]
    assert [rows[f"raq at {rate}"]["codebook_sizes"] for rate in (16, 64, 256)] == [[16], [64], [256]]
    # Generated codes are others than the source's.
    assert rows["raq at 16"]["psnr"] != rows["raq"]["psnr"]
    assert "at 16 codes one RAQ comes within half a dB" in (tmp_path / "table.md").read_text()


def test_the_papers_end_to_end(tmp_path, monkeypatch, write_bert, words, capsys):
    # All recipes as they are, on few scenes and with words and a text model that load at once.
    monkeypatch.setattr("training.data.sources.SCENES_IN_SPLIT", {"train": 32, "val": 8, "test": 8})
    captions = [caption for split in ("train", "test") for index in range(8) for caption in SceneSource(split).record(index)["captions"]]
    text_model = write_bert(tmp_path / "bert", sorted({word for caption in captions for word in caption.lower().split()}))
    for name, recipe in RECIPES.items():
        settings = recipe.settings
        if section := {"lgvq": "lg", "translation": "vlt"}.get(settings.guidance):
            chosen = dataclasses.replace(getattr(settings, section), text_encoder=str(text_model))
            monkeypatch.setitem(RECIPES, name, dataclasses.replace(recipe, settings=dataclasses.replace(settings, **{section: chosen})))
    main(["study", "papers", "--budget", "tiny", "--data", "scenes", "--out", str(tmp_path / "study"), "--device", "cpu",
          "--words", str(words), "--probe-text-encoder", str(text_model)])
    tmp_path = tmp_path / "study"
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["label"] for row in rows] == [*(candidate.label for candidate in STUDIES["papers"].candidates), "mean-color"]
    for row in rows[:-1]:
        assert row["psnr"] > 0 and row["probe_word_code_similarity_mse"] >= 0 and 0 <= row["probe_image_to_text_recall@10"] <= 1
        assert ("word_code_similarity_mse" in row) == row["label"].endswith("+lg")
    page = (tmp_path / "report.html").read_text()
    assert "Words and codes of vqgan+lg" in page and "Regions and their nearest words, vqct" in page and "not measured" not in page
    assert "vqct, seed 0" in capsys.readouterr().out


def test_the_list_names_studies_and_candidates(capsys):
    main(["study", "list"])
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == list(STUDIES) and "transfer=mlp" in said and "vqgan+lg" in said


def test_a_misspelt_study_is_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["study", "papres", "--data", "scenes", "--out", str(tmp_path)])
    assert "did you mean 'papers'?" in capsys.readouterr().err
    assert torch.get_num_threads() == 1
