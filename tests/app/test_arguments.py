"""The options that name weights mean the same for the app and for the benchmarks."""

import argparse
from dataclasses import replace

import pytest

from app.arguments import add_weights, as_arguments, weights
from app.state import Options
from srpo.miniature import paths


def read(*arguments):
    parser = argparse.ArgumentParser()
    add_weights(parser)
    return Options(**weights(parser.parse_args(arguments)))


def test_another_model_comes_without_the_miniatures_own_weights(tmp_path):
    own, other = read(), read("--model", str(tmp_path))
    assert (own.srpo, own.reward, own.judge) == (paths.SRPO, paths.REWARD, paths.JUDGE)
    assert (other.srpo, other.reward, other.judge) == (None, None, None)
    assert own == Options()


@pytest.mark.parametrize(
    "named", [{}, {"text_tokens": 77}, {"device": "cuda:1"}, {"reward": None, "judge": None}, {"compile": True}]
)
def test_options_written_as_words_are_read_as_the_same_options(tmp_path, named):
    options = Options(model=tmp_path, srpo=tmp_path / "srpo", reward=tmp_path / "reward", judge=tmp_path / "judge")
    options = replace(options, **named)
    assert read(*as_arguments(options)) == options


def test_how_models_are_kept_and_run_is_read_and_what_is_none_is_refused(capsys):
    options = read("--memory", "swap", "--attention", "cudnn", "--compile")
    assert (options.memory, options.attention, options.compile) == ("swap", "cudnn", True)
    assert read(*as_arguments(options)) == options
    assert (read().memory, read().attention, read().compile) == ("auto", "auto", False)
    for wrong in (["--memory", "best"], ["--attention", "fast"]):
        with pytest.raises(SystemExit):
            read(*wrong)
        assert f"invalid choice: '{wrong[1]}' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "513"])
def test_as_many_tokens_as_no_model_reads_are_refused(count, capsys):
    with pytest.raises(SystemExit):
        read("--text-tokens", count)
    assert f"--text-tokens must be 1 to 512, not {count}" in capsys.readouterr().err
