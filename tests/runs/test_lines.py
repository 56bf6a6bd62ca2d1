"""Growing logs: every record once, whatever is appended, torn or cut back between two looks."""

import itertools
import json
import time

import pytest

from srpo.runs.lines import append_line, cut_back, read_lines


def numbers(path, after=None, at_most=None):
    return read_lines(path, lambda line: line["update"], after, at_most)


def write(path, updates, text=""):
    with path.open("a") as log:
        log.writelines(json.dumps({"update": update, "text": text}) + "\n" for update in updates)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


def test_no_file_holds_no_records(path):
    assert numbers(path) == []
    cut_back(path, lambda line: False)
    assert not path.exists()


def test_appended_lines_are_read_back(path):
    for update in (1, 2):
        append_line(path, {"update": update})
    assert numbers(path) == [1, 2]


def test_a_torn_last_line_is_left_out_at_every_byte(path):
    write(path, [1])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole + whole[:length])
        assert numbers(path) == [1]


def test_a_spoiled_line_in_the_middle_is_an_error_that_names_it(path):
    write(path, [1])
    seen = numbers(path)
    path.open("a").write("{\n")
    write(path, [2])
    for after in (None, seen):
        with pytest.raises(ValueError, match=r"line 2 of .*log\.jsonl cannot be read"):
            numbers(path, after)
    with pytest.raises(ValueError, match=r"line 2 of"):
        cut_back(path, lambda line: True)


def test_following_reads_only_what_is_new(path):
    write(path, range(3))
    seen = numbers(path)
    parsed = []
    path.open("a").write('{"update": 3, "te')
    assert read_lines(path, parsed.append, seen) == [0, 1, 2]
    path.open("a").write('xt": ""}\n')
    write(path, [4])
    assert numbers(path, seen) == [0, 1, 2, 3, 4]
    read_lines(path, lambda line: parsed.append(line["update"]), seen)
    assert parsed == [3, 4]


@pytest.mark.parametrize("grown_to", [2, 5, 6, 9])
def test_a_follower_sees_no_update_twice_after_a_cut_however_far_the_log_has_grown(path, grown_to):
    """Read up to 5, cut back to 2, written anew with other texts: shorter than, as long as and longer than before."""
    write(path, range(6), "first")
    seen = numbers(path)
    cut_back(path, lambda line: line["update"] <= 2)
    write(path, range(3, grown_to + 1), "again")  # of equal length
    assert numbers(path, seen) == list(range(grown_to + 1))


def test_a_cut_drops_a_torn_line_so_that_the_next_one_stands_alone(path):
    write(path, [1, 2])
    path.open("a").write('{"update": 3')
    cut_back(path, lambda line: True)
    write(path, [3])
    assert numbers(path) == [1, 2, 3]


def test_of_a_huge_log_evenly_spread_lines_are_read_with_both_ends(path):
    write(path, range(10_000))
    path.open("a").write('{"torn')
    some = numbers(path, at_most=100)
    assert 95 <= len(some) <= 101
    assert (some[0], some[-1]) == (0, 9_999)
    gaps = [later - earlier for earlier, later in itertools.pairwise(some)]
    assert min(gaps) >= 1 and max(gaps) <= 210
    path.write_bytes(path.read_bytes()[: -len('{"torn')])
    write(path, [10_000, 10_001])
    assert numbers(path, some, at_most=100) == [*some, 10_000, 10_001]
    assert numbers(path, at_most=10_000) == list(range(10_002))


def test_lines_longer_than_a_block_are_found_at_the_end(path):
    write(path, range(50), "x" * 70_000)
    assert numbers(path, at_most=10)[-1] == 49


def test_a_million_lines_give_two_thousand_points_at_once(path):
    """Reading them all takes seconds; the points of a chart must not."""
    line = json.dumps({"update": 0, "loss": 0.123456789, "scores": {"denoise/reward": 0.123456789}}) + "\n"
    with path.open("w") as log:
        log.writelines([line * 10_000] * 100)
    began = time.process_time()
    assert 1_990 <= len(numbers(path, at_most=2_000)) <= 2_001
    assert time.process_time() - began < 1
