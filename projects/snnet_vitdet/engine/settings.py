"""The settings of this project: their types, defaults, ranges and meanings.

``data``, ``init``, ``sweep`` and ``train`` of a config have the fields of the dataclasses below. A
config file begins with ``as_config(TrainSettings())`` and changes what differs; what it lacks has
its default. The other parts of a config are arguments of detectron2's and torch's objects.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from omegaconf import DictConfig, OmegaConf, open_dict

from snnet_vitdet.errors import InputError
from snnet_vitdet.validators import (
    FLAG,
    PATH,
    STITCHES,
    TEXT,
    Validator,
    check,
    number,
    one_of,
    or_null,
    several,
    whole,
)

__all__ = [
    "DEFAULTS",
    "GROUPS",
    "HIGHEST_SEED",
    "LEFT_TO_USER",
    "OWN_VALIDATORS",
    "SEED",
    "SIDE",
    "Config",
    "DataSettings",
    "InitSettings",
    "Settings",
    "SweepSettings",
    "TrainSettings",
    "add_defaults",
    "as_config",
    "settings_of",
]

HIGHEST_SEED = 2**32 - 1
"""The highest seed that numpy takes."""
SEED = whole(0, HIGHEST_SEED)
SIDE = whole(32, 16384)
"""Sides of images: smaller ones have hardly a patch, and no memory holds larger ones."""
LEFT_TO_USER = "???"
"""OmegaConf's mark of a value that the user must give."""

FilePath = Annotated[str, PATH]
Side = Annotated[int, SIDE]
Sides = Annotated[list, several(SIDE)]
DrawnSides = Annotated[list, several(SIDE, repeated=True)]
Counts = Annotated[list, several(whole(1, 100_000))]
Stitches = Annotated[str | int | list, STITCHES]
# A file or a name for each ViT.
Sources = dict[str, str | None]


def _setting(default: object, meaning: str, *, optional: bool = False, **limits: object) -> Any:
    """A field with its default, its meaning in one line, and the limits of its number.

    A config does not have the key of an optional setting that is not set.
    """
    metadata = {"meaning": meaning, "optional": optional, "limits": limits}
    return field(default=default, metadata=metadata)


class Settings:
    """A group of settings, checked when it is made.

    Attributes:
        key: The name of the group in a config.
    """

    key: ClassVar[str]

    def __init_subclass__(cls, key: str) -> None:
        cls.key = key

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if validator := _validator(item):
                check(f"{self.key}.{item.name}", value, validator)


@dataclass
class DataSettings(Settings, key="data"):
    """Data in COCO format, by path."""

    train_json: FilePath = _setting(LEFT_TO_USER, "COCO-format annotations of the training images")
    train_images: FilePath = _setting(LEFT_TO_USER, "folder of the file names in `train_json`")
    test_json: FilePath = _setting(
        LEFT_TO_USER, "annotations of the test images, with the same classes"
    )
    test_images: FilePath = _setting(LEFT_TO_USER, "folder of the file names in `test_json`")
    image_size: Side = _setting(1024, "side of the square that images are cropped or padded to")
    masks: Literal["auto", True, False] = _setting(
        True, "`false`: boxes alone; `auto`: [as the data allow](data.md#masks-or-boxes-alone)"
    )
    check: bool = _setting(True, "check annotation files and image paths before anything starts")
    prepare: dict | None = _setting(None, "a call that makes the data first", optional=True)


@dataclass
class InitSettings(Settings, key="init"):
    """The weights that a training starts from."""

    weights: Sources | None = _setting(
        None,
        "by ViT (`small`, `large`, or `net` of a baseline): weights to load",
        optional=True,
    )
    detectors: Sources | None = _setting(
        None, "by ViT (`small`, `large`): the detectors to [join](join.md)", optional=True
    )
    stitching_layers: Literal["least_squares", "random"] = _setting(
        "least_squares", "how the stitching layers start: fitted, or random"
    )
    num_images: int = _setting(100, "training images for the fit, over all processes", lowest=1)


@dataclass
class SweepSettings(Settings, key="sweep"):
    """What ``--eval-only`` evaluates."""

    stitch_ids: Stitches = _setting(
        "all", "`all`, `anchors`, or ids, ranges, kinds and names: `'0-12,40,SFS,FS-3'`"
    )
    image_sizes: Sides | None = _setting(
        None, "sides to pad images to, multiples of the patch size; `null`: `data.image_size`"
    )
    proposals: Counts | None = _setting(
        None, "numbers of proposals for the box head; `null`: the model's own"
    )
    padding: Literal["square", "tight"] = _setting(
        "square", "pad images to the square, or only [what is needed](points.md#tight-padding)"
    )
    aspect_ratio: float = _setting(
        1.333, "longer over shorter side of the image that `tight` costs are counted for", lowest=1
    )
    mode: Literal["one_pass", "separate"] = _setting(
        "one_pass", "each image through all stitches in turn, or one stitch after another"
    )
    batch_size: int = _setting(
        1, "above 1: so many images at once; APs then differ [by rounding](#speed)", lowest=1
    )
    subset: int = _setting(
        0, "above 0: score all stitches on this many images, then the best on all images", lowest=0
    )
    precision: Literal["float32", "float16", "bfloat16"] = _setting(
        "float32", "below float32, autocast on a GPU: faster, with slightly other APs"
    )
    scoring_workers: int | None = _setting(
        None,
        "processes that score the points, about 1 GB each; `null`: by cores, at most 8",
        lowest=1,
    )
    averaged: bool = _setting(True, "take the moving average of the weights, where there is one")
    overwrite: bool = _setting(False, "replace the results of an earlier sweep, else refused")
    at_initialisation: bool = _setting(False, "sweep what `init` gives, without a checkpoint")


