import pytest
import torch
import torch.distributed as dist
from two_processes import run_in_two_processes

from snnet_vitdet.stitching import AffineMap, TokenMoments

WIDTHS = (6, 9)
BOTH = pytest.mark.parametrize("source", [0, 1], ids=["small_to_large", "large_to_small"])


def token_pairs(count=400, seed=0, scales=None):
    """Tokens of two anchors: correlated, with noise, with means far from zero; float32."""
    g = torch.Generator().manual_seed(seed)
    small = torch.randn(count, WIDTHS[0], generator=g) @ torch.randn(
        WIDTHS[0], WIDTHS[0], generator=torch.Generator().manual_seed(100)
    )
    mix = torch.randn(*WIDTHS, generator=torch.Generator().manual_seed(101))
    large = torch.tanh(small) @ mix + 0.3 * torch.randn(count, WIDTHS[1], generator=g)
    small, large = small + torch.arange(6.0), large - torch.arange(9.0)
    if scales is not None:
        small, large = small * scales[0], large * scales[1]
    return small, large


def lstsq(x, y):
    """torch's own solution with a ones column, in float64; minimum norm for deficient ranks."""
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    solution = torch.linalg.lstsq(x, y.double(), driver="gelsd").solution
    return AffineMap(solution[:-1], solution[-1])


def squared_error(fit, x, y):
    return (x.double() @ fit.weight + fit.bias - y.double()).square().sum().item()


def fit_of(pairs, source):
    moments = TokenMoments(WIDTHS)
    moments.update(*pairs)
    return moments.solve(source)


def in_direction(pairs, source):
    return pairs if source == 0 else pairs[::-1]


@BOTH
def test_the_solution_is_that_of_lstsq(source):
    pairs = token_pairs()
    fit, expected = fit_of(pairs, source), lstsq(*in_direction(pairs, source))
    # Float64 normal equations of condition number < 1e4: 1e-16 * 1e4**2 at most.
    torch.testing.assert_close(fit.weight, expected.weight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fit.bias, expected.bias, rtol=1e-8, atol=1e-8)
    assert fit.weight.shape == (WIDTHS[source], WIDTHS[1 - source])


@BOTH
def test_channels_of_very_different_scale_are_all_fitted(source):
    scales = torch.logspace(-3, 3, WIDTHS[0]), torch.logspace(3, -3, WIDTHS[1])
    train = token_pairs(scales=scales)
    test = in_direction(token_pairs(seed=1, scales=scales), source)
    fit, expected = fit_of(train, source), lstsq(*in_direction(train, source))
    ours, theirs = (
        (test[0].double() @ f.weight + f.bias - test[1].double()).square().sum(0)
        for f in (fit, expected)
    )
    # Channel by channel: the sum would only show the largest.
    assert (ours <= theirs * (1 + 1e-6)).all()


@BOTH
def test_moments_of_chunks_add_up_to_those_of_all_tokens(source):
    pairs = token_pairs()
    chunked = TokenMoments(WIDTHS)
    sizes = [1, 2, 97, 300]
    for small, large in zip(pairs[0].split(sizes), pairs[1].split(sizes), strict=True):
        chunked.update(small, large)
    assert chunked.num_tokens == 400
    whole, fit = fit_of(pairs, source), chunked.solve(source)
    # The sums differ by rounding, amplified by the condition number.
    torch.testing.assert_close(fit.weight, whole.weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fit.bias, whole.bias, rtol=1e-9, atol=1e-9)


def _fit_with_half_the_tokens(rank):
    moments = TokenMoments(WIDTHS)
    small, large = token_pairs()
    # Unequal shares, as the images of processes may be.
    share = slice(0, 150) if rank == 0 else slice(150, 400)
    moments.update(small[share], large[share])
    dist.all_reduce(moments.gram)
    return moments.num_tokens, [tuple(moments.solve(source)) for source in (0, 1)]


def test_two_gloo_processes_that_add_their_moments_get_the_solution_of_one(tmp_path):
    first, second = run_in_two_processes(_fit_with_half_the_tokens, tmp_path)
    for source in (0, 1):
        whole = fit_of(token_pairs(), source)
        for mine, other, alone in zip(first[1][source], second[1][source], whole, strict=True):
            assert torch.equal(mine, other)
            torch.testing.assert_close(mine, alone, rtol=1e-9, atol=1e-9)
    assert first[0] == second[0] == 400


def test_rank_deficient_tokens_are_fitted_as_well_as_by_lstsq():
    def pairs(seed):
        small, large = token_pairs(seed=seed)
        small[:, 4] = 2 * small[:, 0] - 3 * small[:, 1]
        small[:, 5] = small[:, 2]
        return small, large

    fit, test = fit_of(pairs(0), 0), pairs(1)
    # The duplicates are exact to float32 only: lstsq fits their rounding, a cut-off here does not.
    exact = lstsq(pairs(0)[0][:, :4], pairs(0)[1])
    expected = squared_error(exact, test[0][:, :4], test[1])
    assert squared_error(fit, *test) <= expected * (1 + 1e-6)
    assert fit.weight.abs().max() < 100 * exact.weight.abs().max()


