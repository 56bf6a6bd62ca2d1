"""The card: what it says of measured figures, and what it says where there are none."""

import json

import pytest

from srpo.miniature import card

YES, NO = "| yes |", "| **no** |"
STYLES = ("photo", "painting", "anime", "concept art")
STAGES = {"vae": ("Made of paper.", ("vae",)), "card": ("This card.", ())}


def alignment_row(share, /, **differences):
    """A model's row as `measure_alignment` gives it, read back from a file."""
    scores = ("raw reward", "positive", "negative", "positive minus negative")
    row = {"photo": [share, share - 0.04, share + 0.04, 512], "content": [0.8, 0.76, 0.84, 512]}
    row |= {name: [0.25, 0.2, 0.3, 512] for name in ("saturation", "clipped", *scores)}
    for name, value in differences.items():
        row[f"{name} difference"] = [value, value - 0.01, value + 0.01, 512]
    return row | {f"{name} difference": [0.002, 0.001, 0.003, 512] for name in scores if differences}


@pytest.fixture
def figures():
    """Figures that reach every goal."""
    high = [0.99, 0.98, 1.0, 512]
    srpo = alignment_row(0.72, photo=0.54, content=-0.02, saturation=-0.05, clipped=-0.001)
    srpo |= {"photo ratio": [4.0, 3.4, 4.9, 512], f"photo minus {card.PLAIN}": [0.6, 0.55, 0.65, 512]}
    return {
        "vae": {"psnr": [28.0, 27.9, 28.1, 512]} | {f"psnr of {style}": [28.0, 27.5, 28.5, 128] for style in STYLES},
        "judge": dict.fromkeys(("style", "subject", "colour", "place", "time"), high),
        "judge on held-out pairs": {"subject": high},
        "judge on decoded renders": {"style": [0.913, 0.89, 0.93, 1024]},
        "reward": {"style": high, "content": high},
        "reward's cosines": {"own 50 %": 0.8},
        "samples": {
            "style right, style word given": high,
            "content right, seen pairs": high,
            "content right, held-out pairs": [0.6, 0.5, 0.7, 90],
        },
        "samples at other settings": {
            "512 text tokens, guidance 3.5": {"style": high, "content": high, "raw reward": high, "saturation": high}
        },
        "alignment": {
            card.BASE: alignment_row(0.18),
            card.SRPO: srpo,
            card.PLAIN: alignment_row(0.12, photo=-0.06, content=0.0, saturation=0.1, clipped=0.01),
        },
        "curves": {"vae": [{"update": n, "loss": 1 / n} for n in (1, 2)]},
    }


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name in ("FIGURES", "CARD", "README"):
        monkeypatch.setattr(card, name, tmp_path / name)
    card.README.write_text(f"before\n{card.BEGIN}\nold\n{card.END}\nafter\n")
    return tmp_path


def written(figures):
    card.FIGURES.write_text(json.dumps(figures))
    card.write_card(STAGES)
    return card.CARD.read_text(encoding="utf-8")


def test_card_and_readme_show_the_same_tables_and_the_rest_of_the_readme_stays(figures, files):
    text = written(figures)
    readme = card.README.read_text(encoding="utf-8")
    assert readme.startswith(f"before\n{card.BEGIN}\n") and readme.endswith(f"{card.END}\nafter\n")
    table = readme.split(card.BEGIN)[1].split(card.END)[0].strip()
    assert table in text and "old" not in readme
    assert "| SRPO | 72.0% (68.0% to 76.0%) |" in table
    assert "+54.00 (+53.00 to +55.00) pp" in table  # photo, paired
    written(figures)
    assert card.README.read_text(encoding="utf-8") == readme


def test_the_card_tells_of_every_measured_part(figures, files):
    text = written(figures)
    for words in (
        "photo 28.00 dB (27.50 to 28.50)",
        "| 512 text tokens, guidance 3.5 | 99.0% (98.0% to 100.0%) |",
        "| style | 91.3% (89.0% to 93.0%) | 1024 |",
        "0.2500, +0.0020 (+0.0010 to +0.0030)",
        "49% of the captions it learnt from name no style. Of these, the pictures are: photo 16.7%",
        "### vae\n\nMade of paper.\n\n| update | loss |",
    ):
        assert words in text


def test_figures_that_reach_every_goal_are_all_marked_so(figures, files):
    text = written(figures)
    assert text.count(YES) == 18
    assert NO not in text


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"photo": [0.59, 0.55, 0.63, 512]}, "SRPO: neutral prompts judged photo"),
        ({"photo ratio": [2.9, 2.5, 3.3, 512]}, "SRPO: photos, times the base's share"),
        ({"content difference": [-0.031, -0.05, -0.01, 512]}, "SRPO: content, paired with the base"),
        ({"saturation difference": [0.001, -0.01, 0.01, 512]}, "SRPO: saturation, paired with the base"),
        ({"clipped difference": [0.001, -0.01, 0.01, 512]}, "SRPO: clipped, paired with the base"),
        ({f"photo minus {card.PLAIN}": [0.02, -0.01, 0.05, 512]}, "SRPO: photos, paired with the plain reward"),
    ],
)
def test_a_goal_of_the_alignment_that_is_missed_is_marked_alone(change, row, figures, files):
    figures["alignment"][card.SRPO] |= change
    missed = [line for line in written(figures).splitlines() if NO in line]
    assert len(missed) == 1 and missed[0].startswith(f"| {row} |")


@pytest.mark.parametrize("part", ["vae", "samples", "samples at other settings", "alignment"])
def test_a_part_that_was_not_measured_is_named_in_one_sentence_and_nothing_is_written(part, figures, files):
    del figures[part]
    with pytest.raises(ValueError, match=rf"lacks '{part}': run `python -m srpo\.miniature figures` first"):
        written(figures)
    assert not card.CARD.exists()
    assert "old" in card.README.read_text()


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (7, 7), (40, 40), (41, 21), (100, 34)])
def test_a_curve_keeps_at_most_forty_points_its_last_and_none_twice(count, kept, files):
    card.save_curve("vae", [{"update": n} for n in range(1, count + 1)])
    updates = [point["update"] for point in json.loads(card.FIGURES.read_text())["curves"]["vae"]]
    assert len(updates) == kept == len(set(updates))
    assert updates[-1] == count and updates == sorted(updates)


def test_new_figures_leave_the_others(files):
    card.merge_figures({"a": 1, "b": 2})
    card.save_curve("vae", [{"update": 1}])
    card.save_curve("flux", [{"update": 2}])
    card.merge_figures({"b": 3})
    known = json.loads(card.FIGURES.read_text())
    assert (known["a"], known["b"], set(known["curves"])) == (1, 3, {"vae", "flux"})