@dataclass
class AmpSettings(Settings, key="train.amp"):
    """Mixed precision."""

    enabled: bool = _setting(True, "mixed precision on a GPU")
    precision: Literal["auto", "float16", "bfloat16"] = _setting(
        "auto", "float16 has a loss scale; `auto` is bfloat16 where the GPU has it"
    )


@dataclass
class DdpSettings(Settings, key="train.ddp"):
    """Arguments of torch's DistributedDataParallel; it takes more."""

    broadcast_buffers: bool = _setting(False, "send the first process's buffers to the others")
    # An iteration runs one stitch; the blocks and stitching layers of others have no gradient.
    find_unused_parameters: bool = _setting(True, "needed for stitches and frozen ViTs")
    fp16_compression: bool = _setting(True, "exchange gradients in the type of mixed precision")
    gradient_as_bucket_view: bool = _setting(
        True, "gradients stay in the buckets of their exchange: this saves memory and a copy"
    )
    skip_all_reduce_unused_params: bool = _setting(
        True, "if all train the same stitch, exchange only buckets with parts that it runs"
    )


@dataclass
class CheckpointerSettings(Settings, key="train.checkpointer"):
    """Arguments of detectron2's PeriodicCheckpointer."""

    period: int = _setting(5000, "iterations between checkpoints", lowest=1)
    max_to_keep: int | None = _setting(100, "how many to keep, `null` for all", lowest=1)


@dataclass
class AccumulationSettings(Settings, key="train.accumulation"):
    """Gradient accumulation."""

    steps: int = _setting(1, "micro-batches of an iteration in each process", lowest=1)
    stitch: Literal["own", "same"] = _setting(
        "own", "each micro-batch draws its own, or all share one"
    )


@dataclass
class EndsSettings(Settings, key="train.ends"):
    """Stitches that take turns with those of the sampler; null is off, as in the paper."""

    period: int = _setting(
        0, "draw each of these stitches once in this many draws; 0: off", lowest=0
    )
    first: int = _setting(0, "iterations at the start that train these stitches alone", lowest=0)
    stitches: Stitches = _setting("S,L", "which stitches, as in `sweep.stitch_ids`")


@dataclass
class DistillationSettings(Settings, key="train.distillation"):
    """The largest stitch teaches the one that is trained; null is off, as in the paper."""

    weight: float = _setting(0.0, "weight of the loss on pyramid features; 0: off", lowest=0)
    rpn_weight: float = _setting(0.0, "weight of the loss on RPN outputs; 0: off", lowest=0)
    every: int = _setting(1, "distil in the iterations that this divides", lowest=1)


@dataclass
class TrainSettings(Settings, key="train"):
    """How to train."""

    output_dir: FilePath = _setting("./output", "folder of all that a training writes")
    init_checkpoint: str | None = _setting("", "a detector to start from, or to sweep")
    device: str = _setting("auto", "`cuda`, `cpu`, or `auto`: the GPU where there is one")
    seed: Annotated[int, SEED] = _setting(0, "fixes everything that is random")
    max_iter: int = _setting(90000, "iterations; the schedule is in fractions of it", lowest=0)
    eval_period: int = _setting(5000, "iterations between evaluations; 0: one at the end", lowest=0)
    eval_stitches: Stitches = _setting("anchors", "what these evaluate, as `sweep.stitch_ids`")
    image_sizes: DrawnSides | None = _setting(
        None, "[each iteration](points.md#train-over-sizes) draws one; `null`: `data.image_size`"
    )
    log_period: int = _setting(20, "iterations between lines of the log", lowest=1)
    # torch's own default is TF32 for convolutions alone.
    tf32: bool = _setting(False, "on a GPU, multiply float32 with the 10 bits of TF32")
    compile: bool = _setting(
        False, "[compile the blocks](#compiled-blocks) of the ViTs by `torch.compile`"
    )
    clip_grad_norm: float | None = _setting(None, "largest norm of the gradient, if any", above=0)
    ema_decay: float = _setting(
        0.0, "above 0: decay of [an average](#a-moving-average-of-the-weights)", lowest=0, below=1
    )
    stitch_scope: Literal["shared", "process"] = _setting(
        "shared", "all processes train the same stitch, or each draws its own"
    )
    reference_batch_size: int | None = _setting(
        None, "images an iteration that the schedule is [written for](#one-gpu)", lowest=1
    )
    freeze_anchors: int = _setting(0, "iterations at the start with frozen ViTs", lowest=0)
    rehearsal: bool = _setting(
        True,
        "on a GPU, first check that the largest stitch fits; with `image_sizes`, measure its step",
    )
    amp: AmpSettings = field(default_factory=AmpSettings)
    ddp: DdpSettings = field(default_factory=DdpSettings)
    checkpointer: CheckpointerSettings = field(default_factory=CheckpointerSettings)
    accumulation: AccumulationSettings = field(default_factory=AccumulationSettings)
    ends: EndsSettings = field(default_factory=EndsSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)


