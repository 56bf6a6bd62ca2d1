"""Every word of the world is one token, and any English text can be written."""

import pytest

from srpo.miniature.tokens import clip_tokenizer, t5_tokenizer, world_words
from srpo.miniature.world import STYLE_WORDS, TONE_WORDS, held_out_prompts, neutral_prompts

CAPTION = "Natural-lighting, Vivid. an orange mushroom on a beach at sunset"


def test_the_words_of_the_world_include_every_control_word_and_every_caption():
    words = set(world_words())
    control = [part for group in STYLE_WORDS.values() for word in group for part in word.split()] + list(TONE_WORDS)
    assert set(control) <= words
    for prompt, _ in neutral_prompts("test") + held_out_prompts():
        assert set(prompt.split()) <= words


def test_clip_reads_each_word_as_one_token():
    tokenizer = clip_tokenizer()
    for word in world_words():
        parts = word.lower().replace("-", " - ").split()
        assert tokenizer.tokenize(word) == [part + "</w>" for part in parts]


def test_t5_reads_each_word_as_one_token_in_either_case():
    tokenizer = t5_tokenizer()
    for word in world_words():
        for spelling in (word, word.lower(), word.capitalize()):
            assert tokenizer.tokenize(spelling) == ["▁" + spelling]


@pytest.mark.parametrize("text", [CAPTION, "A boy's 42 grey cats, naïve & quick!", "Löwe am Meer, 海", ""])
def test_clip_gives_any_text_back_but_for_case_and_spaces(text):
    tokenizer = clip_tokenizer()
    read = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    assert "".join(read.split()) == "".join(text.lower().split())


def test_t5_gives_printable_english_back_and_marks_the_rest_as_unknown():
    tokenizer = t5_tokenizer()
    text = "A boy's 42 grey cats & a Photo of it!"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id in tokenizer("海").input_ids


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
def test_a_tokenizer_read_back_from_its_folder_is_the_same(make, tmp_path):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    for text in (CAPTION, "something unheard of", ""):
        assert again(text).input_ids == tokenizer(text).input_ids
    assert again.model_max_length == tokenizer.model_max_length
    assert again.pad_token_id == tokenizer.pad_token_id


def test_texts_that_are_too_long_are_cut_at_the_limit_with_the_end_kept():
    for tokenizer, limit in ((clip_tokenizer(), 77), (t5_tokenizer(), 512)):
        ids = tokenizer("a red ball " * 300, truncation=True).input_ids
        assert len(ids) == limit
        assert ids[-1] == tokenizer.eos_token_id
