"""A page to try a trained model on, in the browser: drop an image, move the budget.

    python -m snnet_vitdet.demo --config-file output/my/config.yaml
    python -m snnet_vitdet.demo --weights output/my/model_final.pth

Only this machine can open it, unless --host says otherwise. Ctrl-C ends it.
"""

import argparse
import copy
import os
import signal
import sys
import time
from pathlib import Path

from snnet_vitdet.errors import InputError, exit_on_input_error

_CONFIG = "config.yaml"
_NUM_EXAMPLES = 6
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
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in, too")
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
    if not args.config_file and not args.weights:
        raise InputError("give --config-file or --weights: of a training, such as output/demo")
    if not 1 <= args.port <= 65535:
        raise InputError(f"--port must be from 1 to 65535, got {args.port}")
    for option in ("max_upload_mb", "max_megapixels"):
        if not getattr(args, option) > 0:
            name = option.replace("_", "-")
            raise InputError(f"--{name} must be above 0, got {getattr(args, option):g}")
    return args


def config_file_of(args: argparse.Namespace) -> str:
    """The config that is named, or the one that the training has left beside its weights."""
    if args.weights and args.weights.endswith(".safetensors"):
        raise InputError(
            f"{args.weights} has a single stitch, and the page is for choosing: give the "
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
    from snnet_vitdet.deploy import StitchTable

    for folder in folders:
        if Path(folder, "sweep", "stitches.json").is_file():
            return StitchTable.read(folder)
    return None


def example_files(folder: str | None, config) -> list[str]:
    """Some images to start with: of the folder that is named, or of the test data, if there."""
    from omegaconf.errors import OmegaConfBaseException

    from snnet_vitdet.deploy import image_files

    if folder is not None:
        return image_files(folder)[:_NUM_EXAMPLES]
    try:
        return image_files(config.data.test_images)[:_NUM_EXAMPLES]
    except (InputError, OmegaConfBaseException):
        # The data of a training need not be here, and its config may leave them open.
        return []


def answers_of(args: argparse.Namespace, config):
    """The model, loaded and run once, and what it offers."""
    from snnet_vitdet.deploy import Predictor
    from snnet_vitdet.modeling import stitch_costs

    from .answers import Answers
    from .choices import Choices
    from .detector import SharedDetector

    predictor = Predictor(config, args.weights, device=args.device, precision=args.precision)
    if not predictor.stitches:
        raise InputError("this model is a baseline: it has no stitches to choose from")
    beside = [os.path.dirname(args.weights) or "."] if args.weights else []
    table = table_of([*beside, config.train.output_dir])
    model_config = copy.deepcopy(config.model)
    model_config.roi_heads.num_classes = len(predictor.class_names)
    choices = Choices(predictor.stitches, stitch_costs(model_config), table)
    detector = SharedDetector(predictor)
    detector.warm_up()
    return Answers(detector, choices, int(args.max_megapixels * 1e6))


def run(args: argparse.Namespace) -> None:
    """Serves the page until it is interrupted."""
    config_file = config_file_of(args)
    # gradio reports to its makers otherwise, from its import on.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from .page import build_page
        from .server import check_address, private_uploads, served
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise InputError(
            "the page needs gradio: run python -m pip install -r requirements-demo.txt"
        ) from error
    from snnet_vitdet.engine import load_config

    config = load_config(config_file, args.opts)
    check_address(args.host, args.port)
    print("Loading the model …", flush=True)
    answers = answers_of(args, config)
    # A service is stopped by this signal: then, too, what was uploaded is deleted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    title = Path(config.train.output_dir).name
    with (
        private_uploads(),
        served(
            build_page(answers, title, example_files(args.examples, config)),
            args.host,
            args.port,
            args.max_upload_mb,
        ) as address,
    ):
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
