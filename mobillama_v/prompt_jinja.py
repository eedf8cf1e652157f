"""The templates of :mod:`mobillama_v.prompt` in Jinja, for programs that read a ``chat_template.jinja``."""

from __future__ import annotations

# What `arrange` does, for a content that is a text or parts. `picture` stands for each picture, `gap` comes after
# those before the text, and `lead` then.
_WORDS = """{%- macro put(out, piece) -%}
{{ out }}{{ "\\n" if (out[-1:] | trim) and (piece[:1] | trim) else "" }}{{ piece }}
{%- endmacro -%}
{%- macro words(content, picture="<image>", gap="\\n", lead="") -%}
{%- set ns = namespace(images=0, switches=0, last="", text="", all="") -%}
{%- for part in ([content] if content is string else content or []) -%}
{%- set kind = "text" if part is string or part.type == "text" else "image" -%}
{%- set piece = picture if kind == "image" else part if part is string else part.text -%}
{%- if piece | trim -%}
{%- if ns.last and ns.last != kind -%}{%- set ns.switches = ns.switches + 1 -%}{%- endif -%}
{%- if kind == "image" -%}{%- set ns.images = ns.images + 1 -%}
{%- else -%}{%- set ns.text = put(ns.text, piece) -%}{%- endif -%}
{%- set ns.all = put(ns.all, piece) -%}
{%- set ns.last = kind -%}
{%- endif -%}
{%- endfor -%}
{%- if ns.images < 2 or ns.switches < 2 -%}
{%- for i in range(ns.images) -%}{{ picture ~ gap }}{%- endfor -%}{{ lead ~ (ns.text | trim) }}
{%- else -%}{{ lead ~ (ns.all | trim) }}{%- endif -%}
{%- endmacro -%}
"""
_TURNS = """{%- set turns = messages -%}
{%- set system = "" -%}
{%- if messages and messages[0].role in ["system", "developer"] -%}
{%- set system = words(messages[0].content) -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
"""
_CHECK = """{%- if turn.role != ("assistant" if loop.index0 % 2 else "user") -%}
{{ raise_exception("a conversation starts with the user, after an optional system message, and alternates.") }}
{%- endif -%}
"""
_V1 = """{{ bos_token }}
{%- for turn in turns -%}
CHECK
{%- if loop.first -%}{{ (system or "SYSTEM") ~ " " }}{%- endif -%}
{%- if turn.role == "user" -%}{{ "USER: " ~ words(turn.content) ~ " ASSISTANT:" }}
{%- else -%}{{ " " ~ words(turn.content) ~ eos_token }}{%- endif -%}
{%- endfor -%}
"""
V1 = f"{_WORDS}{_TURNS}{_V1}".replace("CHECK\n", _CHECK)
"""``SYSTEM`` stands for what a conversation says that has no system message."""
_PLAIN = """{{ bos_token }}
{%- for turn in messages -%}
{%- if turn.role == "assistant" -%}{{ words(turn.content) ~ "\\n" }}
{%- elif turn.role == "user" and turn.content is not string -%}
{%- for part in turn.content if part is not string and part.type != "text" -%}{{ "<image>" }}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
"""
PLAIN = f"{_WORDS}{_PLAIN}"
_CHATML = """{%- if system -%}{{ "<|im_start|>system\\n" ~ system ~ "<|im_end|>\\n" }}{%- endif -%}
{%- for turn in turns -%}
CHECK
{%- if turn.role == "user" -%}
{{ ("" if loop.first else "\\n") ~ "<|im_start|>user\\n" ~ words(turn.content) ~ "<|im_end|>" }}
{{- "\\n<|im_start|>assistant\\n" }}
{%- else -%}{{ words(turn.content) ~ "<|im_end|>" }}{%- endif -%}
{%- endfor -%}
"""
CHATML = f"{_WORDS}{_TURNS}{_CHATML}".replace("CHECK\n", _CHECK)
INTERNVL = CHATML.replace("words(turn.content)", 'words(turn.content, "<img><image></img>")')
_SMOLVLM = """{{ "<|im_start|>" }}
{%- set tile = "<fake_token_around_image><global-img><image><fake_token_around_image>" -%}
{%- if system -%}{{ "System: " ~ system ~ "<end_of_utterance>\\n" }}{%- endif -%}
{%- for turn in turns -%}
CHECK
{%- if turn.role == "user" -%}
{%- set said = words(turn.content, tile, "") -%}
{{ ("" if loop.first else "\\n") ~ ("User:" if said.startswith(tile) else "User: ") ~ said ~ "<end_of_utterance>" }}
{{- "\\nAssistant:" }}
{%- else -%}{{ " " ~ words(turn.content) ~ "<end_of_utterance>" }}{%- endif -%}
{%- endfor -%}
"""
SMOLVLM = f"{_WORDS}{_TURNS}{_SMOLVLM}".replace("CHECK\n", _CHECK)
NANOVLM_CHAT = CHATML.replace("words(turn.content)", 'words(turn.content, "<image>", "")')
NANOVLM_TILE = CHATML.replace("words(turn.content)", 'words(turn.content, "<|global_image|><image>", "")')
_NANOVLM = """{%- if system -%}{{ system ~ "\\n" }}{%- endif -%}
{%- for turn in turns -%}
CHECK
{%- if turn.role == "user" -%}{{ words(turn.content, "<image>", "", "Question: ") ~ " Answer:" }}
{%- else -%}{{ " " ~ words(turn.content) ~ eos_token }}{%- endif -%}
{%- endfor -%}
"""
NANOVLM = f"{_WORDS}{_TURNS}{_NANOVLM}".replace("CHECK\n", _CHECK)

_MARKED = """{%- macro marked(text, gap) -%}
{%- set ns = namespace(pictures="", words="") -%}
{%- for piece in text.split("__>") -%}
{%- if not loop.last and "<__media_" in piece -%}
{%- set parts = piece.split("<__media_") -%}
{%- set ns.words = ns.words ~ (parts | first) -%}
{%- set ns.pictures = ns.pictures ~ "<__media_" ~ (parts | last) ~ "__>" ~ gap -%}
{%- else -%}{%- set ns.words = ns.words ~ piece ~ ("" if loop.last else "__>") -%}{%- endif -%}
{%- endfor -%}
{{ ns.pictures ~ ns.words.strip() }}
{%- endmacro -%}
"""


def for_llama_cpp(template: str) -> str:
    """The template for llama.cpp, whose server gives it a turn's pictures as marks ``<__media_…__>`` within the text.

    They are put before the text, each on a line of its own where the template does so.
    """
    return _MARKED + template.replace("else part if part is string", "else marked(part, gap) if part is string")
