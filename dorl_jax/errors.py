"""The one exception that means: the input, not the program, is at fault."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input: a file, key or value that the user can mend.

    The message names what is wrong and what to do. The command line prints it without a traceback.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name nearest to `name`, or `""` if none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def name_some(items: Iterable[object], most: int = 5) -> str:
    """The items joined by commas, cut after `most` of them with the number left out."""
    listed = [str(item) for item in items]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")
