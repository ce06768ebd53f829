"""Words from captions: of files in every layout, of data sets, and what is refused."""

import gzip
import json

import pytest
import torch

from training.__main__ import main
from training.data.sources import open_split
from training.recipes import RECIPES
from training.vocabulary import find_vocabulary, read_captions
from vqkit.language import Vocabulary

CAPTIONS = ["a brown dog on green grass", "a brown dog", "two small red birds"]


def write(path, text):
    (gzip.open if path.suffix == ".gz" else open)(path, "wt").write(text)
    return str(path)


@pytest.mark.parametrize("name, text", [
    ("c.txt", "\n".join([*CAPTIONS, "", "  "])),
    ("c.txt.gz", "\n".join(CAPTIONS)),
    ("c.jsonl", "\n".join([json.dumps({"captions": CAPTIONS[:2]}), "", json.dumps({"caption": CAPTIONS[2]})])),
    ("c.jsonl.gz", json.dumps({"image": "1", "captions": CAPTIONS})),
])
def test_captions_of_a_file(tmp_path, name, text):
    assert list(read_captions(write(tmp_path / name, text))) == CAPTIONS


def test_a_vocabulary_of_files_and_data_sets_serves_a_recipe(tmp_path, pictures, capsys):
    file, out = write(tmp_path / "c.txt", "\n".join(CAPTIONS)), tmp_path / "made" / "words.safetensors"
    main(["vocabulary", file, str(pictures), "--out", str(out), "--adjectives", "None", "--nouns", "2", "--min-count", "2", "--no-fill"])
    made = Vocabulary.load(out)
    # "soft picture" is in each of the 20 captions of the data set, "brown dog" in two of the file's
    assert made.adjectives == ["soft", "brown"] and made.nouns == ["picture", "dog"]
    assert "2 adjectives and 2 nouns of 23 captions" in capsys.readouterr().out
    settings = RECIPES["vqct"].settings
    found = find_vocabulary(type(settings)(data="unused", out=tmp_path, words=str(out)), open_split(str(pictures), "train"))
    assert found.words == made.words and torch.equal(found.vectors, made.vectors)


GERMAN = ["ein brauner Hund auf grünem Gras", "eine Frau mit roten Haaren lächelt", "zwei kleine Vögel"]


@pytest.mark.parametrize("captions", [GERMAN, ["一只棕色的狗在草地上，一只黑猫。"], ["коричневая собака на траве"]])
@pytest.mark.parametrize("fill", ["--fill", "--no-fill"])
def test_captions_in_another_language_are_refused(tmp_path, capsys, captions, fill):
    file = write(tmp_path / "c.txt", "\n".join(captions))
    with pytest.raises(SystemExit):
        main(["vocabulary", file, "--out", str(tmp_path / "words.safetensors"), fill])
    said = capsys.readouterr().err
    assert "captions: expected English, got" in said and "build a Vocabulary of your own" in said


def test_captions_of_many_unknown_words_are_warned_of_and_a_few_are_not(tmp_path, recwarn):
    def make(*captions):
        main(["vocabulary", write(tmp_path / "c.txt", "\n".join(captions)), "--out", str(tmp_path / "words.safetensors"), "--no-fill"])
        return [str(warning.message) for warning in recwarn if "expected English" in str(warning.message)]

    assert not make(*CAPTIONS, "a brown Tachycineta with a Lumia")
    said, = make("a brown dog", "ein Hund und a brown dog")
    assert "got 9 words of which WordNet does not know 3, such as 'ein', 'hund', 'und'; these are taken for nouns" in said


def test_the_builtin_scenes_are_a_data_set():
    assert all(isinstance(caption, str) for caption, _ in zip(read_captions("scenes"), range(10)))


@pytest.mark.parametrize("arguments, message", [
    (["nowhere.txt"], "captions: there is no nowhere.txt"),
    (["nowhere"], "there is no nowhere"),
    (["bad.jsonl"], 'bad.jsonl, line 2: expected an object with "captions"'),
    (["broken.jsonl"], "broken.jsonl, line 1: not JSON"),
    (["c.txt", "--encoder", "nowhere/model"], "encoder"),
    (["c.txt", "--min-count", "50"], "no adjectives left of 3 captions"),
    (["c.txt", "--nouns", "0"], "max_nouns"),
])
def test_a_mistake_is_named_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c.txt", "\n".join(CAPTIONS))
    write(tmp_path / "bad.jsonl", '{"caption": "a dog"}\n{"text": "a dog"}')
    write(tmp_path / "broken.jsonl", "{")
    with pytest.raises(SystemExit) as left:
        main(["vocabulary", *arguments, "--no-fill", "--out", "words.safetensors"])
    assert left.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "words.safetensors").exists()
