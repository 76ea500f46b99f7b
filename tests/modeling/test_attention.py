import copy

import pytest
import torch
from detectron2.modeling.backbone.vit import Attention as Detectron2Attention
from vits import randomise

from snnet_vitdet.memory import bytes_kept_for_backward
from snnet_vitdet.modeling import attention as attention_module
from snnet_vitdet.modeling import attention_implementation
from snnet_vitdet.modeling.attention import Attention

GRID = (5, 3)
# No relative positions; stored for this very grid, for a larger one, for another shape.
REL_POS_SIZES = pytest.mark.parametrize("rel_pos_size", [None, (5, 3), (8, 8), (2, 6)])
# In float64 two orders of summation differ by some 1e-15, so 1e-11 leaves only the mathematics.
EXACT = dict(rtol=1e-11, atol=1e-11)
# The same in float32.
ROUNDING = dict(rtol=1e-5, atol=1e-5)


def attention(rel_pos_size, implementation="fused", dtype=torch.float64):
    layer = Attention(12, 3, rel_pos_size, implementation=implementation)
    return randomise(layer).to(dtype)


def tokens(dtype=torch.float64):
    return torch.randn(2, *GRID, 12, generator=torch.Generator().manual_seed(5)).to(dtype)


def output_and_gradients(layer, x):
    x = x.clone().requires_grad_()
    out = layer(x)
    # Not a plain sum: every output has a weight of its own.
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape))
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return out.detach(), gradients | {"x": x.grad}


def assert_same(first, second, tolerance):
    torch.testing.assert_close(first[0], second[0], **tolerance)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(
            gradient, second[1][name], **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@REL_POS_SIZES
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, ROUNDING)]
)
def test_fused_equals_reference_forward_and_backward(rel_pos_size, dtype, tolerance):
    fused = attention(rel_pos_size, "fused", dtype)
    reference = attention(rel_pos_size, "reference", dtype)
    x = tokens(dtype)
    assert_same(output_and_gradients(fused, x), output_and_gradients(reference, x), tolerance)


@REL_POS_SIZES
def test_both_equal_the_attention_of_detectron2_forward_and_backward(rel_pos_size):
    theirs = Detectron2Attention(
        12, 3, use_rel_pos=rel_pos_size is not None, input_size=rel_pos_size
    ).double()
    x = tokens()
    for implementation in ("reference", "fused"):
        ours = attention(rel_pos_size, implementation)
        theirs.load_state_dict(ours.state_dict())
        theirs.zero_grad()
        assert_same(output_and_gradients(ours, x), output_and_gradients(theirs, x), EXACT)


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("rel_pos_size", [None, (8, 8)])
def test_bfloat16_stays_near_float32(implementation, rel_pos_size):
    exact = attention(rel_pos_size, implementation, torch.float32)
    expected = exact(tokens(torch.float32))
    half = copy.deepcopy(exact).bfloat16()(tokens(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact(tokens(torch.float32))
    for out in (half, mixed):
        assert out.dtype == torch.bfloat16
        # bfloat16 rounds to 1/256; a handful of roundings on outputs of order 1.
        torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


TABLE_SIZES = pytest.mark.parametrize("size", [GRID, (8, 8), (2, 6)])


def table_attention(size, implementation="fused", dtype=torch.float64):
    layer = Attention(12, 3, size, rel_pos_table=True, implementation=implementation)
    return randomise(layer).to(dtype)


@TABLE_SIZES
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, ROUNDING)]
)
def test_a_table_is_the_same_fused_and_in_the_reference(size, dtype, tolerance):
    layers = [table_attention(size, name, dtype) for name in ("fused", "reference")]
    assert_same(*(output_and_gradients(layer, tokens(dtype)) for layer in layers), tolerance)


def test_a_table_adds_the_number_of_the_offset():
    layer = table_attention(GRID)
    bias = layer._table_bias(GRID)
    assert bias.shape == (3, 15, 15)
    for head, query, key in ((0, 0, 0), (1, 14, 2), (2, 3, 11), (0, 7, 8)):
        rows, columns = query // 3 - key // 3, query % 3 - key % 3
        assert bias[head, query, key] == layer.rel_pos_table[head, rows + 4, columns + 2]


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_a_table_in_mixed_precision_stays_near_float32(implementation):
    exact = table_attention((8, 8), implementation, torch.float32)
    expected = exact(tokens(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact(tokens(torch.float32))
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), expected, rtol=0.05, atol=0.05)


def test_relative_positions_start_at_zero_and_then_change_nothing():
    torch.manual_seed(0)
    layer, without = Attention(12, 3, (5, 3)), Attention(12, 3)
    assert not layer.rel_pos_h.any() and not layer.rel_pos_w.any()
    assert layer.rel_pos_h.shape == (9, 4) and layer.rel_pos_w.shape == (5, 4)
    without.load_state_dict(layer.state_dict(), strict=False)
    x = tokens(torch.float32)
    torch.testing.assert_close(layer(x), without(x), **ROUNDING)


