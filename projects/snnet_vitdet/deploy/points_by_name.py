"""Which operating points a loaded detector has, by their names."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.data import transforms as T

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import BASELINE
from snnet_vitdet.modeling import find_stitched_vit, most_proposals, trained_with
from snnet_vitdet.stitching import OperatingPoint, Stitch, split_point_name

from .loading import LoadedDetector

__all__ = ["ChosenPoint", "PointsByName"]


class ChosenPoint(NamedTuple):
    """A stitch, and its image size and number of proposals if they are not the training's.

    Attributes:
        stitch: The stitch; :data:`BASELINE` for a detector without stitches.
        operation: Image size and number of proposals; None as trained.
        name: Name of the operating point.
    """

    stitch: Stitch
    operation: tuple[int, int] | None
    name: str


class PointsByName:
    """Finds the operating points of a loaded detector, and how images are resized for them."""

    def __init__(self, loaded: LoadedDetector) -> None:
        """
        Args:
            loaded: The detector.
        """
        self._loaded = loaded
        self._backbone = find_stitched_vit(loaded.model)
        self._resizing: dict[int, Sequence[T.Augmentation]] = {}

    def find(self, point: int | str) -> ChosenPoint:
        """The point with a name, such as ``FS-3@640/300``, or the stitch with a name or an id.

        The detector must be running as it was trained.

        Raises:
            InputError: If the detector has no such point.
        """
        given, wanted = None, _id_or_name(point)
        if self._loaded.point and wanted == self._loaded.point:
            return self.with_operation(self._loaded.stitch or BASELINE, None)
        if isinstance(wanted, str):
            try:
                wanted, given = split_point_name(wanted)
            except ValueError as error:
                raise InputError(str(error)) from error
            wanted = _id_or_name(wanted)
        stitch = self._stitch(wanted)
        if self._loaded.point:
            raise InputError(
                f"the exported file has {self._loaded.point} alone: export {point}, too"
            )
        if given is None or given == (own := trained_with(self._loaded.model, stitch)):
            return self.with_operation(stitch, None)
        most = most_proposals(self._loaded.model, stitch)
        if not 0 < given[1] <= most:
            raise InputError(f"{point}: the RPN gives 1 to {most} proposals")
        if given[0] != own[0] and given[0] not in self._resizing:
            self._resizing[given[0]] = self._loaded.resizing_at(given[0])
        return self.with_operation(stitch, given)

    def _stitch(self, stitch: int | str) -> Stitch:
        if self._backbone is None:
            only = self._loaded.stitch or BASELINE
            if stitch in (only.id, only.name):
                return only
            if only is BASELINE:
                raise InputError("this model is a baseline: it has no stitches to choose from")
            raise InputError(
                f"the exported file has stitch {only.name} alone: export {stitch}, too"
            )
        space = self._backbone.space
        try:
            return space[stitch]
        except (IndexError, KeyError) as error:
            raise InputError(
                f"the model has no stitch {stitch!r}: ids are 0 to {len(space) - 1}, names are "
                f"such as {', '.join(stitch.name for stitch in list(space)[:3])}"
            ) from error

    def with_operation(self, stitch: Stitch, operation: tuple[int, int] | None) -> ChosenPoint:
        """The point of a stitch; arguments as for :class:`ChosenPoint`."""
        if operation is None:
            return ChosenPoint(stitch, None, self._loaded.point or stitch.name)
        return ChosenPoint(stitch, operation, OperatingPoint(stitch, *operation).name)

    def other_size(self, point: ChosenPoint) -> int | None:
        """The image size of a point; None for the training's own."""
        size = None if point.operation is None else point.operation[0]
        return size if size in self._resizing else None

    def augmentations(self, point: ChosenPoint) -> Sequence[T.Augmentation]:
        """The augmentations that resize images for a point."""
        return self._resizing.get(self.other_size(point), self._loaded.augmentations)


def _id_or_name(stitch: object) -> int | str:
    if isinstance(stitch, str):
        return int(stitch) if stitch.isdecimal() else stitch
    try:
        if not isinstance(stitch, bool):
            return operator.index(stitch)
    except TypeError:
        pass
    raise InputError(f"a stitch is chosen by its id or name, not by {stitch!r}")
