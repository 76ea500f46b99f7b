"""Sentences about a part of a data set: how many, which ones, and what to do."""

from collections.abc import Callable, Sequence

from snnet_vitdet.text import neutral

__all__ = ["about", "some"]

_EXAMPLES = 3
_LONGEST = 300
_SINGULAR = {"are": "is", "cannot": "cannot", "have": "has", "name": "names"}


def about(
    found: Sequence,
    total: int | str,
    things: str,
    predicate: str,
    remedy: str = "",
    *,
    describe: Callable[[object], object] | None = str,
    separator: str = ", ",
) -> str:
    """A sentence about some of many things.

    >>> about(["a.jpg", "b.jpg"], 7, "images", "are empty", "copy them again")
    '2 of 7 images are empty (a.jpg, b.jpg): copy them again.'

    Args:
        found: The things that the sentence is about.
        total: Number of all things.
        things: The noun for them, in the plural.
        predicate: The predicate in the plural; the verb becomes singular if one thing is found.
        remedy: What to do, or what follows.
        describe: Makes the text of an example; None shows no examples.
        separator: Text between examples.
    """
    verb, _, rest = predicate.partition(" ")
    verb = _SINGULAR[verb] if len(found) == 1 else verb
    examples = f" ({some(found, describe, separator)})" if describe else ""
    return f"{len(found)} of {total} {things} {verb} {rest}{examples}{': ' * bool(remedy)}{remedy}."


def some(items: Sequence, describe: Callable[[object], object] = str, separator: str = ", ") -> str:
    """The first three items, shortened and neutral, and the number of the others."""
    texts = [str(describe(item)) for item in items[:_EXAMPLES]]
    texts = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in texts]
    shown = separator.join(map(neutral, texts))
    return shown if len(items) <= _EXAMPLES else f"{shown} and {len(items) - _EXAMPLES} more"
