"""The tokenizer in a GGUF file as a ``tokenizer.json``: byte-level BPE, which Llama 3, Qwen2 and SmolLM2 have.

GGUF names how a text is cut into words (``tokenizer.ggml.pre``) and holds tokens, their types and the merges. The
rules of the names are those of llama.cpp (``src/llama-vocab.cpp``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobillama_v.errors import CheckpointError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
WORDS = {
    "gpt-2": None,
    "smollm": "digits",
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}
"""What cuts a text into words, by llama.cpp's names: GPT-2's rule, that after single digits, or a pattern."""
_CONTROL, _USER_DEFINED = 3, 4  # of gguf's TokenType


def tokenizer_json(fields: dict[str, Any], path: Path) -> tuple[str | None, tuple[str, ...]]:
    """The tokenizer of the file ``path``, whose metadata are ``fields``; None where it has another kind, and notes.

    Raises:
        CheckpointError: a byte-level tokenizer that cuts words by a rule that is not known here.
    """
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        return None, (f"its tokenizer ({kind}) is not byte-level BPE and was not read from the file",)
    if pre not in WORDS:
        raise CheckpointError(
            f"{path} cuts words as {pre!r} does, which is not known here; known are {', '.join(WORDS)}."
        )
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(each.split(" ", 1)) for each in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = _pre_tokenizer(pre)
    made.decoder = decoders.ByteLevel()
    for token, each in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True):
        if each in (_CONTROL, _USER_DEFINED):
            made.add_tokens([AddedToken(token, special=each == _CONTROL, normalized=False)])
    return made.to_str(), ()


def _pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    rule = WORDS[name]
    words: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in (None, "digits"))]
    if rule == "digits":
        words.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif rule is not None:
        words.insert(0, pre_tokenizers.Split(Regex(rule), "isolated"))
    return pre_tokenizers.Sequence(words)


def words_name(pre_tokenizer: Any) -> str | None:
    """llama.cpp's name of a ``pre_tokenizer`` of a ``tokenizer.json``; None where it has none that is known here."""
    from tokenizers import Tokenizer, models

    def steps(declared: Any) -> list[Any]:
        inner = declared.get("pretokenizers") if isinstance(declared, dict) else None
        found = [declared] if inner is None else inner
        return [{key: value for key, value in each.items() if key != "trim_offsets"} for each in found]

    for name in WORDS:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = _pre_tokenizer(name)
        if pre_tokenizer and steps(json.loads(made.to_str())["pre_tokenizer"]) == steps(pre_tokenizer):
            return name
    return None
