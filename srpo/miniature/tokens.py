"""The miniature's tokenizers, in FLUX's classes: each word of the world is one token, other words are spelt out."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from transformers import CLIPTokenizer, T5TokenizerFast

from srpo.miniature.world import (
    CAPTION_TEMPLATES,
    COLOURS,
    PLACE_PHRASES,
    STYLE_WORDS,
    SUBJECTS,
    TIME_PHRASES,
    TONE_WORDS,
)

PRINTABLE = [chr(code) for code in range(33, 127)]


def world_words() -> list[str]:
    """Every word that captions and control words are made of, as it is spelt there, sorted."""
    templates = " ".join(CAPTION_TEMPLATES).translate(str.maketrans("", "", ","))
    phrases = [
        re.sub(r"{\w+}", "", templates),
        "an",
        *SUBJECTS,
        *COLOURS,
        *PLACE_PHRASES.values(),
        *TIME_PHRASES.values(),
    ]
    phrases += [word for words in STYLE_WORDS.values() for word in words] + list(TONE_WORDS)
    return sorted({word for phrase in phrases for word in phrase.split()})


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, at most 77 tokens, letter case ignored.

    The merges are learnt from the world's words until each of them is one token; the vocabulary holds every byte,
    inside a word and at its end, so any text can be written.
    """
    words = {part for word in world_words() for part in re.findall("[a-z]+", word.lower())}
    merges = _learn_merges(sorted(words))
    letters = byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(first + second for first, second in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer, at most 512 tokens: the world's words in either case, and printable ASCII.

    Any other character is `<unk>`, as in T5 itself.
    """
    words = sorted({spelling for word in world_words() for spelling in (word, word.lower(), word.capitalize())})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(character, -5.0) for character in PRINTABLE]
    pieces += [("▁" + word, -3.0) for word in words]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016) until every word is one piece; ties are broken by spelling."""
    spelt = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while any(len(pieces) > 1 for pieces in spelt):
        counts = Counter(pair for pieces in spelt for pair in pairwise(pieces))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelt = [_merge(pieces, best) for pieces in spelt]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def byte_letters() -> list[str]:
    """The 256 letters by which byte-level BPE writes bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
