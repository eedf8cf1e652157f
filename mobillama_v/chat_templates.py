"""Conversation templates: how the turns of a conversation become tokens.

They are LLaVA-1.5's (arXiv 2310.03744, and conversation.py of its repository): ``plain`` for stage 1, ``v1`` for all
else. ``chatml`` is that of Qwen2 and SmolLM2 (their tokenizers' ``chat_template``, without a system sentence).
SmolVLM's, nanoVLM's and InternVL's are for models that were trained with them.
"""

from __future__ import annotations

from mobillama_v import prompt_jinja
from mobillama_v.errors import ConfigError
from mobillama_v.fields import shown
from mobillama_v.prompt import SYSTEM, Message, Slot, Special, Template, Tokenizer, user


class Plain(Template):
    """Image and caption, one after the other: what the user says beside the image is not part of the template."""

    jinja = prompt_jinja.PLAIN
    stop = ("\n",)  # captions end with it, and not with the end-of-sequence token

    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """The images alone."""
        return [part for part in message.content if part is Slot.IMAGE]

    def answer(self, text: str, tokenizer: Tokenizer, *, end: bool) -> list[int]:
        """The caption and a newline."""
        return tokenizer.encode(text + "\n" * end)


class V1(Template):
    """A chat: ``SYSTEM USER: <image>\\nquestion ASSISTANT: answer</s>USER: …``."""

    jinja = prompt_jinja.V1.replace("SYSTEM", SYSTEM)

    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """``USER:``, what the user says, ``ASSISTANT:``."""
        return ["USER: " if system is None else f"{system} USER: ", *message.content, " ASSISTANT:"]

    def answer(self, text: str, tokenizer: Tokenizer, *, end: bool) -> list[int]:
        """The answer after a space, and the end-of-sequence token."""
        return [*tokenizer.encode(f" {text}"), *([tokenizer.eos_id] * end)]


class ChatML(Template):
    """A chat: ``<|im_start|>user\\n<image>\\nquestion<|im_end|>\\n<|im_start|>assistant\\nanswer<|im_end|>\\n…``."""

    jinja = prompt_jinja.CHATML
    system = ""
    begins = False
    specials: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")

    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """What ends the answer before it, the system message if there is one, and the turn."""
        start, end = Special("<|im_start|>"), Special("<|im_end|>")
        before: list[str | Slot | Special] = ["\n"] if system is None else []
        if system:
            before = [start, f"system\n{system}", end, "\n"]
        return [*before, start, "user\n", *message.content, end, "\n", start, "assistant\n"]

    def answer(self, text: str, tokenizer: Tokenizer, *, end: bool) -> list[int]:
        """The answer and ``<|im_end|>``."""
        return [*tokenizer.encode(text), *([tokenizer.special_id("<|im_end|>")] * end)]


class SmolVLM(Template):
    """SmolVLM's chat, each picture as one tile: ``<|im_start|>User:<image>question<end_of_utterance>\\nAssistant:``.

    transformers' ``Idefics3Processor`` writes a picture so with ``do_image_splitting=False``. It knows no default
    system message; one that is given comes first.
    """

    jinja = prompt_jinja.SMOLVLM
    system = ""
    begins = False
    specials = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>")

    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """What ends the turn before it, and the turn; pictures at its start have no line of their own."""
        end, around = Special("<end_of_utterance>"), Special("<fake_token_around_image>")
        before: list[str | Slot | Special] = ["\n"] if system is None else [Special("<|im_start|>")]
        if system:
            before += [f"System: {system}", end, "\n"]
        content = _joined(message)
        name = "User:" if content[:1] == (Slot.IMAGE,) else "User: "
        turn: list[str | Slot | Special] = []
        for part in content:
            turn += [around, Special("<global-img>"), part, around] if isinstance(part, Slot) else [part]
        return [*before, name, *turn, end, "\nAssistant:"]

    def answer(self, text: str, tokenizer: Tokenizer, *, end: bool) -> list[int]:
        """The answer after a space, and ``<end_of_utterance>``."""
        return [*tokenizer.encode(f" {text}"), *([tokenizer.special_id("<end_of_utterance>")] * end)]


class NanoVLMChat(ChatML):
    """nanoVLM's chat: ChatML, and no line break between pictures and text."""

    jinja = prompt_jinja.NANOVLM_CHAT

    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """As ChatML's."""
        return super().question(Message("user", _joined(message)), system)


class NanoVLMTile(NanoVLMChat):
    """The chat of nanoVLM's versions that split pictures, for one that is a single tile."""

    jinja = prompt_jinja.NANOVLM_TILE
    specials = (*ChatML.specials, "<|global_image|>")

    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """As its base's, with what begins each picture."""
        turn: list[str | Slot | Special] = []
        for part in super().question(message, system):
            turn += [Special("<|global_image|>"), part] if isinstance(part, Slot) else [part]
        return turn


class InternVL(ChatML):
    """InternVL's chat: ChatML, each picture between ``<img>`` and ``</img>``."""

    jinja = prompt_jinja.INTERNVL
    specials = (*ChatML.specials, "<img>", "</img>")

    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """As ChatML's, and the two around each picture."""
        turn: list[str | Slot | Special] = []
        for part in super().question(message, system):
            turn += [Special("<img>"), part, Special("</img>")] if isinstance(part, Slot) else [part]
        return turn


class NanoVLM(Template):
    """The first nanoVLM's questions: ``<image>Question: question Answer: answer`` and the end-of-sequence token."""

    jinja = prompt_jinja.NANOVLM
    system = ""
    begins = False

    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """Pictures that come first stand before ``Question:``."""
        content = _joined(message)
        leading = message.images if content != message.content else 0
        before = [f"{system}\n"] if system else []
        return [*before, *content[:leading], "Question: ", *content[leading:], " Answer:"]

    def answer(self, text: str, tokenizer: Tokenizer, *, end: bool) -> list[int]:
        """The answer after a space, and the end-of-sequence token."""
        return [*tokenizer.encode(f" {text}"), *([tokenizer.eos_id] * end)]


def _joined(message: Message) -> tuple[str | Slot, ...]:
    """What is said, where pictures at the start have no line of their own."""
    text = message.text.lstrip()
    if message.content == user(text, images=message.images).content:
        return (*(Slot.IMAGE for _ in range(message.images)), text)
    return message.content


TEMPLATES: dict[str, Template] = {
    **{"plain": Plain(), "v1": V1(), "chatml": ChatML(), "smolvlm": SmolVLM()},
    **{"nanovlm": NanoVLM(), "nanovlm-chat": NanoVLMChat(), "nanovlm-tile": NanoVLMTile(), "internvl": InternVL()},
}
"""The templates by the names that ``config.json`` and recipes give them; a new one is a class above and a line here."""


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"template {shown(name)} is unknown; choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]
