"""python -m srpo.miniature.words: does the miniature's reward perceive the control words, held against other measures.

The same rule that judges a word by the reward's scores judges it by what is known otherwise: the judge's probability of
the style that a word names, luminance, saturation; a word without meaning has no measure, and must be called weak.

N prompts, W words
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srpo.evaluation import measures
from srpo.evaluation.perception import CLEAR, TOLD_APART, Perception, Side, auc, perceive, verdicts
from srpo.evaluation.sampling import sample_images
from srpo.miniature import paths
from srpo.miniature.judge import Judge
from srpo.miniature.world import STYLE_WORDS, TONE_WORDS, neutral_prompts
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.rewards.control_words import PAPER_WORDS

TABLE = paths.REPOSITORY / "docs" / "words.md"
FIRST_SEED = 132_000  # of the noise: no figure, tuning or threshold has seen it
NUM_STEPS, GUIDANCE, TEXT_TOKENS = 12, 3.5, 64
NONSENSE = ("Florp", "Quux", "Zibble", "Marnok")
STYLE_OF = {word: style for style, words in STYLE_WORDS.items() for word in words}
# What a tone does to a picture: a measure of it, and the direction.
TONES = {
    "Dark": (measures.luminance, -1.0),
    "Bright": (measures.luminance, 1.0),
    "Vivid": (measures.saturation, 1.0),
    "Muted": (measures.saturation, -1.0),
}
WORDS = (*STYLE_OF, *TONE_WORDS, *NONSENSE)


def side_of(word: str) -> Side:
    """Photo words are positive, words of the other styles negative, as the paper has them; tones and nonsense other."""
    if word in STYLE_OF:
        return "positive" if STYLE_OF[word] == "photo" else "negative"
    return "other"


def truth(judge: Judge, groups: Sequence[Tensor], words: Sequence[str] = WORDS) -> Tensor:
    """(W + 1, N, W) how much of each word every picture shows, by measures that are none of the reward's.

    groups: W + 1 times (N, 3, H, W), the pictures without a word first. A word without meaning is in no picture.
    """
    styles = [torch.cat([judge.probabilities(part)["style"] for part in images.split(64)]) for images in groups]

    def shows(word: str, group: int) -> Tensor:
        if word in STYLE_OF:
            return styles[group][:, judge.classes["style"].index(STYLE_OF[word])]
        if word in TONES:
            measure, sign = TONES[word]
            return sign * measure(groups[group])
        return torch.zeros(len(groups[group]))

    return torch.stack([torch.stack([shows(word, g) for word in words], dim=-1) for g in range(len(groups))])


@dataclass(frozen=True)
class Check:
    """What to expect of the words by the reward and by the other measures, from the same pictures."""

    by_reward: Perception
    by_truth: Perception
    truth: Tensor  # (W + 1, N, W)

    def agrees(self, w: int) -> bool:
        """True where both call a word weak, or neither does and its entanglements are true.

        One is true where the other word's pictures show this one more than pictures without any word do.
        """
        said, true = self.by_reward.verdicts[w], self.by_truth.verdicts[w]
        if "weak" in (said.kind, true.kind):
            return said.kind == true.kind
        groups = [self.by_reward.words.index(word) + 1 for word in said.entangled_with]
        return all(auc(self.truth[g, :, w], self.truth[0, :, w]).low > 0.5 for g in groups)


@torch.no_grad()
def measure(prompts: Sequence[str], words: Sequence[str] = WORDS) -> Check:
    """The check of the words, by pictures of the miniature."""
    policy = FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=TEXT_TOKENS)
    judge, reward = Judge.from_pretrained(paths.JUDGE), ClipReward.from_pretrained(paths.REWARD)
    seeds = range(FIRST_SEED, FIRST_SEED + len(prompts))
    texts = [list(prompts), *([PAPER_WORDS.apply(word, prompt) for prompt in prompts] for word in words)]
    groups = [sample_images(policy, group, seeds, num_steps=NUM_STEPS, guidance=GUIDANCE) for group in texts]
    f_img = torch.stack([torch.cat([reward.embed_image(part) for part in images.split(32)]) for images in groups])
    sides = [side_of(word) for word in words]
    by_reward = perceive(reward, f_img, prompts, words, PAPER_WORDS.apply, sides)
    shown = truth(judge, groups, words)
    return Check(by_reward, verdicts(shown, words, sides), shown)


def table(check: Check) -> str:
    """The Markdown page."""
    by_reward, by_truth, num_prompts = check.by_reward, check.by_truth, check.truth.shape[1]
    lines = [
        "| word | verdict by the reward | AUC (95 % interval) | content | verdict by other measures | AUC | agree |",
        "|---|---|---|---|---|---|---|",
    ]
    for w, word in enumerate(by_reward.words):
        separation, content = by_reward.separation[w], by_reward.content[w]
        true = by_truth.separation[w]
        lines.append(
            f"| {word} | {by_reward.verdicts[w].text} | {_interval(separation)} | "
            f"{content.mean:+.3f} ({content.low:+.3f} to {content.high:+.3f}) | {by_truth.verdicts[w].text} | "
            f"{_interval(true)} | {'yes' if check.agrees(w) else '**no**'} |"
        )
    counts = []
    for name, chosen in (("style words", STYLE_OF), ("tones", TONES), ("words without meaning", NONSENSE)):
        places = [w for w, word in enumerate(by_reward.words) if word in chosen]
        right = sum(check.agrees(w) for w in places)
        counts.append(f"- {name}: the verdicts agree for {right} of {len(places)}")
    reasons = [f"- **{word}**: {by_reward.verdicts[w].reason}" for w, word in enumerate(by_reward.words)]
    return f"""# Does the miniature's reward perceive the control words?

Written by `python -m srpo.miniature.words`. {num_prompts} neutral test prompts, painted with each word and without any
from the same noise ({NUM_STEPS} steps, guidance {GUIDANCE:g}, seeds from {FIRST_SEED:,}). The AUC says how often a
picture with the word scores higher under it than one without; the score is that under the prompt with the word minus
that under the prompt alone, and what the prompt itself does to it is taken out. A word is *weak* unless the whole 95 %
interval lies above {CLEAR:g}, or, for a negative word, that of its pictures against those of all other words: it then
names what pictures look like already. It is *entangled* with one of another side from whose pictures its own are told
with an AUC below {TOLD_APART:g}. Content is the change of how much better a picture fits its own prompt than the
others.

The other measures know nothing of the reward: the judge's probability of the style that a word names, luminance for
Dark and Bright, saturation for Vivid and Muted. They are judged by the same rule. Words without meaning have no measure
and must be weak. Verdicts agree where both are weak, or neither is and what the reward entangles a word with shows it
by the other measure as well. The thresholds were chosen on other prompts and noise.

{chr(10).join(lines)}

{chr(10).join(counts)}

## The reasons, as the page gives them

{chr(10).join(reasons)}
"""


def _interval(value: Sequence[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*value)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0."""
    parser = argparse.ArgumentParser(prog="python -m srpo.miniature.words", description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24, metavar="N", help="pictures per word (default: 24)")
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE", help="the page")
    options = parser.parse_args(arguments)
    prompts = [text for text, _ in neutral_prompts("test")[-options.prompts :]]
    if len(prompts) < 2:
        parser.error(f"--prompts is {options.prompts}; expected at least 2")
    options.out.write_text(table(measure(prompts)), encoding="utf-8")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
