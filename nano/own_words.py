"""What a model in training says of the photographs that it learns from.

Questions about its own descriptions follow from them: what it names, it has to confirm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nano.branches import likeliest_answers
from nano.human_data import Captioned
from nano.human_train import Learner, halved
from nano.mixture import Sample
from nano.phrases import DESCRIBE_PROMPTS
from nano.stemcache import StemCache

_BATCH, _LONGEST = 32, 24


def of_photographs(
    learner: Learner, stems: dict[str, StemCache], captioned: Sequence[Captioned]
) -> dict[str, dict[str, str]]:
    """Descriptions of every fourth photograph, and of the mirror image of others: by cache and name."""
    plain, mirrored = captioned[::4], [each for each in captioned[1::4] if not each.sided]
    chosen = {"flickr8k": plain, "flickr8k-mirrored": mirrored}
    return {stem: describe(learner, stems, stem, [each.image for each in part]) for stem, part in chosen.items()}


@torch.inference_mode()
def describe(learner: Learner, stems: dict[str, StemCache], stem: str, images: Sequence[str]) -> dict[str, str]:
    """Greedy descriptions of photographs.

    Args:
        learner: the model.
        stems: the stem's caches by name.
        stem: the cache that holds the photographs.
        images: their names.

    Returns:
        A text for each name.
    """
    question = learner.encoder.question(DESCRIBE_PROMPTS[0])
    model, texts = learner.model, dict[str, str]()
    for first in range(0, len(images), _BATCH):
        names = images[first : first + _BATCH]
        with halved():
            visual = learner.visual([Sample(stem, name, []) for name in names], stems).float()
            found = likeliest_answers(
                model.language_model, model.lm_head.weight, learner.prefix, visual,
                torch.tensor([question] * len(names)), eos_id=learner.tokenizer.eos_id, longest=_LONGEST,
            )  # fmt: skip
        texts |= {name: learner.tokenizer.decode(each).strip() for name, each in zip(names, found, strict=True)}
    return texts
