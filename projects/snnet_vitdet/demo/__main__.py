"""A page to try a trained model on, in the browser: drop an image, move the budget.

    python -m snnet_vitdet.demo --config-file output/my/config.yaml
    python -m snnet_vitdet.demo --weights output/my/model_final.pth
    python -m snnet_vitdet.demo --exported output/my/export

Only this machine can open it, unless --host says otherwise. Ctrl-C ends it.
"""

import argparse
import copy
import os
import re
import signal
import sys
import time
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from snnet_vitdet.errors import InputError, exit_on_input_error

_CONFIG = "config.yaml"
_NUM_EXAMPLES = 6
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
_LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m snnet_vitdet.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help=f"default: {_CONFIG} beside --weights"
    )
    parser.add_argument("--weights", metavar="FILE", help="default: the training's last checkpoint")
    parser.add_argument(
        "--exported",
        metavar="FILE|FOLDER",
        help="of tools/export_stitch.py, instead of a training: these files run no code",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in, too")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which others call this page, such as a proxy's; may be given again",
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--examples", metavar="FOLDER", help="default: the config's test images")
    parser.add_argument("--max-upload-mb", type=float, default=20, metavar="MB")
    parser.add_argument("--max-megapixels", type=float, default=50, metavar="MP")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "float16", "bfloat16")
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_args()
    check_source(args)
    if not 1 <= args.port <= 65535:
        raise InputError(f"--port must be from 1 to 65535, got {args.port}")
    for option in ("max_upload_mb", "max_megapixels"):
        if not getattr(args, option) > 0:
            name = option.replace("_", "-")
            raise InputError(f"--{name} must be above 0, got {getattr(args, option):g}")
    for name in args.allow_host:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"--allow-host {name!r} is no name: give it as in the address bar, without http:// "
                "and port"
            )
    return args


def check_source(args: argparse.Namespace) -> None:
    """Either a training or what was exported of one.

    Raises:
        InputError: If it is neither, or both.
    """
    of_training = [name for name in ("config_file", "weights") if getattr(args, name)]
    if not args.exported and not of_training:
        raise InputError(
            "give --config-file or --weights: of a training, such as output/demo; or --exported"
        )
    given = [f"--{name.replace('_', '-')}" for name in of_training] + args.opts
    if args.exported and given:
        raise InputError(
            f"{', '.join(given)} cannot be given with --exported: an exported file has its weights "
            "and its config"
        )


def config_file_of(args: argparse.Namespace) -> str:
    """The config that is named, or the one that the training has left beside its weights."""
    if args.weights and args.weights.endswith(".safetensors"):
        raise InputError(
            f"{args.weights} is an exported file: give it with --exported, or with --weights the "
            "checkpoint of the training (.pth)"
        )
    if args.config_file:
        return args.config_file
    beside = Path(args.weights).parent / _CONFIG
    if not beside.is_file():
        raise InputError(f"there is no {beside}: give --config-file")
    return str(beside)


def table_of(folders: list[str]):
    """The results of the first sweep that is there, or None."""
    from snnet_vitdet.evaluation import StitchTable

    for folder in folders:
        if Path(folder, "sweep", "stitches.json").is_file():
            return StitchTable.read(folder)
    return None


def example_files(folder: str | None, config) -> list[str]:
    """Some images to start with: of the folder that is named, or of a config's test data."""
    from omegaconf.errors import OmegaConfBaseException

    from snnet_vitdet.deploy import image_files

    if folder is not None:
        return image_files(folder)[:_NUM_EXAMPLES]
    if config is None:
        return []
    try:
        return image_files(config.data.test_images)[:_NUM_EXAMPLES]
    except (InputError, OmegaConfBaseException):
        # The data of a training need not be here, and its config may leave them open.
        return []


def served_model(args: argparse.Namespace):
    """The model, loaded and run once, what it offers, how it is called, and its examples."""
    from snnet_vitdet.deploy import Predictor
    from snnet_vitdet.engine import load_config, set_float32_arithmetic
    from snnet_vitdet.modeling import stitch_costs

    from .answers import Answers
    from .choices import Choices
    from .detector import SharedDetector
    from .exported import ExportedStitches

    print("Loading the model …", flush=True)
    if args.exported:
        predictor = ExportedStitches(args.exported, args.device, args.precision)
        choices = Choices(predictor.stitches, predictor.costs, predictor.table)
        count = len(predictor.stitches)
        heading = f"{Path(args.exported).stem}: {count} exported detector{'s' * (count > 1)}"
        examples = example_files(args.examples, None)
    else:
        config = load_config(config_file_of(args), args.opts)
        set_float32_arithmetic(config.train.tf32)
        predictor = Predictor(config, args.weights, device=args.device, precision=args.precision)
        if not predictor.stitches:
            raise InputError("this model is a baseline: it has no stitches to choose from")
        beside = [os.path.dirname(args.weights) or "."] if args.weights else []
        table = table_of([*beside, config.train.output_dir])
        if table is not None:
            table.warn_unless_of(predictor.source, predictor.iterations)
        model_config = copy.deepcopy(config.model)
        model_config.roi_heads.num_classes = len(predictor.class_names)
        choices = Choices(predictor.stitches, stitch_costs(model_config), table)
        name = Path(config.train.output_dir).name
        heading = f"{name}: {len(predictor.stitches)} detectors in one model"
        examples = example_files(args.examples, config)
    detector = SharedDetector(predictor)
    detector.warm_up(predictor.stitches[0].id)
    return Answers(detector, choices, int(args.max_megapixels * 1e6)), heading, examples


def run(args: argparse.Namespace) -> None:
    """Serves the page until it is interrupted."""
    # gradio reports to its makers otherwise, from its import on.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from .page import build_page
        from .server import check_address, served
        from .uploads import private_uploads
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise InputError(
            "the page needs gradio: run python -m pip install -r requirements-demo.txt"
        ) from error
    check_address(args.host, args.port)
    answers, heading, examples = served_model(args)
    # A service is stopped by this signal: then, too, what was uploaded is deleted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with private_uploads():
        page = build_page(answers, heading, examples)
        with served(page, args.host, args.port, args.max_upload_mb, args.allow_host) as address:
            if args.host not in _LOCAL:
                print("Whoever reaches this machine can open the page: it asks for no password.")
            print(f"Open {address} in a browser; Ctrl-C ends.", flush=True)
            while True:
                time.sleep(3600)


def main() -> None:
    """Runs the program."""
    try:
        with exit_on_input_error():
            run(arguments())
    except KeyboardInterrupt:
        sys.stdout.write("\nEnded.\n")


if __name__ == "__main__":
    main()
