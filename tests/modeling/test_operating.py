import copy

import pytest
import torch
from detectors import SIZE, cascade_config, nano_config, picture
from detectron2.config import instantiate

from snnet_vitdet.modeling import operating_at, resized_positions, take_position_grids
from snnet_vitdet.modeling.roi_heads import detect_with_counts, rows_with_count

SMALLER = 64


def build(config):
    torch.manual_seed(0)
    model = instantiate(config).eval()
    # Positions that differ from place to place; they start at zero.
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def detect(model, size):
    with torch.no_grad():
        (output,) = model([dict(image=picture(size))])
    return output["instances"]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_masks, expected.pred_masks)


@pytest.fixture(scope="module")
def trained():
    return build(nano_config(num_classes=6))


def test_inside_the_context_size_and_number_are_others_and_then_the_own_ones_again(trained):
    own = detect(trained, SIZE)
    with operating_at(trained, SMALLER, 7):
        images = trained.preprocess_image([dict(image=picture(48))])
        assert images.tensor.shape[-2:] == (SMALLER, SMALLER)
        features = trained.backbone(images.tensor)
        proposals, _ = trained.proposal_generator(images, features, None)
        assert len(proposals[0]) == 7
    assert_same(detect(trained, SIZE), own)
    assert trained.backbone.padding_constraints["square_size"] == SIZE


def test_the_context_ends_with_an_error_in_it_too(trained):
    with pytest.raises(RuntimeError, match="inside"), operating_at(trained, SMALLER, 7):
        raise RuntimeError("inside")
    assert trained.backbone.padding_constraints["square_size"] == SIZE
    assert trained.proposal_generator.post_nms_topk[False] == 100


def built_for_two_sizes(table):
    """A detector built for SIZE and one for SMALLER, with relative positions of one kind."""
    configs = nano_config(6), nano_config(6, image_size=SMALLER)
    for each in configs:
        each.backbone.net.large.rel_pos_table = table
    return map(build, configs)


@pytest.mark.parametrize("table", [False, True], ids=["decomposed", "table"])
def test_weights_of_one_image_size_are_loaded_into_a_model_of_another(table):
    trained, other = built_for_two_sizes(table)
    state = trained.state_dict()
    parameters = dict(other.named_parameters())
    take_position_grids(other, state)
    other.load_state_dict(state)
    # An optimizer that knows the parameters keeps them.
    assert all(parameters[name] is value for name, value in other.named_parameters())
    with operating_at(trained, SMALLER, None):
        expected = detect(trained, SMALLER)
    assert_same(detect(other, SMALLER), expected)


def test_positions_of_other_windows_or_other_blocks_are_not_taken():
    config = nano_config(image_size=256)
    state = build(config).state_dict()
    for changes in (
        {"window_size": 4},
        {"global_block_indexes": [0, 2]},
        # One grid for the windows of the file, another for its global blocks.
        {"global_block_indexes": [1, 2, 3]},
    ):
        other = copy.deepcopy(config)
        other.backbone.net.small.update(changes)
        model = build(other)
        take_position_grids(model, state)
        with pytest.raises(RuntimeError, match="size mismatch for backbone.net.small"):
            model.load_state_dict(state)


def test_positions_of_windows_are_not_taken_for_those_of_a_global_block():
    config = nano_config(image_size=256)
    config.backbone.net.small.global_block_indexes = []
    state = build(config).state_dict()
    other = copy.deepcopy(config)
    other.backbone.net.small.global_block_indexes = [0, 1, 2, 3]
    model = build(other)
    take_position_grids(model, state)
    with pytest.raises(RuntimeError, match="size mismatch for backbone.net.small"):
        model.load_state_dict(state)


@pytest.mark.parametrize("table", [False, True], ids=["decomposed", "table"])
def test_resized_positions_are_those_that_attention_makes_of_them(table):
    trained, other = built_for_two_sizes(table)
    other.load_state_dict(resized_positions(other, trained.state_dict()))
    with operating_at(trained, SMALLER, None):
        expected = detect(trained, SMALLER)
    assert_same(detect(other, SMALLER), expected)


def test_the_positions_of_another_width_are_not_taken(trained):
    state = trained.state_dict()
    key = "backbone.net.small.blocks.1.attn.rel_pos_h"
    for shape in ((9, 16), (8, 32), (9, 32, 1), ()):
        model = build(nano_config())
        before = model.state_dict()[key].shape
        take_position_grids(model, {**state, key: torch.zeros(shape)})
        assert model.state_dict()[key].shape == before


