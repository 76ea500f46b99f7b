import csv
import sys

import pytest
from tools import list_stitches

SL = "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py"
NANO = "configs/shapes/mask_rcnn_snnet_nano.py"
COLUMNS = [
    *("stitch_id", "name", "kind", "cuts", "gflops", "params_m", "probability"),
    *("image_size", "num_proposals"),
]


@pytest.fixture
def run(root, monkeypatch, capsys):
    """Runs the program in this process; returns what it prints."""
    monkeypatch.chdir(root)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["list_stitches.py", *map(str, args)])
        list_stitches.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(run, capsys):
    """Runs the program, which ends in an error; returns its sentence."""

    def refused(*args):
        with pytest.raises(SystemExit) as exit_:
            run(*args)
        assert exit_.value.code == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("error: ")
        return message

    return refused


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == COLUMNS
    return [dict(zip(header, row, strict=True)) for row in rows]


def figure(printed, label):
    """The GFLOPs in the line that starts with a label."""
    (line,) = [line for line in printed.splitlines() if line.startswith(label)]
    return float(line.removeprefix(label).split()[0])


def test_real_configuration_lists_134_stitches_and_the_four_figures(run, tmp_path):
    printed = run("--config-file", SL, "--csv", tmp_path / "out.csv")
    assert "134 stitches at 1024 x 1024 pixels" in printed
    # detectron2's own ViTDet, measured with its FlopCountAnalysis.
    small_alone = figure(printed, "ViTDet on the small anchor alone (baseline):")
    large_alone = figure(printed, "ViTDet on the large anchor alone (baseline):")
    assert small_alone == pytest.approx(440.9, rel=0.005)
    assert large_alone == pytest.approx(1807.4, rel=0.005)
    # Read off Figure 9 of the paper.
    assert figure(printed, "S in the supernet:") == pytest.approx(475, rel=0.02)
    assert figure(printed, "L in the supernet:") == pytest.approx(1810, rel=0.02)

    rows = read(tmp_path / "out.csv")
    assert [int(row["stitch_id"]) for row in rows] == list(range(134))
    kinds = [row["kind"] for row in rows]
    assert [kinds.count(kind) for kind in ("S", "L", "FS", "SF", "SFS", "FSF")] == [
        1, 1, 11, 11, 55, 55,
    ]  # fmt: skip
    assert len({row["name"] for row in rows}) == 134
    # Six decimals each.
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=134 * 5e-7)
    gflops = {row["name"]: float(row["gflops"]) for row in rows}
    assert min(gflops, key=gflops.get) == "S"
    # The later a walk enters the large anchor, the cheaper it is.
    entering = [gflops[f"FS-{cut}"] for cut in range(1, 12)]
    assert entering == sorted(entering, reverse=True)


def test_mean_cost_of_an_iteration_is_that_of_the_table(run, tmp_path):
    printed = run("--config-file", SL, "--csv", tmp_path / "out.csv")
    rows = read(tmp_path / "out.csv")
    mean = sum(float(row["probability"]) * float(row["gflops"]) for row in rows)
    # Of 134 probabilities with six decimals and costs of at most 1810.
    assert figure(printed, "Training iteration:") == pytest.approx(mean, abs=134 * 5e-7 * 1810)
    large = figure(printed, "ViTDet on the large anchor alone (baseline):")
    assert f"{mean / large:.3f} of the baseline on the large anchor" in printed
    # An anchor is alone in its group.
    num_groups = figure(printed, "Groups of 10 GFLOPs:")
    assert num_groups == 21
    share = figure(printed, "Iterations that train an anchor alone:")
    assert share == pytest.approx(100 * 2 / num_groups, abs=0.05)


def test_uniform_sampling_has_no_groups(run):
    printed = run("--config-file", SL, "sampler._target_=snnet_vitdet.stitching.UniformSampler")
    assert "Groups of" not in printed
    assert "Iterations that train an anchor alone: 1.5 %" in printed


def test_ends_that_take_turns_are_in_probabilities_and_mean_cost(run, tmp_path):
    turns = ("train.ends.period=4", "train.ends.first=60", "train.max_iter=600")
    printed = run("--config-file", NANO, "--csv", tmp_path / "out.csv", *turns)
    rows = read(tmp_path / "out.csv")
    run("--config-file", NANO, "--csv", tmp_path / "plain.csv")
    plain = read(tmp_path / "plain.csv")
    for row, before in zip(rows, plain, strict=True):
        end = row["name"] in ("S", "L")
        # A tenth of the training is the ends' alone, half of the rest their turns.
        expected = 0.9 * 0.5 * float(before["probability"]) + end * (0.1 / 2 + 0.9 / 4)
        assert float(row["probability"]) == pytest.approx(expected, abs=1e-6)
    mean = sum(float(row["probability"]) * float(row["gflops"]) for row in rows)
    assert figure(printed, "Training iteration:") == pytest.approx(mean, abs=0.06)
    ends = sum(float(row["probability"]) for row in rows if row["name"] in ("S", "L"))
    assert f"Iterations that train an anchor alone: {100 * ends:.1f} %" in printed
    assert "S, L take turns: the first 60 iterations are theirs alone, then each has" in printed
    assert "Groups of 0.1 GFLOPs: 5" in printed


