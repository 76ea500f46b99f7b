"""Settings in a YAML file of anybody, read as plain values; nothing in it is called or can grow."""

import os
from collections.abc import Mapping

import yaml

__all__ = ["parse_yaml", "read_yaml"]

# The config of the paper has 10,000 bytes and 400 values.
_MOST_BYTES = 1_000_000
_MOST_VALUES = 100_000


def read_yaml(path: str) -> Mapping[str, object]:
    """Reads a file of settings.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none, or too large, with aliases written out.
    """
    if (size := os.path.getsize(path)) > _MOST_BYTES:
        raise ValueError(f"it has {size} bytes, of which {_MOST_BYTES} are read")
    with open(path, "rb") as file:
        return parse_yaml(file.read())


def parse_yaml(text: bytes) -> Mapping[str, object]:
    """Parses settings.

    Raises:
        ValueError: As for :func:`read_yaml`.
    """
    try:
        content = yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # All but the first are raised for scalars that are not what their tags say.
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(content, Mapping):
        raise ValueError("it holds no settings")
    # Aliases of aliases can stand for billions of values, or for themselves.
    left, nodes = _MOST_VALUES, [content]
    while nodes:
        node = nodes.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"it has more than {_MOST_VALUES} values, with aliases written out")
        if isinstance(node, Mapping):
            nodes.extend(node.values())
        elif isinstance(node, (list, tuple, set)):
            nodes.extend(node)
    return content


class _Loader(yaml.SafeLoader):
    """Calls nothing that a file names, unlike detectron2's loading of a config."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merges nothing: merges of merges can be billions, and no saved config has one."""


def _as_text(loader: yaml.Loader, suffix: str, node: yaml.Node) -> str:
    return yaml.serialize(node)


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _as_text)
