import copy

import pytest
import torch
import torch.nn.functional as F

from snnet_vitdet.stitching import (
    LARGE,
    SMALL,
    StitchingLayer,
    StitchingLayers,
    StitchSpace,
    Transition,
    merged,
)

# float32: sums of at most 12 + 4 products of order 1; 1e-5 is some 40 times their rounding, and far
# below any difference that a wrong formula would make.
ROUNDING = dict(rtol=1e-5, atol=1e-5)


def trained_layer(rank=4, alpha=None, seed=0):
    """A layer 12 -> 20 none of whose parameters is at its start value."""
    torch.manual_seed(seed)
    layer = StitchingLayer(12, 20, rank, alpha)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def trained_layers(seed=0, **kwargs):
    torch.manual_seed(seed)
    layers = StitchingLayers(StitchSpace((4, 8)), (12, 20), rank=4, **kwargs)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.normal_()
    return layers


def tokens(width=12, seed=1):
    return torch.randn(2, 3, 5, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [None, 4, 10.0, 0.0])
def test_output_is_x_m_plus_b_plus_the_scaled_update(alpha):
    layer, x = trained_layer(alpha=alpha), tokens()
    m, b = layer.weight.T, layer.bias
    lora_b, lora_a = layer.lora_b.T, layer.lora_a.T  # the paper's layout: x @ B @ A
    factor = 1.0 if alpha is None else alpha / 4
    expected = x.double() @ m.double() + b + x.double() @ lora_b.double() @ lora_a.double() * factor
    torch.testing.assert_close(layer(x), expected.float(), **ROUNDING)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_layer_starts_exactly_at_the_fit(rank):
    layer, x = trained_layer(rank), tokens()
    fit = torch.randn(12, 20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    layer.load_fit(*fit)
    expected = F.linear(x, fit[0].float().T.contiguous(), fit[1].float())
    assert torch.equal(layer(x), expected)
    torch.testing.assert_close(layer(x), (x @ fit[0].float()) + fit[1].float(), **ROUNDING)


def test_a_new_layer_has_a_gaussian_b_and_a_zero_a():
    torch.manual_seed(0)
    layer = StitchingLayer(400, 300, rank=16)
    assert torch.equal(layer.lora_a, torch.zeros(300, 16))
    # 6400 samples of standard deviation 1/20: its estimate is within 1 %, here 4 of its own.
    assert layer.lora_b.std().item() == pytest.approx(1 / 20, rel=0.04)
    assert torch.equal(layer.bias, torch.zeros(300))


def test_rank_zero_trains_the_matrix_and_other_ranks_freeze_it():
    full, lora = StitchingLayer(12, 20, rank=0), StitchingLayer(12, 20, rank=1)
    assert {n: p.requires_grad for n, p in full.named_parameters()} == {
        "weight": True,
        "bias": True,
    }
    assert {n: p.requires_grad for n, p in lora.named_parameters()} == {
        "weight": False,
        "bias": True,
        "lora_b": True,
        "lora_a": True,
    }


def test_a_step_of_training_moves_the_update_and_the_bias_but_not_the_matrix():
    layer = trained_layer()
    before = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    layer(tokens()).square().sum().backward()
    optimizer.step()
    after = layer.state_dict()
    assert torch.equal(before["weight"], after["weight"])
    for name in ("bias", "lora_a", "lora_b"):
        assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize("rank", [-1, 13, 100])
def test_a_rank_outside_the_widths_is_an_error(rank):
    message = rf"rank must be 0 … 12 for a stitching layer 20 -> 12, got {rank}"
    with pytest.raises(ValueError, match=message):
        StitchingLayer(20, 12, rank)


def test_a_fit_of_another_shape_is_an_error_and_changes_nothing():
    layer = trained_layer()
    before = copy.deepcopy(layer.state_dict())
    message = r"a stitching layer 12 -> 20 was given a fit of shape \({0}, {1}\) and bias \({2},\)"
    for rows, columns, size in ((20, 12, 20), (12, 20, 12), (12, 19, 19)):
        with pytest.raises(ValueError, match=message.format(rows, columns, size)):
            layer.load_fit(torch.ones(rows, columns), torch.ones(size))
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_merged_layers_give_the_same_output_in_one_product():
    layers = trained_layers(alpha=6.0)
    for transition, layer in layers.items():
        x = tokens((12, 20)[transition.source])
        plain = layer(x)
        with merged(layers):
            once = layer(x)
        torch.testing.assert_close(once, plain, **ROUNDING)
        matrix = layer.weight + 1.5 * (layer.lora_a @ layer.lora_b)
        assert torch.equal(once, F.linear(x, matrix, layer.bias))
        assert torch.equal(layer(x), plain)


def test_merging_touches_neither_parameters_nor_the_state_dict():
    layers = trained_layers()
    pointers = {name: p.data_ptr() for name, p in layers.named_parameters()}
    state = copy.deepcopy(layers.state_dict())
    with merged(layers):
        assert layers.state_dict().keys() == state.keys()
        assert all(torch.equal(state[name], v) for name, v in layers.state_dict().items())
    assert {name: p.data_ptr() for name, p in layers.named_parameters()} == pointers
    assert all(torch.equal(state[name], v) for name, v in layers.state_dict().items())


def is_merged(layer):
    """Seen from outside: a merged layer does not notice that its update changes."""
    before, lora_a = layer(tokens()), layer.lora_a.detach().clone()
    with torch.no_grad():
        layer.lora_a.add_(1.0)
        after = layer(tokens())
        layer.lora_a.copy_(lora_a)
    return torch.equal(before, after)


def test_merging_nests_and_ends_with_its_own_context():
    layer = trained_layer()
    assert not is_merged(layer)
    with merged(layer):
        with merged(layer):
            assert is_merged(layer)
        assert is_merged(layer)
    assert not is_merged(layer)


def test_an_exception_ends_the_merging():
    layer = trained_layer()
    with pytest.raises(RuntimeError, match="stop"), merged(layer):
        raise RuntimeError("stop")
    assert not is_merged(layer)


def test_eval_and_train_do_not_merge():
    layer = trained_layer()
    plain = layer(tokens())
    for change in (layer.eval, layer.train):
        change()
        assert torch.equal(layer(tokens()), plain)
        assert not is_merged(layer)


def test_the_layers_of_a_space_are_those_its_stitches_cross():
    layers = StitchingLayers(StitchSpace((4, 8)), (12, 20), rank=2)
    shapes = {
        transition: (layer.in_features, layer.out_features) for transition, layer in layers.items()
    }
    expected = {Transition(cut, SMALL, LARGE): (12, 20) for cut in (1, 2, 3, 4)}
    expected |= {Transition(cut, LARGE, SMALL): (20, 12) for cut in (1, 2, 3)}
    assert shapes == expected
    assert set(layers.small_to_large) == set(layers.large_to_small) == {"1", "2", "3"}
    assert layers[Transition(4, SMALL, LARGE)] is layers.exit
    assert len({id(layer) for _, layer in layers.items()}) == 7


def test_layers_that_no_stitch_crosses_are_not_built():
    layers = StitchingLayers(StitchSpace((4, 8), kinds=("S", "L", "FS")), (12, 20), rank=2)
    assert set(layers.small_to_large) == {"1", "2", "3"}
    assert len(layers.large_to_small) == 0
    assert layers.exit is not None
    without_exit = StitchingLayers(StitchSpace((4, 8), kinds=("L", "FS")), (12, 20), rank=2)
    assert without_exit.exit is None
    for missing in (Transition(4, SMALL, LARGE), Transition(1, LARGE, SMALL)):
        with pytest.raises(KeyError):
            without_exit[missing]


def test_the_rank_of_the_layers_is_bounded_by_the_smaller_width():
    with pytest.raises(ValueError, match=r"rank must be 0 … 12 for a stitching layer 12 -> 20"):
        StitchingLayers(StitchSpace((4, 8)), (12, 20), rank=16)
