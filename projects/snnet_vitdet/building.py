"""Builds the objects that a config describes, with errors that name the part of the config."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from snnet_vitdet.errors import InputError, first_line

__all__ = ["build", "check_call", "located", "parameters_of", "told_as"]


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Turns any error of another library inside the context into an InputError.

    Args:
        what: What has failed; the message is "<what>: <cause>".

    Raises:
        InputError: If an error is raised.
    """
    try:
        yield
    except (InputError, InterpolationToMissingValueError):
        raise  # the second means a key that the user must give; the program asks for it
    except Exception as error:
        cause = first_line(error).rstrip(":")
        if not isinstance(error, RuntimeError | TypeError | ValueError):
            cause = f"{type(error).__name__}: {cause}"  # the cause may be a single word
        raise InputError(f"{what}: {cause}") from error


def located(target: object) -> object:
    """The object of a node's ``_target_``, which is the object itself or its name.

    Raises:
        Exception: Anything that importing the name raises.
    """
    return locate(target) if isinstance(target, str) else target


def build(key: str, node: object) -> Any:
    """Builds the object that a node of a config describes, with detectron2's ``instantiate``.

    Args:
        key: The node's name in the config.
        node: The node; it has a ``_target_``.

    Raises:
        InputError: If it cannot be built; names the innermost node that cannot, and the cause.
        InterpolationToMissingValueError: If it refers to a key that the user must give.
    """
    _check_node(key, node)
    try:
        return instantiate(node)
    except InterpolationToMissingValueError:
        raise
    except Exception as error:
        with suppress(OmegaConfBaseException):  # a node that refers to a missing key
            for name, child in _nodes(key, node):
                build(name, child)
        if isinstance(error, InputError):
            raise InputError(f"{key}: {error}") from error
        with told_as(f"{key} cannot be built from its config"):
            raise error


def check_call(key: str, node: object) -> None:
    """Checks that a node could be built, without building it.

    Args:
        key: The node's name in the config.
        node: The node; it has a ``_target_``.

    Raises:
        InputError: If there is no such callable, or it does not take the node's arguments.
    """
    _check_node(key, node)
    with told_as(f"{key} cannot be built from its config"):
        arguments = dict(node)
        target = arguments.pop("_target_")
        inspect.signature(located(target)).bind(**arguments)


def _check_node(key: str, node: object) -> None:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise InputError(
            f"{key} describes nothing that can be built: it must be a group with a _target_"
        )


def _nodes(key: str, node: object) -> Iterator[tuple[str, Mapping]]:
    """Yields name and node of the outermost nodes with a ``_target_`` inside a node."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for name, child in items:
        if isinstance(child, Mapping) and "_target_" in child:
            yield f"{key}.{name}", child
        elif isinstance(child, Sequence) and not isinstance(child, str):
            yield from _nodes(f"{key}.{name}", child)


def parameters_of(node: object) -> Mapping[str, inspect.Parameter]:
    """The parameters that the callable of a node takes by name; none if it cannot be found."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        return {}
    target = node["_target_"]
    try:
        parameters = inspect.signature(located(target))
    except Exception:  # an import runs any code; building the node reports its error
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in parameters.parameters.items() if p.kind in by_name}
