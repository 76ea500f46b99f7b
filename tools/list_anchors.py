#!/usr/bin/env python
"""Lists timm's plain ViTs that can be anchors, and why the others cannot; or describes one.

    python tools/list_anchors.py
    python tools/list_anchors.py vit_base_patch14_dinov2.lvd142m

Given a name, prints what an anchor of its weights is, as overrides. Needs neither network nor
weights: the models are built without memory (torch's meta device).
"""

import argparse

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from snnet_vitdet.errors import InputError, exit_on_input_error
from snnet_vitdet.modeling import anchor_arguments, plain_vit_names


def describe(name, anchor):
    """The overrides that make an anchor fit the weights of a timm model."""
    arguments = {"global_block_indexes": None, **anchor_arguments(name)}
    print(f"init.weights.{anchor}={name}")
    for key, value in arguments.items():
        written = "null" if value is None else str(value).replace("(", "[").replace(")", "]")
        print(f"model.backbone.net.{anchor}.{key}={written.replace(' ', '')}")


def list_all():
    """Every model with its answer, refused ones by reason."""
    refused = {}
    for name in plain_vit_names():
        try:
            arguments = anchor_arguments(name)
        except InputError as error:
            refused.setdefault(str(error).partition(": ")[2], []).append(name)
            continue
        sizes = "width {embed_dim}, depth {depth}, heads {num_heads}, patch {pretrain_patch_size}"
        print(f"{name}: {sizes.format(**arguments)}")
    for reason, names in refused.items():
        print(f"\nNot these, because {reason}:\n  {', '.join(names)}")


def main():
    """Prints the list or the description."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="a timm name, with its tag for the weights")
    parser.add_argument(
        "--anchor", choices=("small", "large"), default="small", help="whose overrides to print"
    )
    args = parser.parse_args()
    if args.name is None:
        list_all()
        return
    with exit_on_input_error():
        describe(args.name, args.anchor)


if __name__ == "__main__":
    main()