def test_fewer_tokens_than_channels_are_fitted_exactly_and_stay_bounded():
    pairs = token_pairs(count=4)
    fit = fit_of(pairs, 0)
    torch.testing.assert_close(
        pairs[0].double() @ fit.weight + fit.bias, pairs[1].double(), rtol=1e-6, atol=1e-6
    )
    assert fit.weight.abs().max() < 100


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.3, 3.7, 7.7, 123.4, 1000.0])
def test_a_constant_channel_gets_the_weight_zero(constant):
    # Over thousands of tokens its computed variance is not 0 but rounding of either sign,
    # which must not pass for a direction.
    def pairs(count, seed):
        small, large = token_pairs(count, seed)
        small[:, 3] = constant
        return small, large

    train, test = pairs(20_000, 0), pairs(400, 1)
    moments = TokenMoments(WIDTHS)
    for small, large in zip(train[0].split(1000), train[1].split(1000), strict=True):
        moments.update(small, large)
    fit = moments.solve(0)
    assert torch.equal(fit.weight[3], torch.zeros(WIDTHS[1], dtype=torch.float64))
    kept = [0, 1, 2, 4, 5]
    expected = lstsq(train[0][:, kept], train[1])
    torch.testing.assert_close(fit.weight[kept], expected.weight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fit.bias, expected.bias, rtol=1e-8, atol=1e-8)
    ours, theirs = squared_error(fit, *test), squared_error(expected, test[0][:, kept], test[1])
    assert ours <= theirs * (1 + 1e-6)


def spread_tokens(deviations, count, seed):
    """Tokens that vary by very different amounts along directions that no channel has alone."""
    width = len(deviations)
    fixed = torch.Generator().manual_seed(100)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=fixed)).Q
    mix = torch.randn(width, 24, generator=fixed) / width**0.5
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, width, generator=g)
    target = directions @ mix + 0.6 * torch.randn(count, 24, generator=g)
    return (directions * deviations) @ rotation, target


def share_left(fit, x, y, dtype):
    """Share of the variance that a map leaves when it runs in a precision."""
    weight, bias = fit.weight.T.to(dtype), fit.bias.to(dtype)
    error = torch.nn.functional.linear(x.to(dtype), weight, bias).double() - y.double()
    return (error.square().sum() / (y - y.mean(0)).double().square().sum()).item()


ONE_SMALL = torch.tensor([30.0, *[1.0] * 30, 1e-3])
SPREAD = torch.logspace(1.5, -3, 32)


@pytest.mark.parametrize(
    ("deviations", "most"), [(ONE_SMALL, 0.35), (SPREAD, 0.55)], ids=["one small", "spread"]
)
def test_a_map_for_bfloat16_leaves_there_little_more_than_one_for_float32_in_float32(
    deviations, most
):
    train, test = (spread_tokens(deviations, count, seed) for count, seed in ((4000, 0), (2000, 1)))
    moments = TokenMoments((32, 24))
    moments.update(*train)
    exact = moments.solve(0)
    rounded = moments.solve(0, torch.finfo(torch.bfloat16).eps)
    assert share_left(exact, *test, torch.float32) == pytest.approx(0.27, abs=0.02)
    # What this is about: the exact solution is worse than the mean where it is rounded.
    assert share_left(exact, *test, torch.bfloat16) > 2
    assert share_left(rounded, *test, torch.bfloat16) < most
    # It lives on what is not rounded away, so more precision changes it little.
    assert share_left(rounded, *test, torch.float32) == pytest.approx(
        share_left(rounded, *test, torch.bfloat16), abs=0.05
    )


def test_channels_of_their_own_scale_lose_nothing_to_rounding():
    """Rounding is relative to each channel: small ones beside large ones are as exact as these."""
    pairs = token_pairs(scales=(torch.logspace(-3, 3, 6), torch.ones(9)))
    moments = TokenMoments(WIDTHS)
    moments.update(*pairs)
    exact, rounded = moments.solve(0), moments.solve(0, torch.finfo(torch.bfloat16).eps)
    expected = share_left(exact, *pairs, torch.float64)
    for fit in (exact, rounded):
        assert share_left(fit, *pairs, torch.bfloat16) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_tokens_that_are_not_finite_are_an_error_and_are_not_added(bad, which):
    pairs = token_pairs()
    moments = TokenMoments(WIDTHS)
    moments.update(*pairs)
    before = moments.gram.clone()
    pairs[which][17, 2] = bad
    with pytest.raises(ValueError, match="tokens for the least-squares fit hold NaN or infinity"):
        moments.update(*pairs)
    assert torch.equal(moments.gram, before)


@pytest.mark.parametrize("shapes", [((5, 9), (5, 6)), ((5, 6), (4, 9)), ((5, 6), (5, 8))])
def test_tokens_of_other_widths_or_numbers_are_an_error(shapes):
    with pytest.raises(ValueError, match=r"expected tokens \(n, 6\) and \(n, 9\), got \(\d, \d\)"):
        TokenMoments(WIDTHS).update(*(torch.ones(shape) for shape in shapes))


def test_no_tokens_are_an_error():
    with pytest.raises(ValueError, match="no tokens were seen"):
        TokenMoments(WIDTHS).solve(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_moments_are_kept_in_float64_whatever_the_tokens_are(dtype):
    pairs = tuple(tokens.to(dtype) for tokens in token_pairs())
    moments = TokenMoments(WIDTHS)
    moments.update(*pairs)
    columns = torch.cat([torch.ones(400, 1, dtype=dtype), *pairs], dim=1).double()
    torch.testing.assert_close(moments.gram, columns.T @ columns, rtol=1e-13, atol=0)


def test_no_gradient_is_kept():
    moments = TokenMoments(WIDTHS)
    small, large = token_pairs(10)
    moments.update(small.requires_grad_(), large.requires_grad_())
    assert not moments.gram.requires_grad
