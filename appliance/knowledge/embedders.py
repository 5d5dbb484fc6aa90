"""Which embedder a collection's vectors are of."""

from collections.abc import Callable

from appliance.errors import EmbedderChanged
from appliance.ports import Embedder

Embedders = Callable[[str, str], Embedder]
"""The embedder of that model name, '' for the built-in one, and that identity, '' for the one that there is.

Raises EmbedderChanged where the box has none such.
"""


def built_in(embedder: Embedder) -> Embedders:
    """A box that has no other."""

    def choose(name: str, identity: str) -> Embedder:
        if not name and identity in ("", embedder.identity):
            return embedder
        raise EmbedderChanged(
            f"The vectors are of embedder {name or 'built-in'} {identity[:16]}; the box has"
            f" {embedder.identity[:16]}, {embedder.dimension} dimensions."
        )

    return choose
