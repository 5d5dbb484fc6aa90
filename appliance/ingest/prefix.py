"""Ids of random hex digits, of which people type the first few (as of git's objects)."""

from collections.abc import Iterable

from appliance.errors import InvalidArgument

LEAST = 4
"""Digits; fewer are no name, or what is unique today would not be tomorrow."""

_SHOWN = 3


def whole_id(given: str, ids: Iterable[str], what: str) -> str:
    """The one of `ids` that is `given`, or that alone begins so; `given` itself where none does. what: their plural.

    Raises InvalidArgument (`name`) where several begin so.
    """
    found = sorted(one for one in ids if one.startswith(given)) if len(given) >= LEAST else []
    if given in found or not found:
        return given
    if len(found) > 1:
        shown = ", ".join(found[:_SHOWN]) + ("" if len(found) <= _SHOWN else ", …")
        raise InvalidArgument.of("name", f"{given} begins {len(found)} {what}: {shown}. Give more of it.")
    return found[0]
