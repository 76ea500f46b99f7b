"""Trains the proxy in many variants and reports what each gains and costs; see README.md.

    python -m research.proxy --seeds 0 1 2
    python -m research.proxy --seeds 0 1 2 --variants paper full_rank [key=value ...]
    python -m research.proxy --seeds 3 --rows elsewhere/study.csv
    python -m research.proxy --seeds --rows research/proxy/study.csv

For each seed, both ViTs are trained alone from random weights. From their backbones, or from those
of --pretrained, each ViT is trained alone again, and the supernet in every variant, for the same
number of iterations. Writes study.csv, with a row for each run as soon as it is finished, and
gaps.png. Started again, it resumes. Seeds can be run on several machines and their rows combined;
without seeds, nothing is trained. Run it from the repository's folder.
"""

import argparse
import os
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.report import drawing

from .gap_plot import gap_figure
from .runs import Study
from .table import StudyTable, scores_alone, scores_of
from .variants import ALONE, PAPER, ROOT, VARIANTS, cost_of


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m research.proxy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--pretrain-iter", type=int, default=2000)
    parser.add_argument("--max-iter", type=int, default=2000)
    parser.add_argument(
        "--pretrained",
        nargs=2,
        default=[],
        metavar=("SMALL", "LARGE"),
        help="checkpoints to start all seeds from, instead of pretraining",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--folder", default="output/proxy")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="CSV",
        help="also read the rows of these study.csv, of other seeds or variants",
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of every run")
    return parser.parse_intermixed_args()


def run(args):
    """Runs the study and prints its table."""
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds {args.seeds} names one twice")
    if not args.seeds and not args.rows:
        raise InputError("nothing to do: give --seeds to train, or --rows of finished studies")
    table = StudyTable(cost_of(PAPER, args.opts, args.max_iter))
    for path in args.rows:
        table.read(path)
    variants = [variant for variant in VARIANTS if variant.name in args.variants]
    # This loads every config, so that a mistake is found before anything is trained.
    runs = [*ALONE.values(), *variants] if args.seeds else []
    costs = {variant: cost_of(variant, args.opts, args.max_iter) for variant in runs}
    folder = Path(args.folder).resolve()
    alone = {}

    def finished(seed, variant, rows):
        """Adds a run to the table, which is written each time."""
        if variant.vit is None:
            values = scores_of(rows, *(alone[seed, vit] for vit in ALONE))
        else:
            (row,) = rows
            if variant is ALONE[variant.vit]:
                alone[seed, variant.vit] = row
            values = scores_alone(variant.vit, row, alone[seed, variant.vit])
        values["cost"] = costs[variant]
        table.add(seed, variant.name, values)
        table.write(folder / "study.csv")
        shown = ", ".join(f"{key} {value:.2f}" for key, value in values.items())
        print(f"seed {seed}, {variant.name}: {shown}", flush=True)

    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    study = Study(
        ROOT / "train_net.py",
        folder,
        args.pretrain_iter,
        args.max_iter,
        tuple(args.opts),
        threads,
        {vit: Path(path).resolve() for vit, path in zip(ALONE, args.pretrained, strict=False)},
    )
    study.play(args.seeds, variants, args.jobs, finished)
    print(f"\n{table.summary()}")
    print(f"Results in {folder}")
    picture = folder / "gaps.png"
    with drawing(str(picture)):
        folder.mkdir(parents=True, exist_ok=True)
        gap_figure(table).savefig(picture)


def main():
    """Runs the program."""
    with exit_on_input_error():
        run(arguments())


if __name__ == "__main__":
    main()
