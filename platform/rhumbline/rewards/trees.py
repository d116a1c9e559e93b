"""Answers as rows of tokens, and prompts with several answers as one row: the prompt is computed once. Under `features`,
`network`.

    rows = [Row(prefix=(5, 6), answer=(7, 2), length=1), Row(prefix=(5, 6), answer=(8, 9, 2), length=2)]
    (tree,) = trees_of(rows, limit=512)              # 5 6 | 7 2 | 8 9 2, the two answers do not see each other
    layout = lay_out([tree], filler=0)
    layout.ids_BT, layout.positions_BT               # 5 6 7 2 8 9 2 and 0 1 2 3 2 3 4
    layout.spans[1]                                  # Span(tree=0, begin=4, end=7, before=1): where row 1's answer lies

Row, here, is an answer with its prompt; a tree is a row of the batch. B trees of a batch, T tokens of the widest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Side = Literal["right", "left"]  # where a short row of a batch is filled up
PACKED_TOKENS = 512  # of a prompt and its answers in one tree; attention grows with its square
SHORTEST = 0.75  # of the longest row that it is padded to


@dataclass(frozen=True, slots=True)
class Row:
    """One answer as tokens."""

    prefix: tuple[int, ...]  # the prompt, up to where the assistant begins to speak
    answer: tuple[int, ...]  # the answer and its end token
    length: int  # tokens of the whole answer, before anything was cut
    log_ratio: float = (
        0.0  # of two answers: log((1 + characters of a) / (1 + characters of b)), before anything was cut
    )

    def __len__(self) -> int:
        return len(self.prefix) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt followed by several answers to it, which do not see each other: the prompt is computed once."""

    prefix: tuple[int, ...]
    members: tuple[int, ...]  # row indices, in the order of the answers
    answers: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.answers))


class Span(NamedTuple):
    """Where an answer lies in a batch: tokens `begin` to `end` of a tree."""

    tree: int
    begin: int
    end: int
    before: int  # the prompt's last token, which the answer's first one follows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """Trees as one batch, on the CPU."""

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor  # from 0 in every prompt; every answer goes on from its prompt's end
    seen_BTT: torch.Tensor  # bool: token t sees token s
    spans: Mapping[int, Span]  # by row index


def trees_of(rows: Sequence[Row], limit: int) -> list[Tree]:
    """Rows with the same prompt together, at most `limit` tokens each (one answer at least), longest tree first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.prefix, []).append(i)
    trees = []
    for prefix, members in groups.items():
        part: list[int] = []
        size = len(prefix)
        for i in members:
            if part and size + len(rows[i].answer) > limit:
                trees.append(Tree(prefix, tuple(part), tuple(rows[j].answer for j in part)))
                part, size = [], len(prefix)
            part.append(i)
            size += len(rows[i].answer)
        trees.append(Tree(prefix, tuple(part), tuple(rows[j].answer for j in part)))
    return sorted(trees, key=len, reverse=True)


def batches(trees: Sequence[Tree], token_budget: int) -> Iterator[Sequence[Tree]]:
    """Trees, which come longest first, in batches of at most `token_budget` padded tokens; every tree once."""
    begin = 0
    while begin < len(trees):
        size = max(1, token_budget // len(trees[begin]))
        yield trees[begin : begin + size]
        begin += size


def like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Indices into `lengths`, longest first, in groups whose shortest is at least SHORTEST of the longest."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and lengths[i] >= SHORTEST * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def lay_out(trees: Sequence[Tree], filler: int, side: Side = "right") -> Layout:
    """Ids, positions and what sees what. `filler` may be any token: nothing sees it but itself and its like."""
    width = max(map(len, trees))
    ids_BT = torch.full((len(trees), width), filler, dtype=torch.long)
    positions_BT = torch.zeros_like(ids_BT)
    branch_BT = torch.full_like(ids_BT, -1)  # 0: prompt, 1 and up: answers, -1: padding
    spans: dict[int, Span] = {}
    for b, tree in enumerate(trees):
        at = 0 if side == "right" else width - len(tree)
        before = at + len(tree.prefix) - 1
        for branch, tokens in enumerate((tree.prefix, *tree.answers)):
            here = slice(at, at + len(tokens))
            first = 0 if branch == 0 else len(tree.prefix)
            ids_BT[b, here] = torch.tensor(tokens, dtype=torch.long)
            positions_BT[b, here] = torch.arange(first, first + len(tokens))
            branch_BT[b, here] = branch
            if branch > 0:
                spans[tree.members[branch - 1]] = Span(b, here.start, here.stop, before)
            at = here.stop
    # A token sees the prompt and its own answer, up to itself. Padding sees padding, so that no row is empty.
    seen_BTT = (branch_BT[:, None, :] == 0) | (branch_BT[:, None, :] == branch_BT[:, :, None])
    seen_BTT &= torch.ones(width, width, dtype=torch.bool).tril()
    return Layout(ids_BT=ids_BT, positions_BT=positions_BT, seen_BTT=seen_BTT, spans=spans)
