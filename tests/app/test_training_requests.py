"""What a page may ask of training: every bad input is one sentence, before anything is started."""

import json

import pytest

from app.services.requests import BadInput, parse
from app.services.training_requests import TrainRequest, read_prompt_file, with_lines


def ask(**changes):
    return parse(TrainRequest, {"preset": "studio"} | changes)


def test_what_is_left_out_is_as_in_the_preset(tmp_path):
    assert ask().assignments(tmp_path) == []
    assert ask(updates="", lr=None).assignments(tmp_path) == []


def test_what_is_given_becomes_assignments_and_what_is_written_out_has_the_last_word(tmp_path):
    more = "updates=13\n\n# a note\nseed = 4"
    request = ask(updates=12, lr="2e-5", positive="Photo\nReal\nPhoto", negative="Flat\nOil, on canvas", more=more)
    assert request.assignments(tmp_path) == [
        "updates=12",
        "lr=2e-05",
        'signal.words.positive=["Photo", "Real"]',
        'signal.words.negative=["Flat", "Oil, on canvas"]',
        "updates=13",
        "seed=4",
    ]


def test_a_chosen_field_replaces_the_line_it_came_with(tmp_path):
    (line,) = ask(prompts="a ball", more='prompts="/elsewhere.txt"').assignments(tmp_path)
    assert line.startswith(f'prompts="{tmp_path}')
    assert ask(more='prompts="/elsewhere.txt"').assignments(tmp_path) == ['prompts="/elsewhere.txt"']


def test_own_prompts_are_kept_in_a_file_named_by_what_they_say(tmp_path):
    request = ask(prompts=" a red  ball \n\nein grüner Baum, 樹\n")
    (line,) = request.assignments(tmp_path)
    path = json.loads(line.removeprefix("prompts="))
    assert path.startswith(str(tmp_path)) and not list(tmp_path.iterdir())
    request.keep_prompts(tmp_path)
    request.keep_prompts(tmp_path)
    (file,) = tmp_path.iterdir()
    assert str(file) == path
    assert file.read_text(encoding="utf-8") == "a red ball\nein grüner Baum, 樹\n"
    assert ask(prompts="another").assignments(tmp_path) != [line]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"updates": 0}, "from 1 to 100,000, not 0"),
        ({"updates": -3}, "not -3"),
        ({"updates": 2.5}, "not 2.5"),
        ({"updates": "many"}, "must be a number, not 'many'"),
        ({"updates": float("nan")}, "finite"),
        ({"prompts_per_update": 0}, "Prompts per update"),
        ({"lr": 0}, "The learning rate must be above 0"),
        ({"lr": -1e-5}, "between 0 and 1"),
        ({"lr": float("inf")}, "finite"),
        ({"lr": float("nan")}, "finite"),
        ({"validate_every": -1}, "validations"),
        ({"weights": "half"}, "'full' or 'lora'"),
        ({"prompts": ""}, "no prompts"),
        ({"prompts": "  \n\n"}, "no prompts"),
        ({"prompts": "x" * 5000}, "Line 1 of the prompts has 5,000 characters"),
        ({"prompts": "ball\n" * 100_001}, "100,001"),
        ({"prompts": 7}, "must be text"),
        ({"positive": "\n \n"}, "no positive control words"),
        ({"negative": "x" * 61}, "61 characters"),
        ({"negative": "\n".join(f"w{n}" for n in range(41))}, "At most 40"),
        ({"name": "../elsewhere"}, "cannot be named '../elsewhere'"),
        ({"name": "/etc/passwd"}, "path"),
        ({"name": "a/b"}, "path"),
        ({"name": ".hidden"}, "cannot be named"),
        ({"name": "x" * 200}, "up to 100"),
        ({"model": "/nowhere/at/all"}, "There is no pipeline"),
        ({"model": "\0"}, "path of a folder"),
        ({"more": "just words"}, "sets nothing"),
        ({"more": "a=1\n" * 201}, "At most 200"),
        ({"sinks": ["carrier pigeon"]}, "sinks"),
        ({"unheard": 1}, "means nothing"),
    ],
)
def test_a_bad_request_is_one_sentence(changes, said):
    with pytest.raises(BadInput) as refused:
        ask(**changes)
    text = str(refused.value)
    assert said in text
    assert text.endswith(".") and "\n" not in text and text[0].isupper() | (text[0] == "'")


@pytest.mark.parametrize(
    ("more", "lines", "merged"),
    [
        ("", ["seed=1"], "seed=1"),
        ("lr=1\nseed=0\n# a note\n\nbetas=[0, 0]", ["seed=1"], "lr=1\nseed=1\n# a note\n\nbetas=[0, 0]"),
        ("# seed=3\nlr=1", ["seed=1", "eps=2"], "# seed=3\nlr=1\nseed=1\neps=2"),
        (" seed = 0\nlr=1\nseed=5\neps=2", ["seed=1"], "lr=1\nseed=1\neps=2"),
        ('signal={"form": "srp"}', ["signal.form=plain"], 'signal={"form": "srp"}\nsignal.form=plain'),
        ('signal.form=sgp\nsignal={"form": "srp"}', ["signal.form=plain"], 'signal={"form": "srp"}\nsignal.form=plain'),
        ("signal.words.template=a=b", ["signal.words.template={word}"], "signal.words.template={word}"),
    ],
)
def test_lines_that_are_sent_to_a_form_replace_their_own_and_no_others(more, lines, merged):
    assert with_lines(more, lines) == merged
    assert with_lines(merged, lines) == merged


@pytest.mark.parametrize("line", ["", "seed", "# seed=1", " =1"])
def test_a_line_that_sets_nothing_is_refused(line):
    with pytest.raises(ValueError, match="sets nothing"):
        with_lines("lr=1", [line])


def test_a_prompt_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa ball\r\na b\xc3\xa4r\r\n")  # with the mark that some editors put first
    assert ask(prompts=read_prompt_file(path)).prompts == ("a ball", "a bär")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a ball\n\xff\xfe\x00", "not UTF-8 text (byte 8 is not)"),
        (b"PK\x03\x04\x00\x00binary", "not a text file"),
        (b"x" * (16 * 2**20 + 1), "larger than 16 MB"),
    ],
)
def test_a_prompt_file_that_is_none_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="The prompt file") as refused:
        read_prompt_file(path)
    assert said in str(refused.value) and str(refused.value).endswith(".")


def test_a_prompt_file_that_is_gone_is_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        read_prompt_file(tmp_path / "gone.txt")
