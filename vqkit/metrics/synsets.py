"""WordNet for metrics: NLTK's reader over NLTK's corpus or over any WordNet 3.0 dictionary folder."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from functools import lru_cache
from pathlib import Path

# Lexicographer files in the order of their numbers, lexnames(5WN); distributions for Linux leave the file out.
_LEXNAMES = """adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition noun.communication
    noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession
    noun.process noun.quantity noun.relation noun.shape noun.state noun.substance noun.time verb.body verb.change verb.cognition
    verb.communication verb.competition verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession
    verb.social verb.stative verb.weather adj.ppl""".split()
_SYSTEM_FOLDERS = ("/usr/share/wordnet", "/usr/local/share/wordnet", "/usr/share/wordnet/dict", "/usr/local/WordNet-3.0/dict")
_NEEDED = tuple(f"{kind}.{part}" for kind in ("index", "data") for part in ("noun", "verb", "adj", "adv"))
_HOW = (
    "install Debian's package wordnet-base, or run python -m nltk.downloader wordnet, or set WORDNET_DICT to a WordNet 3.0 dictionary folder "
    "(index.noun, data.noun, ...)"
)


def open_wordnet(folder: str | os.PathLike | None = None):
    """NLTK's WordNet reader (`nltk.corpus.reader.WordNetCorpusReader`), read once a process for each folder.

    folder: a WordNet 3.0 dictionary folder. Without one: that of the environment variable WORDNET_DICT, else NLTK's own corpus, else the
    folder of a system package.

    Raises LookupError, with how to install it, where there is no NLTK or no WordNet; ValueError for a folder that is none.
    """
    if importlib.util.find_spec("nltk") is None:
        raise LookupError('WordNet is read by nltk, which is not installed: pip install "vqkit[language]"')
    folder = folder or os.environ.get("WORDNET_DICT")
    if folder:
        return _read_folder(Path(folder))
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
        return wordnet
    except LookupError:
        pass
    for system in map(Path, _SYSTEM_FOLDERS):
        if (system / "data.noun").is_file():
            return _read_folder(system)
    raise LookupError(f"no WordNet 3.0 found: {_HOW}")


@lru_cache(maxsize=4)
def _read_folder(folder: Path):
    import nltk
    from nltk.corpus.reader import WordNetCorpusReader

    folder = folder.resolve()
    if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
        raise ValueError(f"folder: {folder} is not a WordNet 3.0 dictionary folder; it lacks {', '.join(missing)}")

    class DictionaryReader(WordNetCorpusReader):
        """NLTK's reader without the two files that dictionary folders may lack."""

        def open(self, file):
            if file == "lexnames" and not (folder / file).is_file():
                return io.StringIO("".join(f"{number}\t{name}\t0\n" for number, name in enumerate(_LEXNAMES)))
            return super().open(file)

        def map_wn(self, version="wordnet"):
            return None

    # NLTK reads only below the folders of this list.
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions")
        return DictionaryReader(str(folder), None)
