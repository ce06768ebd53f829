"""Downstream tasks of several tokenizers: one row a tokenizer, priors shared by tasks of the same sequences, codes by all; resumes and refuses."""

import dataclasses
import json
from pathlib import Path

import pytest

from training.__main__ import main
from training.priors.codes import read_codes
from training.priors.evaluate import PriorEvaluation, evaluate_prior
from training.priors.generate import Generation, generate
from training.priors.recipes import PRIOR_RECIPES
from training.priors.train import CODES, train_prior
from training.studies import downstream
from training.studies.downstream import Downstream, run_downstream
from training.studies.measures import MEASURES, tables
from training.studies.study import Study, make_study
from training.studies.task_claims import TASK_CLAIMS
from training.tasks import find_task, task_names
from training.tokenizer import train


@pytest.fixture
def small(monkeypatch):
    """The recipe "small", smaller."""
    recipe = PRIOR_RECIPES["small"]
    model = dataclasses.replace(recipe.settings.model, depth=1, width=16, heads=2)
    settings = dataclasses.replace(recipe.settings, model=model, batch_size=4, save_every=1)
    monkeypatch.setitem(PRIOR_RECIPES, "small", dataclasses.replace(recipe, settings=settings))


@pytest.fixture
def tokenizers(tiny):
    """Runs of two recipes."""
    return train("vqgan", tiny("vqgan", "plain", steps=2)), train("vqct", tiny("vqct", "words", steps=2))


def test_every_column_is_what_a_task_measures_and_every_claim_a_column():
    assert len({(find_task(task), column.key) for task in task_names() for column in find_task(task).columns}) == sum(
        len(find_task(task).columns) for task in task_names())
    for task in task_names():
        served = find_task(task).priors_of
        assert served is None or find_task(served).priors_of is None
    assert all(claim.measure in MEASURES and "/" in claim.measure and claim.of != claim.than for claim in TASK_CLAIMS)


def test_tokenizers_are_compared_and_nothing_is_done_twice(tokenizers, pictures, small, tmp_path, capsys, monkeypatch):
    # A quarter of an hour of a real network says no more here than nothing: its distances are tested where it is.
    monkeypatch.setattr("training.priors.evaluate.feature_net", lambda *_, **__: pytest.fail("no picture is generated here"))
    wanted = Downstream(tokenizers=tokenizers, data=str(pictures), out=tmp_path / "study", tasks=("captioning", "retrieval", "masked-word"), steps=2,
                        shown=2, device="cpu")
    text = run_downstream(wanted).read_text()
    rows = json.loads((wanted.out / "table.json").read_text())
    assert [(row["label"], row["seed"]) for row in rows] == [("vqgan", 0), ("vqct", 0)]
    for row in rows:
        # the numbers that evaluating the run by hand gives
        folder = wanted.out / ("plain" if row["label"] == "vqgan" else "words")
        assert row["captioning/text_nats_per_token"] == evaluate_prior(PriorEvaluation(folder / "captioning", device="cpu"))["text_nats_per_token"]
        assert row["retrieval/text_recall@1"] == evaluate_prior(
            PriorEvaluation(folder / "captioning", task="retrieval", device="cpu"))["text_recall@1"]
        assert not (folder / "retrieval").exists() and (folder / "retrieval.png").is_file()
        # encoded once
        assert read_codes(folder / "captioning" / CODES).codes.equal(read_codes(folder / "masked-word" / CODES).codes)
    assert "## captioning" in text and "## retrieval" in text and "## vqa" not in text
    assert "| captions of VQCT's codes score above those of VQ-GAN's | BLEU-4 | vqct" in text and "vqgan+lg" not in text
    page = (wanted.out / "report.html").read_text()
    assert page.count("<figure class=\"gallery\">") == 6 and "<h2>Claims</h2>" in page

    before = {path: path.stat().st_mtime_ns for path in wanted.out.rglob("*") if path.suffix in (".safetensors", ".png") or path.name == "row.json"}
    capsys.readouterr()
    assert run_downstream(wanted).read_text() == text
    assert before == {path: path.stat().st_mtime_ns for path in before} and "nats" not in capsys.readouterr().out.split("# Downstream")[0]

    # one more task of one of them: what is there already is shown beside it
    more = dataclasses.replace(wanted, tokenizers=tokenizers[1:], tasks=("captioning",))
    assert "| vqgan | 1 |" in run_downstream(more).read_text()


def test_a_stopped_study_goes_on_where_it_was(tokenizers, pictures, small, tmp_path, monkeypatch):
    wanted = Downstream(tokenizers=tokenizers[:1], data=str(pictures), out=tmp_path / "study", tasks=("captioning", "masked-word"), steps=2, shown=0,
                        device="cpu")
    measured = downstream._measured

    def stop(wanted, folder, task):
        if task == "masked-word":
            raise KeyboardInterrupt
        return measured(wanted, folder, task)

    monkeypatch.setattr(downstream, "_measured", stop)
    with pytest.raises(KeyboardInterrupt):
        run_downstream(wanted)
    row = json.loads((wanted.out / "plain" / "row.json").read_text())
    assert "captioning/matching" in row and not any(key.startswith("masked-word/") for key in row)
    monkeypatch.setattr(downstream, "_measured", measured)
    run_downstream(wanted)
    done = json.loads((wanted.out / "plain" / "row.json").read_text())
    assert row.items() <= done.items() and "masked-word/recall@1_of_1" in done


