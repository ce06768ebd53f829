"""Language for vision codebooks: parts of speech, the adjective-noun graph, word vectors, vocabularies.

Importing this loads neither transformers nor nltk; they are loaded when a model or NLTK's WordNet is first needed.
"""

from vqkit.language.encoder import WordVectors, encode_sentences, encode_words
from vqkit.language.graph import WordCounts, count_words, word_edges
from vqkit.language.text_features import CaptionTokens, TextEncoder, TextFeatures, open_text_encoder
from vqkit.language.vocabulary import Vocabulary, build_vocabulary, wordnet_phrases
from vqkit.language.words import Word, noun_lemma, tag_words, tokenize, word_source

__all__ = [
    "CaptionTokens", "TextEncoder", "TextFeatures", "Vocabulary", "Word", "WordCounts", "WordVectors", "build_vocabulary", "count_words",
    "encode_sentences", "encode_words", "noun_lemma", "open_text_encoder", "tag_words", "tokenize", "word_edges", "word_source",
    "wordnet_phrases",
]  # fmt: skip
