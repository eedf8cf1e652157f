"""Words of photographs: which are looked for, and that a layer finds them in photographs it has not learnt from."""

from __future__ import annotations

import torch

from nano import photo_words
from nano.human_data import Captioned


def captioned(*texts: str) -> Captioned:
    return Captioned("a.jpg", "train", texts)


def test_the_commonest_words_are_looked_for_and_counted() -> None:
    every = [captioned("A dog runs.", "The dog is running.", "A brown dog."), captioned("A red dog.", "Two cats.")]
    words = photo_words.vocabulary(every)
    assert words[0] == "dog" and {"runs", "running", "brown", "red", "cats"} < set(words) and "a" not in words
    found = photo_words.labels(every, words)
    assert found[0, 0] == 1 and found[0, words.index("brown")] == torch.tensor(1 / 3)
    assert found[1, words.index("cats")] > 0 and found[1, words.index("brown")] == 0


def test_a_layer_finds_words_in_new_photographs() -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.rand(6100, 5, generator=generator) < 0.3
    seen = torch.randn(6100, 40, generator=generator) * 0.3
    seen[:, :5] += signs * 4.0 + 2.0  # values with a mean and a deviation of their own
    layer = photo_words.fit([seen[:6000]], signs[:6000].float(), seed=1)
    with torch.no_grad():
        scores, there = layer(seen[6000:]), signs[6000:]
    for word in range(5):  # nearly every photograph with it scores higher than every one without
        with_it, without = scores[there[:, word], word], scores[~there[:, word], word]
        assert (with_it[:, None] > without).float().mean() > 0.95
