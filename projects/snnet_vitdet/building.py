"""Parts of a config made into objects; whatever goes wrong with one is a sentence that names it."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from snnet_vitdet.errors import InputError, first_line

__all__ = ["build", "check_call", "located", "parameters_of", "told_as"]


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Turns what any library raises into an InputError that says what has failed.

    For single calls into code that is not ours, and whose errors are of any type.

    Args:
        what: As in "<what>: <cause>".

    Raises:
        InputError: If anything is raised.
    """
    try:
        yield
    except (InputError, InterpolationToMissingValueError):
        raise  # of what is left to the user, the program knows the remedy
    except Exception as error:
        cause = first_line(error).rstrip(":")
        if not isinstance(error, RuntimeError | TypeError | ValueError):
            cause = f"{type(error).__name__}: {cause}"  # which may be a single word
        raise InputError(f"{what}: {cause}") from error


def located(target: object) -> object:
    """What the ``_target_`` of a node names, or is.

    Raises:
        Exception: Whatever an import raises, if there is nothing of the name.
    """
    return locate(target) if isinstance(target, str) else target


def build(key: str, node: object) -> object:
    """Makes what a node of a config describes, as detectron2's ``instantiate`` does.

    Args:
        key: The node's name in the config.
        node: The node; it has a ``_target_``.

    Raises:
        InputError: If it cannot be made; names the innermost node that cannot, and the cause.
        InterpolationToMissingValueError: If it refers to what is still left to the user.
    """
    _check_node(key, node)
    try:
        return instantiate(node)
    except InterpolationToMissingValueError:
        raise
    except Exception as error:
        with suppress(OmegaConfBaseException):  # nodes that refer to what is not there
            for name, child in _nodes(key, node):
                build(name, child)
        if isinstance(error, InputError):
            raise InputError(f"{key}: {error}") from error
        with told_as(f"{key} cannot be built from its config"):
            raise error


def check_call(key: str, node: object) -> None:
    """Checks that what a node describes could be called, where to call it takes long.

    Args:
        key: The node's name in the config.
        node: The node; it has a ``_target_``.

    Raises:
        InputError: If there is no such callable, or it does not take what the node has.
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
    """The next nodes with a ``_target_`` inside one, with their names."""
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
    except Exception:  # of whatever an import runs; to build the node will say it
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in parameters.parameters.items() if p.kind in by_name}
