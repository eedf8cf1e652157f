"""Questions about one picture as branches of a tree: the picture is gone through once for all questions and answers.

A picture has many questions, and a question may have many answers (five captions by five people). As separate samples
each of them would repeat the 84 visual tokens. Here a sample is the picture, then its questions, then their answers; a
token attends to the picture, to its own question, and to its own answer, and has the position that it would have alone.
What comes before the picture (the template's system text) is computed once a batch.

Shapes: B samples, P tokens of the common prefix, T tokens of the longest sample, D hidden, H heads, C head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama_v.model.decoder import Decoder, apply_rotary, rotary_tables
from mobillama_v.prompt import SYSTEM
from mobillama_v.tokenization import TextTokenizer

Turn = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Answer:
    """Token ids of an answer, and which of them are learnt (later questions of a conversation are not)."""

    ids: list[int]
    supervised: list[bool]


@dataclass(frozen=True)
class Branch:
    """A question as token ids, and its answers."""

    question: list[int]
    answers: list[Answer]

    def __len__(self) -> int:
        return len(self.question) + sum(len(answer.ids) for answer in self.answers)


class BranchEncoder:
    """Encodes questions and answers as :mod:`mobillama_v.prompt` does in the template ``v1``, in pieces."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.prefix = [tokenizer.bos_id, *tokenizer.encode(f"{SYSTEM} USER: ")]
        """Everything before a picture. Text without a picture has it without its last token, a blank."""
        self._known: dict[str, list[int]] = {}

    def branch(self, question: str, answers: Sequence[str], *, picture: bool = True) -> Branch:
        """A question with one or more answers."""
        return Branch(self.question(question, picture=picture), [self._answer(text) for text in answers])

    def conversation(self, turns: Sequence[Turn], *, picture: bool = True) -> Branch:
        """Several turns of one conversation, each of which sees the ones before it."""
        first = self._answer(turns[0][1])
        ids, supervised = list(first.ids), list(first.supervised)
        for question, text in turns[1:]:
            asked, answer = self._ids(f"USER: {question} ASSISTANT:"), self._answer(text)
            ids += [*asked, *answer.ids]
            supervised += [False] * len(asked) + answer.supervised
        return Branch(self.question(turns[0][0], picture=picture), [Answer(ids, supervised)])

    def question(self, text: str, *, picture: bool = True) -> list[int]:
        """Token ids of a question after a picture, or of a conversation's first turn without one."""
        return self._ids(f"\n{text} ASSISTANT:" if picture else f" {text} ASSISTANT:")

    def _answer(self, text: str) -> Answer:
        ids = [*self._ids(f" {text}"), self.tokenizer.eos_id]
        return Answer(ids, [True] * len(ids))

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer.encode(text)
        return self._known[text]


