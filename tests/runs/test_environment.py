"""What a run was made with: fingerprints tell contents apart, and differences are listed by name."""

import os

from srpo.runs.environment import differences, environment, fingerprint


def test_the_account_names_versions_code_and_inputs(tmp_path):
    (tmp_path / "prompts.txt").write_text("a ball\n")
    account = environment({"prompts": str(tmp_path / "prompts.txt"), "model": "black-forest-labs/FLUX.1-dev"})
    assert account["torch"] and len(account["sources"]) == 16
    assert account["prompts"] == fingerprint(tmp_path / "prompts.txt")
    assert account["model"] == "black-forest-labs/FLUX.1-dev"


def test_differences_are_listed_and_another_commit_of_the_same_sources_is_none():
    then = {"torch": "2.12.0", "sources": "a", "commit": "1", "prompts": "p"}
    now = {"torch": "2.13.0", "sources": "a", "commit": "2", "reward": "r"}
    assert differences(then, then) == []
    assert differences(then, now) == [
        "torch was 2.12.0 and is 2.13.0 now",
        "prompts was p and is not recorded now",
        "reward was not recorded and is r now",
    ]


def test_a_file_s_fingerprint_is_of_its_content_and_name_not_of_its_date(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = fingerprint(file)
    os.utime(file, (0, 0))
    assert fingerprint(file) == first
    file.write_text("two")
    assert fingerprint(file) != first


def test_a_folder_s_fingerprint_is_of_all_its_files_wherever_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "weights").write_bytes(b"x" * 10)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "part" / "weights").write_bytes(b"x" * 9 + b"y")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_of_a_large_file_both_ends_and_blocks_between_are_read(tmp_path):
    """8 MB, of which 4 MB are read: a training changes every block, an edit of an end is seen as well."""
    file = tmp_path / "weights"
    content = bytearray(8 << 20)
    file.write_bytes(content)
    first = fingerprint(file)
    for place in (0, -1):
        changed = content.copy()
        changed[place] = 1
        file.write_bytes(changed)
        assert fingerprint(file) != first
    file.write_bytes(bytes(content) + b"\0")
    assert fingerprint(file) != first