@pytest.mark.parametrize("make", [nano_config, cascade_config], ids=["mask_rcnn", "cascade"])
def test_several_numbers_of_proposals_detect_what_each_detects_alone(make):
    model = build(make(num_classes=6))
    batch = [dict(image=picture(SIZE)), dict(image=picture(96))]
    images = model.preprocess_image(batch)
    with torch.no_grad():
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        counts = [5, 40, 100]
        rows_of_mask_head = []
        model.roi_heads.mask_head.register_forward_pre_hook(
            lambda head, given: rows_of_mask_head.append(len(given[0]))
        )
        together = detect_with_counts(model.roi_heads, images, features, proposals, counts)
        lengths = []
        for index, count in enumerate(counts):
            results = [found[rows_with_count(found.places, index)] for found in together]
            lengths.append(sum(map(len, results)))
            with operating_at(model, None, count):
                fewer, _ = model.proposal_generator(images, features, None)
                expected, _ = model.roi_heads(images, features, fewer, None)
            for found, alone in zip(results, expected, strict=True):
                assert len(found) == len(alone)
                # Products of matrices of other sizes may be rounded otherwise.
                torch.testing.assert_close(found.scores, alone.scores, atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(
                    found.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-4, rtol=1e-5
                )
                torch.testing.assert_close(found.pred_masks, alone.pred_masks, atol=1e-5, rtol=1e-4)
    assert lengths[0] < lengths[2]
    # The mask head ran first for all numbers together, and each detection was in it once.
    assert lengths[2] <= rows_of_mask_head[0] == sum(map(len, together)) < sum(lengths)


def test_a_box_head_of_another_kind_runs_once_for_each_number(trained):
    calls = []

    class Predictor(type(trained.roi_heads.box_predictor)):
        def inference(self, predictions, proposals):
            calls.append(len(proposals[0]))
            return super().inference(predictions, proposals)

    model = copy.deepcopy(trained)
    model.roi_heads.box_predictor.__class__ = Predictor
    images = model.preprocess_image([dict(image=picture(SIZE))])
    with torch.no_grad():
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        (found,) = detect_with_counts(model.roi_heads, images, features, proposals, [10, 20])
        (alone,) = model.roi_heads(images, features, [proposals[0][:10]], None)[0]
    assert calls == [10, 20, 10]
    assert torch.equal(found[rows_with_count(found.places, 0)].scores, alone.scores)


def test_with_tight_padding_a_square_image_gives_the_same_and_others_are_not_squared(trained):
    own, sizes = detect(trained, SIZE), []
    watch = trained.backbone.net.register_forward_pre_hook(
        lambda net, given: sizes.append(tuple(given[0].shape[-2:]))
    )
    with operating_at(trained, None, None, "tight"):
        assert_same(detect(trained, SIZE), own)
        with torch.no_grad():
            trained([dict(image=picture(SIZE)[:, :90]), dict(image=picture(SIZE)[:, :, :70])])
            trained([dict(image=picture(SIZE)[:, :70, :90])])
            # The coarsest level of the pyramid needs a cell.
            trained([dict(image=picture(SIZE)[:, :, :1])])
        # A context inside leaves the padding as it is.
        with operating_at(trained, None, 5):
            detect(trained, SIZE)
        with torch.no_grad():
            trained([dict(image=picture(SIZE)[:, :, :1])])
    with operating_at(trained, 48, None, "tight"), torch.no_grad():
        trained([dict(image=picture(48))])
    watch.remove()
    assert sizes == [
        (SIZE, SIZE),
        (SIZE, SIZE),
        (96, 96),
        (SIZE, 32),
        (SIZE, SIZE),
        (SIZE, 32),
        (48, 48),
    ]
    assert_same(detect(trained, SIZE), own)


@pytest.mark.parametrize("table", [False, True], ids=["decomposed", "table"])
def test_tight_padding_takes_the_positions_of_the_square_of_the_image_size(table):
    model, _ = built_for_two_sizes(table)
    image = torch.randn(1, 3, 48, SMALLER)
    net = model.backbone.net
    with torch.no_grad(), operating_at(model, SMALLER, None, "tight"):
        tight = net(image)["last_feat"]
        # Positions of the large ViT, in which the walk ends, are those of the square.
        sides = {block.attn.position_side for block in net.large.blocks if not block.window_size}
    assert sides == {SMALLER // 16} and net.large.position_side == 0
    with torch.no_grad():
        assert not torch.allclose(net(image)["last_feat"], tight, atol=1e-4)
