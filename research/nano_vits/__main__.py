"""Makes the bundled pretrained ViTs: ``python -m research.nano_vits``.

Each nano ViT is trained alone as a detector on generated scenes, from random weights; its backbone
is kept in half precision. The scenes are half as large as the demo's, and have a seed of their own.
An unfinished training is resumed. An hour on two CPU cores.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

import torch
from safetensors.torch import save_file

from snnet_vitdet.engine import load_config
from snnet_vitdet.modeling.bundled_weights import BUNDLED, PRETRAINING_KEY
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.weight_files import read_weight_file

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "projects" / "snnet_vitdet" / "modeling" / "bundled"
OVERRIDES = (
    # A quarter of the demo's tokens, so four times as many iterations in the same time.
    "data.image_size=128",
    "model.backbone.net.pretrain_img_size=128",
    "data.prepare.root=datasets/shapes_nano_vits",
    "data.prepare.seed=1",
    "data.prepare.num_train=8000",
    "data.prepare.num_test=300",
    "dataloader.train.total_batch_size=8",
    "init.weights.net=null",
    # All blocks are new.
    "optimizer.params.lr_factor_func.rates.net=1.0",
    "optimizer.lr=1e-3",
    "train.max_iter=8000",
)
_IN_DETECTOR = "backbone.net."


def main() -> None:
    """Trains both ViTs and writes their files."""
    FOLDER.mkdir(exist_ok=True)
    for name in BUNDLED:
        config = f"configs/shapes/mask_rcnn_vitdet_nano_{name[-1]}.py"
        output = f"output/nano_vits/{name}"
        subprocess.run(
            [
                *(sys.executable, "train_net.py", "--config-file", config, "--resume"),
                *OVERRIDES,
                f"train.output_dir={output}",
            ],
            cwd=ROOT,
            check=True,
        )
        anchor = build_on_meta(load_config(str(ROOT / config), OVERRIDES).model).backbone.net
        path = FOLDER / f"{name}.safetensors"
        trained = read_weight_file(ROOT / output / "model_final.pth")["model"]
        save_file(
            {
                key.removeprefix(_IN_DETECTOR): value.to(torch.float16)
                for key, value in trained.items()
                if key.startswith(_IN_DETECTOR)
            },
            path,
            {PRETRAINING_KEY: json.dumps(dataclasses.asdict(anchor.pretraining))},
        )
        path.chmod(0o644)  # safetensors lets only the owner read
        print(f'"{name}": "{hashlib.sha256(path.read_bytes()).hexdigest()}"')


if __name__ == "__main__":
    main()