@dataclass
class Config:
    """The type of a whole config in annotations: its nodes have these attributes."""

    data: DataSettings
    init: InitSettings
    sweep: SweepSettings
    train: TrainSettings
    dataloader: Any
    lr_multiplier: Any
    model: Any
    optimizer: Any
    sampler: Any


GROUPS = (DataSettings, InitSettings, SweepSettings, TrainSettings)
_OFF_BY_NULL = (EndsSettings.key, DistillationSettings.key)
_TYPES = {bool: lambda: FLAG, int: whole, float: number, str: lambda: TEXT}


def settings_of(group: type[Settings]) -> Iterator[tuple[str, Field]]:
    """Yields dotted name and field of every setting of a group and of the groups in it."""
    for item in fields(group):
        if item.default_factory is not MISSING:
            yield from settings_of(item.default_factory)
        else:
            yield f"{group.key}.{item.name}", item


def _validator(item: Field) -> Validator | None:
    """The validator of a field's type; None of a group."""

    def of_type(annotation: Any) -> Validator:
        if get_origin(annotation) is Annotated:
            return annotation.__metadata__[0]
        if get_origin(annotation) is Literal:
            return one_of(*get_args(annotation))
        if type(None) in get_args(annotation):
            return or_null(of_type(get_args(annotation)[0]))
        return _TYPES[annotation](**item.metadata["limits"])

    is_group = item.default_factory is not MISSING or item.metadata["optional"]
    return None if is_group else of_type(item.type)


_SETTINGS = [setting for group in GROUPS for setting in settings_of(group)]

OWN_VALIDATORS = {key: validator for key, item in _SETTINGS if (validator := _validator(item))}
"""The validator of every setting of this project that is not a group."""

DEFAULTS = {key: item.default for key, item in _SETTINGS if not item.metadata["optional"]}
"""The value of each key that a config lacks, such as one of an earlier version."""


def as_config(settings: Settings) -> DictConfig:
    """Returns settings as a node of a config.

    It is a plain node. A structured one of OmegaConf would refuse the keys that a user adds, and
    detectron2 would save it as a Python object instead of readable YAML.
    """
    content = {
        item.name: as_config(value) if isinstance(value, Settings) else value
        for item in fields(settings)
        if (value := getattr(settings, item.name)) is not None or not item.metadata["optional"]
    }
    return DictConfig(content, flags={"allow_objects": True})


def add_defaults(config: DictConfig) -> None:
    """Gives the settings that a config lacks their defaults, in place.

    Other keys in the groups are a user's own, unless they are nearly the name of a setting.

    Raises:
        InputError: For a misspelt setting, whose default would otherwise be used.
    """
    for group in GROUPS:
        defaults = OmegaConf.to_container(as_config(group()))
        if isinstance(config.get(group.key), DictConfig):
            optional = [item.name for item in fields(group)]
            _check_spelling(config[group.key], [*defaults, *optional], defaults, group.key)
        _add_default(config, group.key, defaults, group.key)


def _check_spelling(
    node: DictConfig, names: Sequence[str], defaults: Mapping[str, object], path: str
) -> None:
    for key in node.keys():  # noqa: SIM118 (a value may be missing or refer to other keys)
        name = str(key)
        if name not in names and (near := get_close_matches(name, names, n=1, cutoff=0.8)):
            raise InputError(f"{path}.{name} is not a setting: did you mean {path}.{near[0]}?")
        default = defaults.get(name)
        refers = OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)
        if isinstance(default, Mapping) and not refers and isinstance(node[key], DictConfig):
            _check_spelling(node[key], list(default), default, f"{path}.{name}")


def _add_default(node: DictConfig, name: str, default: object, key: str) -> None:
    # "in" does not see a key that is left to the user.
    is_there = name in node.keys()  # noqa: SIM118
    if OmegaConf.is_interpolation(node, name) or (is_there and not isinstance(default, Mapping)):
        return
    value = node[name] if is_there else None
    if not is_there or (value is None and key in _OFF_BY_NULL):
        with open_dict(node):
            node[name] = default
    elif isinstance(value, DictConfig):
        for child in default:
            _add_default(value, child, default[child], f"{key}.{child}")
