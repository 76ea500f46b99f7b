"""Keys of detectron2's common/train.py that differ here, and the ones it does not have."""

from detectron2 import model_zoo

train = model_zoo.get_config("common/train.py").train

# "cuda", "cpu", or "auto": the GPU where there is one.
train.device = "auto"
# Fixes the stitch of every iteration, the data and everything else that is random.
train.seed = 0
# On a GPU: "bfloat16", "float16" with loss scaling (ViTDet's default), or "auto": bfloat16 where
# the GPU computes in it, for its range, in which losses do not overflow.
train.amp = dict(enabled=True, precision="auto")
# On a GPU: whether float32 may be multiplied as TF32 (10 bits of mantissa), in matrix products and
# convolutions alike. torch's own default is so for convolutions alone.
train.tf32 = False
# Largest norm of the gradient; a larger one is scaled down to it. None: not clipped, as in ViTDet.
train.clip_grad_norm = None
# Above 0 (0.9998, or less for short trainings): an exponential moving average of the weights, which
# is then what is evaluated. It takes memory, and room in every checkpoint, as the weights do.
train.ema_decay = 0.0
# Exchange gradients in the type of mixed precision, which halves the traffic.
train.ddp.fp16_compression = True
# An iteration runs the blocks and stitching layers of one stitch; the others have no gradient.
train.ddp.find_unused_parameters = True
# "shared": all processes train the same stitch in an iteration. "process": each draws its own.
train.stitch_scope = "shared"
# A process's part of the batch is split into this many micro-batches, whose gradients are added up
# before the optimizer's step. stitch="own": each draws its own. "same": one for the iteration.
train.accumulation = dict(steps=1, stitch="own")
# Images an iteration that learning rate, max_iter, the periods of evaluation and checkpoints,
# freeze_anchors and ends.first are written for: they are scaled linearly to total_batch_size. None:
# not scaled.
train.reference_batch_size = None
# Iterations at the start in which both ViTs stand still and all the rest trains.
train.freeze_anchors = 0
# Stitches that take turns with those of the sampler. Of every `period` draws each has at least one:
# with period=4 and 4 micro-batches, S, L and two others in every step. In the first `first`
# iterations nothing else is trained. 0: no turns, as in the paper.
train.ends = dict(period=0, first=0, stitches="S,L")
# The largest stitch teaches the one that is trained: weights of the distance between their pyramid
# features and between their RPNs' outputs, in iterations that `every` divides. 0: no teacher, as in
# the paper. With train.ends.period=every (and one micro-batch), only S is taught, in its own turn.
train.distillation = dict(weight=0.0, rpn_weight=0.0, every=1)
# Before the first iteration, run the most expensive stitch once, to see whether it fits into the
# memory of the GPU.
train.rehearsal = True
# Scored every eval_period iterations and at the end; with eval_period=0 at the end alone. The sweep
# (--eval-only) scores many.
train.eval_stitches = "anchors"

sweep = dict(
    # all, anchors, a list of ids, or ranges, kinds and names such as "0-12,40,FS,SFS-2-7"
    stitch_ids="all",
    # "one_pass": every image goes through all stitches together, shared parts of walks once, the
    # APs by faster-coco-eval. "separate": one evaluation by dataloader.evaluator for each stitch.
    mode="one_pass",
    # Above 0: all stitches on so many images, then the anchors and the frontier on all images.
    subset=0,
    # "float32", or on a GPU "float16" or "bfloat16" for speed at slightly different scores.
    precision="float32",
    # The moving average of the weights, where a checkpoint has one; False: the weights themselves.
    averaged=True,
    # Replace the results of an earlier sweep in the same folder.
    overwrite=False,
    # Instead of a checkpoint, what a training starts from: pretrained anchors and the fit of init.
    at_initialisation=False,
)
