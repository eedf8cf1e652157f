"""Pictures, conversations and answers that the tests of processor and pipeline share."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mobillama_v import MobiLlamaVForConditionalGeneration, MobiLlamaVProcessor, prompt
from mobillama_v.backends.torch import TorchEngine
from mobillama_v.chat_templates import TEMPLATES
from mobillama_v.generate import Prompt, Sampling, generate

SLOTS = 16  # (32 / 8) squared


TEXT = [
    "A chat between a curious user and an assistant. USER: what is this? ASSISTANT: a cat on a mat, naïve café 猫"
] * 9


def make_tokenizer(style: str) -> Tokenizer:
    """A small BPE: GPT-2's byte level, or sentencepiece's way with a word boundary before every text."""
    special = ["<pad>", "<s>", "</s>"]
    if style == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(code) for code in range(33, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def chat(*turns: Any) -> list[dict[str, Any]]:
    """Turns in transformers' form, the user first; a tuple is parts, where an image is an image."""
    out = []
    for i, turn in enumerate(turns):
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in (turn if isinstance(turn, tuple) else (turn,))
        ]
        out.append({"role": "assistant" if i % 2 else "user", "content": parts})
    return out


def expected(processor: MobiLlamaVProcessor, messages: list[prompt.Message], template: str = "v1") -> prompt.Encoded:
    return TEMPLATES[template].encode(messages, processor.text_tokenizer, tokens_per_image=SLOTS)


def answer(
    model: MobiLlamaVForConditionalGeneration, processor: MobiLlamaVProcessor, inputs: Any, count: int
) -> list[str]:
    """What our own generation says."""
    features = iter(model.get_image_features(inputs["pixel_values"]) if "pixel_values" in inputs else ())
    prompts = []
    for ids, exists, slots in zip(
        inputs["input_ids"], inputs["attention_mask"].bool(), inputs["image_mask"], strict=True
    ):
        images = [next(features) for _ in range(int(slots.sum()) // SLOTS)]
        encoded = prompt.Encoded(ids[exists].tolist(), [-100] * int(exists.sum()), slots[exists].tolist())
        prompts.append(Prompt(encoded, images))
    done = generate(TorchEngine(model), processor.text_tokenizer, prompts, Sampling(max_new_tokens=count))
    return [each.text for each in done]