def test_a_space_without_anchors_trains_none_alone(run):
    printed = run("--config-file", SL, "model.backbone.net.kinds=[FSF,SFS]")
    assert "\n110 stitches at" in printed
    assert "Training iteration:" in printed
    assert "an anchor alone:" not in printed


def test_file_holds_what_is_printed(run, tmp_path):
    # Generated scenes are not there before the first training, and are not needed.
    nowhere = f"data.prepare.root={tmp_path / 'nowhere'}"
    printed = run("--config-file", NANO, "--csv", tmp_path / "out.csv", nowhere)
    rows = read(tmp_path / "out.csv")
    assert len(rows) == 14
    table = printed.split("\n\n")[0].splitlines()[2:]
    assert len(table) == 14
    lines = {cells[1]: cells for cells in map(str.split, table)}
    for row in rows:
        cells = lines[row["name"]]
        assert cells[0] == row["stitch_id"]
        assert cells[2] == row["kind"]
        assert cells[3 : len(cells) - 5] == ([row["cuts"]] if row["cuts"] else [])
        numbers = [float(cell) for cell in cells[-5:]]
        expected = [float(row[key]) for key in COLUMNS[-5:]]
        assert numbers == pytest.approx(expected, rel=1e-4)


def test_operating_points_are_listed_with_their_costs(run, tmp_path):
    """Figures counted with detectron2's analysis of configs of these sizes and numbers."""
    points = ("sweep.image_sizes=[512,640,768,1024]", "sweep.proposals=[100,300,1000]")
    printed = run("--config-file", SL, "--csv", tmp_path / "out.csv", *points)
    assert "1,608 operating points. GFLOPs" in printed
    rows = read(tmp_path / "out.csv")
    assert len(rows) == len({row["name"] for row in rows}) == 134 * 12
    gflops = {row["name"]: float(row["gflops"]) for row in rows}
    counted = {"S@1024/300": 379.3, "S@640/1000": 248.6, "S@512/300": 117.3, "L@512/300": 482.1}
    for name, expected in counted.items():
        assert gflops[name] == pytest.approx(expected, abs=0.05)
    assert min(gflops.values()) <= 120
    # A stitch as it is trained keeps its name; it alone has a probability.
    trained = [row for row in rows if row["probability"]]
    assert [row["name"] for row in trained] == [
        row["name"] for row in rows if "@" not in row["name"]
    ]
    assert {(row["image_size"], row["num_proposals"]) for row in trained} == {("1024", "1000")}


def test_costs_with_tight_padding_are_those_of_the_ratio(run):
    ratio = ("sweep.padding=tight", "sweep.aspect_ratio=1.7777778")
    tight = run("--config-file", SL, *ratio)
    square = run("--config-file", SL)
    assert "134 stitches at 1024 x 576 pixels" in tight
    # 144 rows are padded to a multiple of 32.
    assert "256 x 160 pixels" in run("--config-file", NANO, *ratio)
    # Counted with detectron2's analysis of an image of this shape, in docs/points.md.
    for name, expected in (("S", 308.8), ("L", 1056.0)):
        assert figure(tight, f"{name} in the supernet:") == pytest.approx(expected, abs=0.05)
    lines = [printed.splitlines()[-3:] for printed in (tight, square)]
    assert "Training iteration: 1141.1 GFLOPs" in lines[0][0]
    assert lines[0] == lines[1]


def test_file_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "stitches.csv"
    assert f"cannot write {target}: " in refused("--config-file", NANO, "--csv", target)


def test_custom_config_without_data_says_what_to_give(refused, run):
    custom = "configs/custom/mask_rcnn_snnet_coco_json.py"
    assert "give model.roi_heads.num_classes=80" in refused("--config-file", custom)
    assert "14 stitches" in run("--config-file", custom, "model.roi_heads.num_classes=80")


def test_a_joined_detector_s_ends_cost_what_the_two_detectors_cost(run):
    printed = run("--config-file", "configs/join/mask_rcnn_snnet_s_l.py")
    for end, size, expected in (("S", "small", 440.9), ("L", "large", 1807.4)):
        joined = figure(printed, f"{end} in the joined detector:")
        assert joined == pytest.approx(expected, rel=0.005)
        assert joined == figure(printed, f"ViTDet on the {size} anchor alone (baseline):")
