"""Keys of detectron2's common/train.py that differ here, and the ones it does not have."""

from detectron2 import model_zoo

train = model_zoo.get_config("common/train.py").train

# "cuda", "cpu", or "auto": the GPU where there is one.
train.device = "auto"
# Fixes the stitch of every iteration, the data and everything else that is random.
train.seed = 0
# On a GPU: "float16" with loss scaling (ViTDet's default) or "bfloat16" without.
train.amp = dict(enabled=True, precision="float16")
train.ddp.fp16_compression = True
# An iteration runs the blocks and stitching layers of one stitch; the others have no gradient.
train.ddp.find_unused_parameters = True
# "shared": all processes train the same stitch in an iteration. "process": each draws its own.
train.stitch_scope = "shared"
# Scored every eval_period iterations and at the end; the sweep (--eval-only) scores many.
train.eval_stitches = "anchors"

sweep = dict(
    # all, anchors, a list of ids, or ranges, kinds and names such as "0-12,40,FS,SFS-2-7"
    stitch_ids="all",
    # Instead of a checkpoint, what a training starts from: pretrained anchors and the fit of init.
    at_initialisation=False,
)
