import doctest
import itertools
from pathlib import Path

import pytest
from detectron2.config import LazyConfig

from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.stitching import (
    LARGE,
    SMALL,
    BlockStep,
    Cost,
    CostParts,
    EmbeddingStep,
    PrefixTree,
    StitchSpace,
    Transition,
    prefix_tree,
)

SL = Path(__file__).parents[2] / "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py"
SPACES = {
    "4, 8": StitchSpace((4, 8)),
    "4, 6": StitchSpace((4, 6)),
    "5, 12, three cuts": StitchSpace((5, 12), max_cuts=3),
    "3, 3": StitchSpace((3, 3)),
    "12, 24": StitchSpace((12, 24)),
    "SN-Netv1": StitchSpace((12, 24), max_cuts=1, kinds=("S", "L", "FS")),
    "two kinds": StitchSpace((6, 9), kinds=("FSF", "L")),
    "1, 1": StitchSpace((1, 1)),
}
in_every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def nodes_of(tree):
    """Every node with the steps that lead to it, its own included."""
    open_nodes = [((), node) for node in tree.roots.values()]
    while open_nodes:
        before, node = open_nodes.pop()
        path = (*before, node.step)
        yield path, node
        open_nodes.extend((path, child) for child in node.children.values())


def prefixes(space):
    """All beginnings of all walks, as tuples of steps; a walk itself is one of its own."""
    walks = [stitch.steps for stitch in space]
    return {walk[: length + 1] for walk in walks for length in range(len(walk))}


def distinct_parts(space):
    """Another cost for everything, in whole numbers that add up exactly."""
    numbers = (Cost(flops=float(number**3)) for number in itertools.count(1000))
    return CostParts(
        embeddings=(next(numbers), next(numbers)),
        blocks=tuple([next(numbers) for _ in range(depth)] for depth in space.depths),
        stitching_layers={transition: next(numbers) for transition in space.transitions},
        exits=({"pyramid": next(numbers)}, {"pyramid": next(numbers), "rpn": next(numbers)}),
    )


def of_small(*indexes, after_cut=False):
    return [BlockStep(SMALL, i, after_cut) for i in indexes]


def of_large(*indexes, after_cut=False):
    return [BlockStep(LARGE, i, after_cut) for i in indexes]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("S", [EmbeddingStep(SMALL), *of_small(0, 1, 2, 3), Transition(4, SMALL, LARGE)]),
        ("L", [EmbeddingStep(LARGE), *of_large(0, 1, 2, 3, 4, 5)]),
        # Stage boundaries of the large anchor: round(c * 6 / 4), that is 0, 2, 3, 4, 6.
        (
            "FS-1",
            [
                EmbeddingStep(SMALL),
                *of_small(0),
                Transition(1, SMALL, LARGE),
                *of_large(2, 3, 4, 5, after_cut=True),
            ],
        ),
        (
            "SF-3",
            [
                EmbeddingStep(LARGE),
                *of_large(0, 1, 2, 3),
                Transition(3, LARGE, SMALL),
                *of_small(3, after_cut=True),
                Transition(4, SMALL, LARGE),
            ],
        ),
        (
            "SFS-1-2",
            [
                EmbeddingStep(LARGE),
                *of_large(0, 1),
                Transition(1, LARGE, SMALL),
                *of_small(1, after_cut=True),
                Transition(2, SMALL, LARGE),
                *of_large(3, 4, 5, after_cut=True),
            ],
        ),
        (
            "FSF-2-3",
            [
                EmbeddingStep(SMALL),
                *of_small(0, 1),
                Transition(2, SMALL, LARGE),
                *of_large(3, after_cut=True),
                Transition(3, LARGE, SMALL),
                *of_small(3, after_cut=True),
                Transition(4, SMALL, LARGE),
            ],
        ),
    ],
)
def test_steps_of_each_kind_in_order(name, steps):
    assert list(SPACES["4, 6"][name].steps) == steps


@in_every_space
def test_every_stitch_ends_once_after_its_own_steps(space):
    ends = {}
    for path, node in nodes_of(PrefixTree(space)):
        for stitch in node.ends:
            assert stitch.id not in ends
            ends[stitch.id] = path
    assert ends == {stitch.id: stitch.steps for stitch in space}


@in_every_space
def test_the_tree_has_each_beginning_of_walks_once(space):
    tree = PrefixTree(space)
    paths = [path for path, _ in nodes_of(tree)]
    assert len(paths) == len(set(paths)) == len(tree)
    assert set(paths) == prefixes(space)


@in_every_space
def test_cost_is_that_of_every_beginning_once_and_of_the_heads_for_each_stitch(space):
    parts = distinct_parts(space)
    steps = {EmbeddingStep(anchor): cost for anchor, cost in enumerate(parts.embeddings)}
    for anchor, blocks in enumerate(parts.blocks):
        for after_cut in (False, True):
            steps |= {BlockStep(anchor, i, after_cut): cost for i, cost in enumerate(blocks)}
    steps |= parts.stitching_layers
    expected = sum(steps[prefix[-1]].flops for prefix in prefixes(space))
    expected += sum(cost.flops for stitch in space for cost in parts.after(stitch))
    assert PrefixTree(space).flops(parts) == expected


def test_a_tree_of_some_stitches_is_made_of_their_walks_alone():
    space = SPACES["4, 8"]
    chosen = [space["FS-1"], space["FS-3"], space["SF-2"]]
    tree = PrefixTree(iter(chosen))
    assert {path for path, _ in nodes_of(tree)} == prefixes(chosen)
    # The embedding and the first block are shared.
    assert len(tree) == sum(len(stitch.steps) for stitch in chosen) - 2
    assert len(PrefixTree([])) == 0


def test_the_backbones_of_small_and_large_cost_together_two_fifths_of_what_they_cost_apart():
    costs = stitch_costs(LazyConfig.load(str(SL)).model)
    apart = sum(cost.flops for cost in costs)
    together = PrefixTree(costs.space).flops(costs.parts)
    heads = sum(cost.flops for s in costs.space for cost in costs.parts.after(s))
    # In 1e12 multiply-accumulates, of 134 stitches at 1024 x 1024.
    assert (apart - heads) / 1e12 == pytest.approx(110.5, abs=0.1)
    assert (together - heads) / 1e12 == pytest.approx(42.0, abs=0.1)
    assert heads / 1e12 == pytest.approx(42.5, abs=0.1)


def test_example_in_the_documentation():
    results = doctest.testmod(prefix_tree)
    assert results.attempted > 0 and not results.failed
