"""A page to try a trained model on, in the browser: drop an image, move the budget.

    python -m snnet_vitdet.demo --config-file output/my/config.yaml
    python -m snnet_vitdet.demo --weights output/my/model_final.pth
    python -m snnet_vitdet.demo --exported output/my/export

Only this machine can open it, unless --host says otherwise. Ctrl-C ends it.
"""

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from snnet_vitdet.errors import InputError, exit_on_input_error

_CONFIG = "config.yaml"
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
        help="files of tools/export_stitch.py in place of a training: they run no code",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which others call this page, such as a proxy's; can be repeated",
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
    """Refuses a command line that names neither a training nor an export, or both."""
    of_training = [name for name in ("config_file", "weights") if getattr(args, name)]
    if not args.exported and not of_training:
        raise InputError(
            "give --config-file or --weights of a training, such as output/demo, or --exported"
        )
    given = [f"--{name.replace('_', '-')}" for name in of_training] + args.opts
    if args.exported and given:
        raise InputError(
            f"{', '.join(given)} cannot be given with --exported: an exported file has its weights "
            "and its config"
        )


def config_file_of(args: argparse.Namespace) -> str:
    """Returns the named config, or the one beside the weights."""
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


def served_model(args: argparse.Namespace):
    """Loads the model; returns the page's answers, heading and examples."""
    from .models import from_exports, from_training

    print("Loading the model …", flush=True)
    if args.exported:
        answers, heading, examples = from_exports(args)
    else:
        answers, heading, examples = from_training(config_file_of(args), args)
    answers.warm_up()
    return answers, heading, examples


def run(args: argparse.Namespace) -> None:
    """Serves the page until it is interrupted."""
    # Otherwise gradio sends reports to its makers, from its import on.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from .page import LOOK, build_page
        from .server import check_address, private_uploads, served
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise InputError(
            "the page needs gradio: run python -m pip install -r requirements-demo.txt"
        ) from error
    check_address(args.host, args.port)
    answers, heading, examples = served_model(args)
    # Services are stopped by this signal: uploads are deleted then, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with private_uploads():
        page = build_page(answers, heading, examples)
        options = (args.host, args.port, args.max_upload_mb, args.allow_host)
        with served(page, *options, **LOOK) as address:
            if args.host not in _LOCAL:
                print("Anyone who can reach this machine can open the page: it has no password.")
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
