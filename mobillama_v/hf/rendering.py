"""Prompts as text: rendering a conversation, and reading a text that is in the template's form already."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mobillama_v.conversation import Conversation
from mobillama_v.errors import PromptError
from mobillama_v.hf.image_processing import flat_images
from mobillama_v.prompt import Encoded, Template, Tokenizer

IMAGE_TEXT = "<image>"
"""How a rendered prompt shows an image slot; in what a user types it is only text."""
_ANSWER = re.compile(r"(?<= ASSISTANT:)(?= )")  # the template encodes the answer on its own


class RenderedPrompt(str):
    """A conversation as text, for reading, that still carries its parts.

    The processor encodes the parts, so that what a user typed is never taken for a slot or for the end of a turn. Text
    that is cut or joined becomes a plain string, which the processor takes for a question.
    """

    conversation: Conversation
    goes_on: bool
    """Whether its last answer is to be continued."""

    def __new__(cls, text: str, conversation: Conversation, *, goes_on: bool = False) -> RenderedPrompt:
        """Make the string ``text`` with its parts."""
        prompt = super().__new__(cls, text)
        prompt.conversation, prompt.goes_on = conversation, goes_on
        return prompt


class _Characters:
    """A tokenizer whose ids are code points: with it, the template renders text."""

    bos_id, eos_id, longest_token = -1, -2, 4

    def __init__(self) -> None:
        self.special: dict[int, str] = {}

    def special_id(self, text: str) -> int:
        index = -3 - len(self.special)
        self.special[index] = text
        return index

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def render(template: Template, read: Conversation, tokenizer: Any, *, goes_on: bool) -> RenderedPrompt:
    """A conversation as text; ``tokenizer`` is transformers', which knows the special tokens' texts."""
    letters = _Characters()
    encoded = template.encode(list(read.messages), letters, tokens_per_image=1, open_ended=goes_on)
    special = {letters.bos_id: tokenizer.bos_token, letters.eos_id: tokenizer.eos_token} | letters.special
    pairs = zip(encoded.input_ids, encoded.image_mask, strict=True)
    text = "".join(IMAGE_TEXT if slot else special.get(code) or chr(code) for code, slot in pairs)
    return RenderedPrompt(text, read, goes_on=goes_on)


def in_template(template: Template, text: str, images: int) -> bool:
    """Whether a string is a whole prompt with places for its images, and not what a user types.

    A prompt that needs special tokens is never taken for one: what a user types has none.
    """
    if template.specials or not template.begins:
        return False
    return images > 0 and text.count(IMAGE_TEXT) == images and "USER: " in text and text.rstrip().endswith("ASSISTANT:")


def without_places(text: str, images: int) -> str:
    """A question without the ``<image>`` for each image that it begins with, as LLaVA's users write it."""
    return re.sub(rf"^\s*(?:{IMAGE_TEXT}\s*){{{images}}}", "", text) if images else text


def encode_rendered(
    template: Template, text: str, own: Tokenizer, tokenizer: Any, tokens_per_image: int, *, trusted: bool
) -> Encoded:
    """Tokens of a text in the template's form, where special tokens are written out; nothing of it is supervised.

    Args:
        template: says which tokens are special, besides those that begin and end a sequence.
        text: the prompt.
        own: encodes plain text.
        tokenizer: transformers', which knows the special tokens' texts.
        tokens_per_image: slots that one image takes.
        trusted: all special tokens count, and no other is added. Else the first token is added where it is missing, and
            the end of a turn counts only where a turn of the user follows.
    """
    out = Encoded()
    if not trusted:
        out.add([own.bos_id])
        text = text.removeprefix(tokenizer.bos_token)
    specials = "|".join(re.escape(each) for each in (tokenizer.bos_token, tokenizer.eos_token, *template.specials))
    special = specials if trusted else f"{re.escape(tokenizer.eos_token)}(?=USER: )"
    for i, piece in enumerate(re.split(f"({special}|{IMAGE_TEXT})", text)):
        if i % 2 == 0:
            for part in _ANSWER.split(piece):
                out.add(own.encode(part))
        elif piece == IMAGE_TEXT:
            out.add_slots(tokens_per_image, own.eos_id)
        elif piece in (tokenizer.bos_token, tokenizer.eos_token):
            out.add([own.bos_id if piece == tokenizer.bos_token else own.eos_id])
        else:
            out.add([own.special_id(piece)])
    return out


def images_of_rows(images: Any, texts: list[str]) -> list[list[Any]]:
    """The images given beside each text."""
    if images is None:
        return [[] for _ in texts]
    if len(texts) == 1:
        return [flat_images(images)]
    places = [sum(i is None for i in t.conversation.images) if isinstance(t, RenderedPrompt) else 1 for t in texts]
    nested = isinstance(images, (list, tuple)) and any(isinstance(each, (list, tuple)) for each in images)
    if nested and len(images) == len(texts):
        return [flat_images(each) for each in images]
    flat = flat_images(images)
    if nested or len(flat) != sum(places):
        raise PromptError(
            f"{len(images)} entries of images were given for {len(texts)} texts; give a list with the images of each."
        )
    ends = np.cumsum(places).tolist()
    return [flat[end - count : end] for end, count in zip(ends, places, strict=True)]
