"""The shipped word lists against WordNet itself and against NLTK's reading of it."""

import os
from pathlib import Path

import pytest

from vqkit.language import lexicon as lexicons
from vqkit.language import wordnet
from vqkit.language.lexicon import nltk_lexicon, shipped_lexicon, shipped_lines
from vqkit.language.words import tag_words

WORDNET = Path(os.environ.get("WORDNET_DICT", "/usr/share/wordnet"))
needs_wordnet = pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="no WordNet 3.0 dictionary folder here")
DATA = Path(lexicons.__file__).with_name("data")
SENTENCES = [
    "Two black dogs run through the deep white snow .",
    "A man's glasses lie on a wooden bench near older women",
    "children in orange shirts swing on the swings",
    "a snowboarder in yellow-green pants jumps off the icy ledge",
    "leaves, buses, gas stations and a smiling clown",
    "brooks and wales in fields near london , adams marches",
]


@needs_wordnet
def test_word_lists_are_those_of_wordnet():
    words = wordnet.word_lines(WORDNET)
    assert words == shipped_lines("words.txt.gz")
    assert wordnet.exception_lines(WORDNET, {line.split()[0] for line in words}) == shipped_lines("exceptions.txt.gz")
    assert wordnet.name_lines(WORDNET, shipped_lexicon()) == shipped_lines("names.txt.gz")
    assert wordnet.lexicon_from_folder(WORDNET).noun_lemma("wales") == "wales"
    assert wordnet.license_text(WORDNET) == (DATA / "LICENSE.wordnet").read_text()


@needs_wordnet
@pytest.mark.slow
def test_the_command_writes_the_shipped_files_again(tmp_path):
    wordnet.main([str(WORDNET), "--out", str(tmp_path)])
    assert (tmp_path / "LICENSE.wordnet").read_bytes() == (DATA / "LICENSE.wordnet").read_bytes()
    for name in ("words.txt.gz", "exceptions.txt.gz", "names.txt.gz", "phrases.txt.gz"):
        # What gzip makes of a text differs between zlib builds; the text may not.
        assert lexicons.gzip.decompress((tmp_path / name).read_bytes()) == lexicons.gzip.decompress((DATA / name).read_bytes()), name


def test_shipped_files_are_small_and_licensed():
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 700_000
    text = (DATA / "LICENSE.wordnet").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text and "title to copyright" in text.lower()


def test_every_shipped_phrase_is_an_adjective_and_a_noun():
    lexicon = shipped_lexicon()
    for line in shipped_lines("phrases.txt.gz"):
        adjective, noun, count = line.split()
        assert lexicon.count(adjective, "a") is not None and lexicon.count(noun, "n") is not None and int(count) >= 1


def test_a_folder_without_wordnet_is_refused(tmp_path, capsys):
    (tmp_path / "data.noun").write_text("")
    with pytest.raises(ValueError, match="not a WordNet 3.0 dictionary folder; it lacks index.noun.*cntlist.rev"):
        wordnet.write_lists(tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit):
        wordnet.main([str(tmp_path)])
    assert "lacks" in capsys.readouterr().err


@pytest.fixture
def nltk_corpus(tmp_path, monkeypatch):
    """NLTK's WordNet corpus folder, made of the dictionary folder and the two files that it lacks."""
    nltk = pytest.importorskip("nltk")
    from nltk.corpus import LazyCorpusLoader, WordNetCorpusReader

    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for path in WORDNET.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    names = """adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
        noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person noun.phenomenon
        noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state noun.substance noun.time verb.body
        verb.change verb.cognition verb.communication verb.competition verb.consumption verb.contact verb.creation verb.emotion verb.motion
        verb.perception verb.possession verb.social verb.stative verb.weather adj.ppl""".split()
    (folder / "lexnames").write_text("".join(f"{number}\t{name}\t1\n" for number, name in enumerate(names)))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(WordNetCorpusReader, "map_wn", lambda self, version="wordnet": None)
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))


@needs_wordnet
def test_nltks_corpus_is_used_where_installed_and_tags_alike(nltk_corpus):
    lexicon = nltk_lexicon()
    assert lexicon is not None and lexicon.source == "nltk"
    shipped = shipped_lexicon()
    # The last are names of single things, some of them with the form of another word.
    words = "dog light running women glasses orange pants tan person idea swim slowly zzz london einstein fields marches us"
    for word in [*words.split(), *shipped_lines("names.txt.gz")]:
        assert lexicon.entry(word) == shipped.entry(word), word
        assert lexicon.noun_lemma(word) == shipped.noun_lemma(word)
    for sentence in SENTENCES:
        assert tag_words(sentence, lexicon) == tag_words(sentence, shipped)


@needs_wordnet
@pytest.mark.slow
def test_nltks_corpus_and_the_shipped_list_have_the_same_words(nltk_corpus):
    nltk, shipped = nltk_lexicon(), shipped_lexicon()
    words = {line.split()[0] for name in ("index.noun", "index.verb", "index.adj", "index.adv") for line in (WORDNET / name).open()}
    words = [word for word in sorted(words) if wordnet._WORD.fullmatch(word)]
    assert len(words) > 60_000
    assert [word for word in words if nltk.entry(word) != shipped.entry(word)] == []
    assert [word for word in words if nltk.noun_lemma(word) != shipped.noun_lemma(word)] == []


def test_without_nltks_corpus_the_shipped_list_is_used(monkeypatch, tmp_path):
    nltk = pytest.importorskip("nltk")
    from nltk.corpus import LazyCorpusLoader, WordNetCorpusReader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    assert nltk_lexicon() is None
