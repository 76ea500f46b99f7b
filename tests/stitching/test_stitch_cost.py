import pytest

from snnet_vitdet.stitching import LARGE, SMALL, Cost, CostParts, CostTable, StitchSpace, Transition

SPACE = StitchSpace((4, 8))


def power(exponent):
    """A cost whose bit says by itself whether it was added, and how often (up to 3 times)."""
    return Cost(flops=4**exponent, params=2 * 4**exponent)


@pytest.fixture
def parts():
    small, large = range(0, 4), range(4, 12)
    return CostParts(
        embeddings=(power(20), power(21)),
        blocks=([power(i) for i in small], [power(i) for i in large]),
        stitching_layers={t: power(12 + i) for i, t in enumerate(SPACE.transitions)},
        exits=tuple(
            dict(zip(("pyramid", "rpn", "roi_heads"), map(power, exponents), strict=True))
            for exponents in ((19, 22, 23), (24, 25, 26))
        ),
    )


def expected_of(name, parts):
    """The parts of one stitch, written out by hand."""
    small, large = parts.blocks
    up, down = (
        {c: parts.stitching_layers[Transition(c, *d)] for c in (1, 2, 3)}
        for d in ((SMALL, LARGE), (LARGE, SMALL))
    )
    leave = parts.stitching_layers[Transition(4, SMALL, LARGE)]
    walks = {
        "S": [parts.embeddings[0], *small, leave],
        "L": [parts.embeddings[1], *large],
        "FS-1": [parts.embeddings[0], small[0], up[1], *large[2:]],
        "SF-3": [parts.embeddings[1], *large[:6], down[3], small[3], leave],
        "SFS-1-3": [
            parts.embeddings[1],
            *large[:2],
            down[1],
            small[1],
            small[2],
            up[3],
            *large[6:],
        ],
        "FSF-2-3": [
            parts.embeddings[0],
            *small[:2],
            up[2],
            large[4],
            large[5],
            down[3],
            small[3],
            leave,
        ],
    }
    exits = {
        "S": SMALL,
        "L": LARGE,
        "FS-1": LARGE,
        "SF-3": SMALL,
        "SFS-1-3": LARGE,
        "FSF-2-3": SMALL,
    }
    return [*walks[name], *parts.exits[exits[name]].values()]


@pytest.mark.parametrize("name", ["S", "L", "FS-1", "SF-3", "SFS-1-3", "FSF-2-3"])
def test_a_stitch_costs_the_sum_of_what_it_runs(parts, name):
    # At most 7 layers lie at exponents 12 to 18: no part shares an exponent with another.
    expected = expected_of(name, parts)
    cost = CostTable(SPACE, parts)[SPACE[name].id]
    assert cost.flops == sum(part.flops for part in expected)
    assert cost.params == sum(part.params for part in expected)
    assert parts.of_stitch(SPACE[name]) == cost


def test_the_table_has_one_cost_a_stitch_in_the_order_of_the_ids(parts):
    table = CostTable(SPACE, parts)
    assert len(table) == 14
    assert list(table) == [parts.of_stitch(stitch) for stitch in SPACE]
    assert table.gflops == tuple(cost.flops / 1e9 for cost in table)
    assert len(set(table.gflops)) == 14


def test_units_are_billions_of_flops_and_millions_of_parameters():
    cost = Cost(flops=3.5e9, params=2.5e6) + Cost(flops=1e9, params=1e6)
    assert (cost.gflops, cost.params_m) == (4.5, 3.5)


def test_costs_of_another_depth_are_refused(parts):
    with pytest.raises(ValueError, match=r"costs of \(4, 8\) blocks for a space of depths \(4, 9"):
        CostTable(StitchSpace((4, 9)), parts)
