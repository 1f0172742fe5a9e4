"""Names of columns where another tool knows fewer of them apart."""

from collections.abc import Callable, Collection, Sequence


def distinct_names(
    names: Sequence[str], taken: Collection[str] = (), fold: Callable[[str], str] = str.lower
) -> list[str]:
    """The names, with `_1`, `_2`, ... behind those that are like one before them or like one that is taken.

    Args:
      names: all different; "id" keeps its name whatever else there is, and "" is called "column".
      taken: what none may be like.
      fold: names are alike of which this gives the same.
    """
    seen = {fold(name) for name in (*taken, "id")}
    found = []
    for name in names:
        plain = new = name or "column"
        number = 0
        while name != "id" and fold(new) in seen:
            number += 1
            new = f"{plain}_{number}"
        seen.add(fold(new))
        found.append(new)
    return found
