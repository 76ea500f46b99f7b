import pytest

from snnet_vitdet.stitching import Cost, CostParts, CostTable, StitchSpace

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