@dataclass
class Batch:
    """Samples as tensors. ``sources`` are the flat positions [S] whose next token is one of ``targets`` [S]."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    pictures: Tensor
    sources: Tensor
    targets: Tensor
    owners: Tensor


@dataclass
class _Row:
    ids: list[int]
    positions: list[int]
    branch: list[int]
    answer: list[int]
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


def _row(visual: int, branches: Sequence[Branch], first: int) -> _Row:
    row = _Row([0] * visual, list(range(first, first + visual)), [0] * visual, [0] * visual)
    for number, branch in enumerate(branches, start=1):
        start = first + visual
        row.ids += branch.question
        row.positions += range(start, start + len(branch.question))
        row.branch += [number] * len(branch.question)
        row.answer += [0] * len(branch.question)
        asked, start = len(row.ids) - 1, start + len(branch.question)
        for which, answer in enumerate(branch.answers, start=1):
            before = asked
            for i, (token, supervised) in enumerate(zip(answer.ids, answer.supervised, strict=True)):
                if supervised:
                    row.sources.append(before)
                    row.targets.append(token)
                before = len(row.ids)
                row.ids.append(token)
                row.positions.append(start + i)
            row.branch += [number] * len(answer.ids)
            row.answer += [which] * len(answer.ids)
    return row


def collate(samples: Sequence[tuple[int, Sequence[Branch]]], prefix: int) -> Batch:
    """Put samples side by side.

    Args:
        samples: the number of visual tokens (0 without a picture) and the branches of each.
        prefix: P, tokens before a picture.
    """
    rows = [_row(visual, branches, prefix - (visual == 0)) for visual, branches in samples]
    length = max(len(row.ids) for row in rows)

    def padded(values: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([each + [filler] * (length - len(each)) for each in values])

    branch, answer = padded([row.branch for row in rows], -1), padded([row.answer for row in rows], 0)
    own = (branch[:, :, None] == branch[:, None]) & ((answer[:, None] == 0) | (answer[:, :, None] == answer[:, None]))
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (earlier & ((branch[:, None] == 0) | own)) | torch.eye(length, dtype=torch.bool)
    pictures = torch.tensor([visual > 0 for visual, _ in samples])
    before = torch.ones(len(rows), length, prefix, dtype=torch.bool)
    before[~pictures, :, -1] = False
    return Batch(
        ids=padded([row.ids for row in rows], 0),
        positions=padded([row.positions for row in rows], 0),
        mask=torch.cat((before, mask), dim=2)[:, None],
        pictures=pictures,
        sources=torch.tensor([i * length + at for i, row in enumerate(rows) for at in row.sources]),
        targets=torch.tensor([token for row in rows for token in row.targets]),
        owners=torch.tensor([i for i, row in enumerate(rows) for _ in row.targets]),
    )


def run_decoder(
    decoder: Decoder,
    prefix: Tensor,
    embeds: Tensor,
    positions: Tensor,
    mask: Tensor,
    kept: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Run samples that share a prefix through all layers, the prefix once.

    Args:
        decoder: with as many key heads as query heads, and one shared network.
        prefix: token ids [P].
        embeds: of what comes after it, [B,T,D].
        positions: [B,T].
        mask: what each position attends to, [B or 1,1,T,P+T].
        kept: receives every layer's keys and values [B,H,P+T,C].

    Returns:
        The normalized hidden state [B,T,D].
    """
    batch, length, width = embeds.shape
    config, first = decoder.spec, len(prefix)
    heads, head_dim, network = config.num_attention_heads, config.head_dim, decoder.feed_forward
    assert network is not None
    x = torch.cat((decoder.embed_tokens(prefix), embeds.reshape(-1, width)))

    def tables(at: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_tables(at, head_dim=head_dim, theta=config.rope_theta, dtype=x.dtype)

    rotary_first, rotary_rest = tables(torch.arange(first)[None]), tables(positions)
    for block in decoder.layers:
        attention, y = block.self_attn, block.input_layernorm(x)
        parts = [proj(y).to(x.dtype) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)]
        q1, k1, v1 = (part[:first].view(1, first, heads, head_dim).transpose(1, 2) for part in parts)
        q2, k2, v2 = (part[first:].view(batch, length, heads, head_dim).transpose(1, 2) for part in parts)
        q1, k1 = apply_rotary(q1, *rotary_first), apply_rotary(k1, *rotary_first)
        q2, k2 = apply_rotary(q2, *rotary_rest), apply_rotary(k2, *rotary_rest)
        k, v = (torch.cat((a.expand(batch, -1, -1, -1), b), dim=2) for a, b in ((k1, k2), (v1, v2)))
        if kept is not None:
            kept.append((k, v))
        with torch.autocast("cpu", enabled=False):  # attention under a mask is slower in half precision
            out1 = F.scaled_dot_product_attention(q1, k1, v1, is_causal=True).transpose(1, 2).reshape(first, width)
            out2 = F.scaled_dot_product_attention(q2, k, v, attn_mask=mask).transpose(1, 2).reshape(-1, width)
        x = x + attention.o_proj(torch.cat((out1, out2)))
        x = x + network(block.post_attention_layernorm(x))
    return decoder.norm(x[first:]).view(batch, length, width)


@torch.inference_mode()
def likeliest_answers(
    decoder: Decoder,
    head: Tensor,
    prefix: Tensor,
    visual: Tensor,
    questions: Tensor,
    *,
    eos_id: int,
    longest: int,
) -> list[list[int]]:
    """The likeliest answer to one question about each picture, token by token.

    Args:
        decoder: see :func:`run_decoder`.
        head: weights of the language head [V,D].
        prefix: token ids [P].
        visual: visual tokens [B,N,D].
        questions: token ids of equally long questions [B,Q].
        eos_id: what ends an answer.
        longest: tokens at most.

    Returns:
        Token ids without the end, for each picture.
    """
    embeds = torch.cat((visual, decoder.embed_tokens(questions)), dim=1)
    batch, length, width = embeds.shape
    first, config = len(prefix) + length, decoder.spec
    heads, head_dim, network = config.num_attention_heads, config.head_dim, decoder.feed_forward
    assert network is not None
    causal = torch.ones(length, first, dtype=torch.bool).tril(len(prefix))[None, None]
    kept: list[tuple[Tensor, Tensor]] = []
    positions = torch.arange(len(prefix), first).expand(batch, -1)
    hidden = run_decoder(decoder, prefix, embeds, positions, causal, kept)[:, -1]
    caches = [[F.pad(each, (0, 0, 0, longest)) for each in layer] for layer in kept]
    found = torch.full((batch, longest), eos_id)
    ended = torch.zeros(batch, dtype=torch.bool)
    for step in range(longest):
        token = F.linear(hidden, head).argmax(-1)
        found[:, step] = torch.where(ended, eos_id, token)
        ended |= token == eos_id
        if bool(ended.all()) or step == longest - 1:
            break
        x, at = decoder.embed_tokens(token), first + step
        rotary = rotary_tables(torch.tensor([[at]]), head_dim=head_dim, theta=config.rope_theta, dtype=x.dtype)
        for block, (keys, values) in zip(decoder.layers, caches, strict=True):
            attention, y = block.self_attn, block.input_layernorm(x)
            q, k, v = (
                proj(y).view(-1, heads, 1, head_dim) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            keys[:, :, at : at + 1], values[:, :, at : at + 1] = apply_rotary(k, *rotary), v
            seen = keys[:, :, : at + 1], values[:, :, : at + 1]
            out = F.scaled_dot_product_attention(apply_rotary(q, *rotary), *seen)
            x = x + attention.o_proj(out.reshape(-1, width))
            x = x + network(block.post_attention_layernorm(x))
        hidden = decoder.norm(x)
    return [row[: row.index(eos_id)] if eos_id in row else row for row in found.tolist()]