def test_the_context_chooses_for_all_layers_inside_and_restores_each():
    net = torch.nn.Sequential(Attention(12, 3), Attention(12, 3, implementation="reference"))
    with attention_implementation(net, "reference"):
        assert [layer.implementation for layer in net] == ["reference", "reference"]
        with attention_implementation(net, "fused"):
            assert [layer.implementation for layer in net] == ["fused", "fused"]
        assert [layer.implementation for layer in net] == ["reference", "reference"]
    assert [layer.implementation for layer in net] == ["fused", "reference"]


def test_the_named_implementation_is_what_runs(monkeypatch):
    layer = attention((5, 3))

    def refuse(*args, **kwargs):
        raise RuntimeError("fused kernel")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    with pytest.raises(RuntimeError, match="fused kernel"):
        layer(tokens())
    with attention_implementation(layer, "reference"):
        layer(tokens())


def test_unknown_implementations_and_indivisible_widths_are_errors():
    message = r"attention must be one of \('fused', 'reference'\), got 'flash'"
    with pytest.raises(ValueError, match=message):
        Attention(12, 3, implementation="flash")
    layer = Attention(12, 3)
    with (
        pytest.raises(ValueError, match=message),
        attention_implementation(layer, "flash"),
    ):
        pass
    assert layer.implementation == "fused"
    with pytest.raises(ValueError, match=r"width 10 is not a multiple of num_heads=3"):
        Attention(10, 3)


def test_what_depends_on_the_grid_is_made_once_and_serves_training_after_inference():
    layer = attention((5, 3))
    with torch.inference_mode():
        layer(tokens())
    codes = attention_module._kept_key_codes(5, 3, 4, torch.float64, torch.device("cpu"))
    assert codes is attention_module._kept_key_codes(5, 3, 4, torch.float64, torch.device("cpu"))
    assert not codes.is_inference()
    output_and_gradients(layer, tokens())


@pytest.mark.parametrize("table", [False, True], ids=["decomposed", "table"])
def test_an_exported_layer_gives_what_the_layer_gives_and_leaves_no_trace(table):
    layer = randomise(Attention(12, 3, GRID, rel_pos_table=table)).eval()
    x = tokens(torch.float32)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), **ROUNDING)


@pytest.mark.parametrize("side", [14, 32], ids=["recomputed whole", "kernel's output kept"])
def test_fused_attention_keeps_q_k_v_and_its_output_alone(side):
    tokens, dim, head = side**2, 16, 8
    layer = randomise(Attention(dim, dim // head, (side, side)))
    x = torch.randn(1, side, side, dim, requires_grad=True)
    layer(x)  # What depends on the grid alone is made.
    kept = bytes_kept_for_backward(lambda: layer(x)) / (4 * tokens * dim)
    # In units of the tokens: q, k and v; what enters the last projection.
    expected = 3 + 1
    if side == 32:
        # The kernel's output is as wide as what it ran on, and a number for each head and token.
        expected += (head + 2 * side) / head + 1 / head
    assert kept == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("limit", [0, 1000], ids=["kernel's output kept", "recomputed whole"])
def test_what_is_computed_again_gives_the_gradients_of_the_reference(monkeypatch, limit):
    monkeypatch.setattr(attention_module, "_FEW_TOKENS", limit)
    found = output_and_gradients(attention(GRID), tokens())
    assert_same(found, output_and_gradients(attention(GRID, "reference"), tokens()), EXACT)


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("make", [attention, table_attention], ids=["decomposed", "table"])
def test_positions_of_a_square_are_cropped_to_a_grid_and_not_stretched(make, implementation):
    """A square whose other tokens nobody looks at gives the same as the grid alone."""
    side, (rows, columns) = 8, (5, 8)
    layer = make((6, 6), implementation)
    x = torch.randn(2, side, side, 12, dtype=torch.float64)
    grid = x[:, :rows, :columns]
    layer.position_side = side
    found = layer(grid)

    outside = torch.ones(side, side, dtype=torch.bool)
    outside[:rows, :columns] = False
    softmax = torch.Tensor.softmax
    layer.implementation = "reference"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.Tensor,
            "softmax",
            lambda logits, dim: softmax(logits.masked_fill(outside.flatten(), -torch.inf), dim),
        )
        expected = layer(x)[:, :rows, :columns]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    layer.position_side = 0
    assert not torch.allclose(layer(grid), found, atol=1e-3)


@pytest.mark.parametrize("make", [attention, table_attention], ids=["decomposed", "table"])
def test_gradients_of_relative_positions_need_no_sort(make):
    # On a GPU, the gradient of indexing sorts the indexes: 58 sorts in a step of ViT-L.
    layer = make(GRID)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        output_and_gradients(layer, tokens())
    operators = {event.key for event in profile.key_averages()}
    assert "aten::unfold_backward" in operators
    assert not {"aten::_index_put_impl_", "aten::index_select_backward"} & operators
