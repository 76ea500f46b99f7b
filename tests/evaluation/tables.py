"""Results and tables that are written here, for the tests of the table."""

import math

from snnet_vitdet.evaluation import StitchResult, StitchTable
from snnet_vitdet.evaluation.results import METRICS

HEADER = (
    "stitch_id,name,kind,cuts,gflops,params_m,"
    "bbox_AP,bbox_AP50,bbox_AP75,bbox_APs,bbox_APm,bbox_APl,"
    "segm_AP,segm_AP50,segm_AP75,segm_APs,segm_APm,segm_APl,on_pareto,iteration,num_images,"
    "image_size,num_proposals,aspect_ratio"
)


def make_metrics(ap, tasks=("bbox", "segm")):
    steps = (0, 20, 3, -18, 2, 14)
    return {
        name: ap + step
        for task in tasks
        for name, step in zip(
            [metric for metric in METRICS if metric.startswith(task)], steps, strict=True
        )
    }


def make_result(
    stitch_id=0,
    *,
    name="FS-1",
    kind="FS",
    cuts=(1,),
    gflops=2.0,
    ap=40.0,
    metrics=None,
    iteration=None,
    num_images=None,
):
    return StitchResult(
        stitch_id=stitch_id,
        name=name,
        kind=kind,
        cuts=cuts,
        gflops=gflops,
        params_m=30.25,
        metrics=make_metrics(ap) if metrics is None else metrics,
        iteration=iteration,
        num_images=num_images,
    )


def make_table(*results):
    return StitchTable(results)


def small_table():
    return make_table(
        make_result(4, name="SFS-3-7", kind="SFS", cuts=(3, 7), gflops=3.0, ap=39.0),
        make_result(0, name="small", kind="S", cuts=(), gflops=1.0 + 1e-9, ap=100 / 3),
        make_result(2, gflops=2.0, ap=45.5),
        make_result(9, gflops=2.5, metrics={"bbox_AP": math.nan, "segm_AP": 12.0}),
    )


def two_stage_table():
    """A frontier on all 50 images; on 5, one stitch that is better and one that is cheaper."""
    return make_table(
        make_result(0, name="S", kind="S", cuts=(), gflops=1.0, ap=30.0, num_images=50),
        make_result(1, name="L", kind="L", cuts=(), gflops=3.0, ap=40.0, num_images=50),
        make_result(2, gflops=2.0, ap=60.0, num_images=5),
        make_result(3, gflops=0.5, ap=20.0, num_images=5),
    )
