"""Prompts with several answers as one row: who shares what, what sees what, and where an answer lies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rhumbline.rewards.trees import Row, Span, batches, lay_out, like_lengths, trees_of

ROWS = [Row((5, 6), (7, 2), 1), Row((5, 6), (8, 9, 2), 2)]


def test_answers_to_one_prompt_share_its_tokens() -> None:
    rows = [Row((1, 2, 3), (0,) * size, size) for size in (2, 3, 4)]
    (tree,) = trees_of(rows, limit=10_000)
    assert len(tree) == 3 + 2 + 3 + 4
    assert tree.members == (0, 1, 2)
    # 5 tokens of answers beside the prompt fit, a third answer does not.
    assert [t.members for t in trees_of(rows, limit=3 + 5)] == [(0, 1), (2,)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), max_size=20), st.integers(1, 200))
def test_every_row_is_in_one_tree_and_batches_keep_the_budget(drawn: list[tuple[int, int]], budget: int) -> None:
    rows = [Row(prefix=(p,) * 3, answer=(0,) * size, length=size) for p, size in drawn]
    found = list(batches(trees_of(rows, min(50, budget)), budget))
    assert sorted(i for trees in found for tree in trees for i in tree.members) == list(range(len(rows)))
    for trees in found:
        padded = len(trees) * max(map(len, trees))
        assert padded <= budget or (len(trees) == 1 and len(trees[0].members) == 1)


def test_a_tree_as_tokens() -> None:
    layout = lay_out(trees_of(ROWS, 100), filler=0)
    assert layout.ids_BT.tolist() == [[5, 6, 7, 2, 8, 9, 2]]
    assert layout.positions_BT.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert layout.spans == {0: Span(0, 2, 4, 1), 1: Span(0, 4, 7, 1)}
    seen = [[t for t, s in enumerate(row) if s] for row in layout.seen_BTT[0].tolist()]
    # the second answer (from 4) sees the prompt (0, 1) and itself, not the first answer (2, 3)
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 5, 6]]


def test_a_short_tree_is_filled_up_on_either_side() -> None:
    trees = [*trees_of(ROWS, 100), *trees_of([Row((5,), (2,), 0)], 100)]
    right, left = lay_out(trees, filler=0), lay_out(trees, filler=0, side="left")
    assert right.ids_BT[1].tolist() == [5, 2, 0, 0, 0, 0, 0]
    assert left.ids_BT[1].tolist() == [0, 0, 0, 0, 0, 5, 2]
    assert left.positions_BT[1].tolist()[-2:] == [0, 1]
    assert left.spans[0] == Span(1, 6, 7, 5)
    # padding sees padding, so that no row of the mask is empty, and nothing else sees it
    assert left.seen_BTT[1].any(dim=-1).all()
    assert not left.seen_BTT[1, 5:, :5].any()


def test_rows_of_like_lengths_go_together() -> None:
    assert like_lengths([10, 100, 8, 75, 74]) == [[1, 3], [4], [0, 2]]
    assert like_lengths([]) == []


@given(st.lists(st.integers(1, 500)))
def test_groups_of_like_lengths_hold_every_row_once_and_waste_a_quarter_at_most(lengths: list[int]) -> None:
    groups = like_lengths(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        own = [lengths[i] for i in group]
        assert min(own) >= 0.75 * max(own)