def test_without_tasks_all_that_the_data_allow_are_taken(pictures, tmp_path, capsys):
    wanted = Downstream(tokenizers=(tmp_path,), data=str(pictures), out=tmp_path / "study")
    assert downstream._tasks(wanted) == ["unconditional", "text-to-image", "completion", "captioning", "masked-word", "retrieval"]
    said = capsys.readouterr().out
    assert "left out: vqa: data: " in said and "has no questions" in said and "left out: class-conditional" in said
    with pytest.raises(ValueError, match="has no questions"):
        downstream._tasks(dataclasses.replace(wanted, tasks=("captioning", "vqa")))


@pytest.mark.parametrize("changes, message", [
    ({"tokenizers": ()}, "tokenizers: expected at least one run"),
    ({"tokenizers": ("a/run", "b/run")}, "of different names, got 'run' twice"),
    ({"tasks": ("captionning",)}, "did you mean 'captioning'"),
    ({"recipe": "smal"}, "did you mean 'small'"),
    ({"steps": 0}, "steps: expected at least 1, got 0"),
    ({"shown": -1}, "shown: expected 0 or more, got -1"),
])
def test_wrong_settings_are_named(tmp_path, changes, message):
    changes = changes | ({"tokenizers": tuple(map(Path, changes["tokenizers"]))} if "tokenizers" in changes else {})
    with pytest.raises(ValueError, match=message):
        Downstream(**{"tokenizers": (tmp_path,), "data": "scenes", "out": tmp_path / "study"} | changes)


def test_a_folder_of_another_budget_or_tokenizer_is_refused(tokenizers, pictures, small, tmp_path, tiny, capsys):
    wanted = Downstream(tokenizers=tokenizers[:1], data=str(pictures), out=tmp_path / "study", tasks=("captioning",), steps=2, shown=0, device="cpu")
    run_downstream(wanted)
    with pytest.raises(ValueError, match="holds priors of steps 2, now 3; choose another --out"):
        run_downstream(dataclasses.replace(wanted, steps=3))
    other = train("vqvae", tiny("vqvae", "elsewhere/plain", steps=2))
    with pytest.raises(ValueError, match="of a tokenizer of label 'vqgan', .* has 'vqvae'"):
        run_downstream(dataclasses.replace(wanted, tokenizers=(other,)))
    with pytest.raises(ValueError, match="captioning is the run of a prior of captioning, expected one of a tokenizer"):
        run_downstream(dataclasses.replace(wanted, tokenizers=(wanted.out / "plain" / "captioning",)))
    # each of the two would write its table over the other's
    with pytest.raises(ValueError, match="holds downstream tasks; choose another --out"):
        make_study(Study(name="papers", data=str(pictures), out=wanted.out, budget="tiny", only=("vqgan",), device="cpu", probe_steps=0))
    (wanted.out / "downstream.json").rename(wanted.out / "study.json")
    with pytest.raises(ValueError, match="holds a study of tokenizers"):
        run_downstream(wanted)
    with pytest.raises(SystemExit):
        main(["downstream", str(tmp_path), "--data", str(pictures), "--out", str(tmp_path / "none")])
    assert "is not a run" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_codes_of_another_run_are_taken_and_those_of_another_tokenizer_refused(tokenizers, pictures, small, tmp_path, monkeypatch):
    base = dataclasses.replace(PRIOR_RECIPES["small"].settings, data=str(pictures), steps=1, device="cpu")
    settings = {name: dataclasses.replace(base, tokenizer=tokenizers[name == "b"], out=tmp_path / name) for name in ("a", "b")}
    first = train_prior("unconditional", "small", settings["a"])
    with pytest.raises(ValueError, match="codes_from: .* is of another tokenizer than"):
        train_prior("captioning", "small", dataclasses.replace(settings["b"], codes_from=first))
    with pytest.raises(ValueError, match="codes_from: .* has the max_pictures None, this run 5"):
        train_prior("captioning", "small", dataclasses.replace(settings["a"], out=tmp_path / "c", max_pictures=5, codes_from=first))
    monkeypatch.setattr("training.priors.codes.PictureDataset", lambda *_, **__: pytest.fail("a picture was encoded"))
    second = train_prior("captioning", "small", dataclasses.replace(settings["a"], out=tmp_path / "d", codes_from=first))
    assert (second / CODES).read_bytes() == (first / CODES).read_bytes()


def test_another_task_of_the_same_sequences_is_drawn(tokenizers, pictures, small, tmp_path, capsys):
    run = train_prior("unconditional", "small", dataclasses.replace(PRIOR_RECIPES["small"].settings, tokenizer=tokenizers[0], data=str(pictures),
                                                                    out=tmp_path / "prior", steps=1, device="cpu"))
    assert generate(Generation(run=run, out=tmp_path / "completed.png", task="completion", count=2, device="cpu")).is_file()
    assert "2 examples of completion" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected one with the sequences of unconditional"):
        generate(Generation(run=run, out=tmp_path / "said.png", task="captioning", count=2, device="cpu"))


def test_means_and_spreads_are_of_the_tokenizers_of_one_recipe():
    rows = [{"label": "vqct", "seed": seed, "vqa/accuracy": accuracy} for seed, accuracy in ((0, 0.25), (1, 0.35))]
    assert "| vqct | 2 | 30.0% ± 5.0% |" in tables(rows) and "mean colour" not in tables(rows)
