"""What a classifier is trained on, as tables and files call it: a laboratory, or all but one."""

from collections.abc import Sequence


def all_but(target: str) -> str:
    """The source that is every laboratory but the tested one."""
    return f"all but {target}"


def laboratories_of(source: str, laboratories: Sequence[str]) -> tuple[str, ...]:
    """The laboratories of a source; none where it is no source of these.

    Args:
      source: one of `laboratories`, or `all_but` one.
      laboratories: all there are.
    """
    if source in laboratories:
        return (source,)
    tested = [name for name in laboratories if all_but(name) == source]
    return tuple(name for name in laboratories if name not in tested) if tested else ()
