"""Real photographs, as a user's own data: set SNNET_REAL_DATA to a folder in COCO format."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
FOLDER = os.environ.get("SNNET_REAL_DATA")
NUM_ITERATIONS = 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FOLDER, reason="SNNET_REAL_DATA names no folder with trainval.json and images/"
    ),
]


def run(*args):
    """Runs train_net.py; returns what it prints."""
    result = subprocess.run(
        [sys.executable, "train_net.py", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def annotations():
    return json.loads((Path(FOLDER) / "trainval.json").read_text())


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The folder of a short training and a sweep of five stitches."""
    output = tmp_path_factory.mktemp("real")
    folder = Path(FOLDER).resolve()
    common = [
        "--config-file",
        "configs/custom/mask_rcnn_snnet_coco_json.py",
        f"data.train_json={folder / 'trainval.json'}",
        f"data.train_images={folder / 'images'}",
        f"data.test_json={folder / 'trainval.json'}",
        f"data.test_images={folder / 'images'}",
        "data.image_size=128",
        "model.backbone.net.small.embed_dim=48",
        "model.backbone.net.large.embed_dim=96",
        f"train.output_dir={output}",
    ]
    run(
        *common,
        f"train.max_iter={NUM_ITERATIONS}",
        "train.log_period=1",
        "train.eval_stitches=[S]",
        "init.num_images=4",
        # Random ViTs and light heads learn little in so few iterations.
        "optimizer.lr=2e-3",
    )
    run("--eval-only", *common, "sweep.stitch_ids='anchors,FS-2,SFS-1-3,FSF-1-2'")
    return output


def test_loss_falls(output):
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert len(losses) == NUM_ITERATIONS
    assert all(map(math.isfinite, losses))
    # Of single iterations with other stitches each: they scatter.
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])


def test_class_names_are_those_of_the_file(output, annotations):
    ordered = sorted(annotations["categories"], key=lambda category: category["id"])
    checkpoint = torch.load(output / "model_final.pth")
    assert checkpoint["classes"]["thing_classes"] == [category["name"] for category in ordered]
    bias = checkpoint["model"]["roi_heads.mask_head.predictor.bias"]
    assert len(bias) == len(ordered)


def test_sweep_scores_every_stitch_that_was_asked_for(output, annotations):
    rows = json.loads((output / "sweep" / "stitches.json").read_text())
    assert {row["name"] for row in rows} == {"S", "L", "FS-2", "SFS-1-3", "FSF-1-2"}
    # COCO's ranges of size, in square pixels of the photographs as they are.
    bounds = {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, math.inf)}
    areas = [a["area"] for a in annotations["annotations"] if not a.get("iscrowd")]
    absent = {
        name for name, (low, high) in bounds.items() if not any(low <= a <= high for a in areas)
    }
    for row in rows:
        for key, value in row.items():
            if key.startswith(("bbox_", "segm_")):
                if key[5:] in absent:
                    assert value is None, key
                else:
                    assert 0 <= value <= 100, key
    assert any(row["on_pareto"] for row in rows)


def test_picture_and_table_are_there(output):
    files = {path.name for path in (output / "sweep").iterdir()}
    results = {"stitches.csv", "stitches.json", "sweep.json", "score_curves.json", "pareto.png"}
    assert files == results | {"report.html", "config.yaml", "log.txt", ".lock"}
