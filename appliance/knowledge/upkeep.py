"""Long work on whole collections, as jobs: that every byte is whole, and vectors of another embedder."""

from appliance.errors import StoreDamaged
from appliance.knowledge.embedders import Embedders
from appliance.knowledge.libraries import Libraries
from appliance.ports import Jobs, Progress
from appliance.types import Fault, Job

MAX_KEPT = 200


class Upkeep:
    """Belongs to one event loop. The faults of a collection's last verification are kept in memory."""

    def __init__(self, libraries: Libraries, embedders: Embedders, jobs: Jobs) -> None:
        self._libraries, self._embedders, self._jobs = libraries, embedders, jobs
        self._faults: dict[tuple[str, str], tuple[Fault, ...]] = {}

    def verify(self, tenant: str, collection: str) -> Job:
        """Read and check every byte. The job fails with StoreDamaged where something is damaged. Raises NotFound."""
        library = self._libraries.of(tenant)
        library.require(collection)
        self.forget(tenant, collection)

        def work(progress: Progress) -> None:
            found = library.verify(collection, progress)
            self._keep((tenant, collection), found)
            if found:
                raise StoreDamaged(f"{len(found)} of the collection's files are damaged; first {found[0].file}.")

        return self._jobs.start_in_thread("verify", f"collections/{collection}", "files", work, tenant)

    def faults(self, tenant: str, collection: str) -> tuple[Fault, ...]:
        """What the last verification found. Raises NotFound."""
        self._libraries.of(tenant).require(collection)
        return self._faults.get((tenant, collection), ())

    def forget(self, tenant: str, collection: str) -> None:
        """What was found is of a collection that is no more, or is to be found anew. From any thread."""
        self._faults.pop((tenant, collection), None)

    def reembed(self, tenant: str, collection: str, model: str) -> Job:
        """Vectors of that embedder beside the present ones, then in their place. Raises NotFound."""
        library, embedder = self._libraries.of(tenant), self._embedders(model, "", background=True)
        library.require(collection)

        def work(progress: Progress) -> None:
            library.reembed(collection, model, embedder, progress)

        return self._jobs.start_in_thread("reembed", f"collections/{collection}", "passages", work, tenant)

    def _keep(self, key: tuple[str, str], found: tuple[Fault, ...]) -> None:
        self._faults.pop(key, None)
        self._faults[key] = found
        while len(self._faults) > MAX_KEPT:
            del self._faults[next(iter(self._faults))]
