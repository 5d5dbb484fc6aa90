"""What the parts say of themselves, as findings."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from appliance.config import Config
from appliance.health import findings
from appliance.types import EngineStats, Ingestion, IngestionState, ModelState, Wall, Walls

if TYPE_CHECKING:
    from appliance.app import App


def tell(app: "App") -> None:
    """Make the monitor's findings those of this moment."""
    states = {f"models/{s.name}": s for s in map(app.encoders.told, app.router.statuses())}
    failed = {name: s.detail for name, s in states.items() if s.state is ModelState.FAILED}
    restarting = {name: s.detail for name, s in states.items() if s.state is ModelState.RESTARTING}
    refused = {f"models/{status.name}": status.detail for status in app.imports.statuses()}
    locked = {"sandbox": app.extractor.fault, "sandbox/volumes": app.volumes.fault}
    sandbox = {name: fault for name, fault in locked.items() if fault}
    damaged = {_place(name): why for name, why in app.libraries.damaged().items()}
    damaged |= app.ingest.damaged()
    waiting, stopped = _waiting(app.ingest.unended())
    app.monitor.set_of_tenants(findings.INGEST_WAITING, waiting)
    app.monitor.set_of_tenants(findings.INGEST_INTERRUPTED, stopped)
    app.monitor.set_of_tenants(findings.SOURCE_NOT_WATCHED, app.watcher.problems())
    scanner = {"clamd": app.ingest.scanner_fault} if app.ingest.scanner_fault else {}
    app.monitor.set(findings.SCANNER_UNAVAILABLE, scanner)
    app.monitor.set(findings.MODEL_FAILED, failed)
    app.monitor.set(findings.MODEL_RESTARTING, restarting)
    app.monitor.set(findings.MODEL_REFUSED, refused)
    demoted = {f"aliases/{name}": why for name, why in app.aliases.demoted().items()}
    app.monitor.set(findings.CANARY_DEMOTED, demoted)
    app.monitor.set(findings.ATTENTION_STOCK, _stock_attention(app.config, app.router.stats()))
    app.monitor.set(findings.KV_DISK_FAILING, _failing_caches(app.router.stats()))
    app.monitor.set(findings.SANDBOX_UNAVAILABLE, sandbox)
    app.monitor.set(findings.SANDBOX_WEAKENED, _missing_walls(app.extractor.walls) | _missing_walls(app.volumes.walls))
    app.monitor.set_of_tenants(findings.STORE_DAMAGED, damaged)


def walls(documents: Walls | None, sticks: Walls | None) -> Walls | None:
    """Those around what reads documents and what reads sticks, with the time of the older proof; None where none are.

    What is the same around both is told once; where one has no proven walls, a wall that does not stand says so.
    """
    parts = {"documents": documents, "sticks": sticks}
    proven = [part for part in parts.values() if part]
    unproven = (Wall(f"around {name}", False, True, "not proven") for name, part in parts.items() if not part)
    layers = dict.fromkeys((*(wall for part in proven for wall in part.layers), *unproven))
    return Walls(tuple(layers), min(part.proof_time for part in proven)) if proven else None


def _stock_attention(config: Config, engines: Mapping[str, EngineStats]) -> dict[str, str]:
    """Why engines compute attention by ggml's own kernels, where nobody asked for these."""
    whys = {f"models/{name}": stats.attention.partition("stock: ")[2] for name, stats in engines.items()}
    return {} if config.model_attention == "stock" else {name: why for name, why in whys.items() if why}


def _failing_caches(engines: Mapping[str, EngineStats]) -> dict[str, str]:
    """Why engines do not keep idle prefixes on disk, where they are to."""
    return {f"models/{name}": stats.disk_fault for name, stats in engines.items() if stats.disk_fault}


def _missing_walls(walls: Walls | None) -> dict[str, str]:
    """What is not there of the walls that a box can do without."""
    return {f"sandbox/{wall.name}": wall.detail for wall in walls.layers if not wall.stands} if walls else {}


def _waiting(ingestions: Sequence[Ingestion]) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """By tenant and name: those that wait for an approval, and why others stopped."""
    places = {(one.tenant, one.name): one for one in ingestions}
    stopped = (IngestionState.INTERRUPTED, IngestionState.FAILED)
    return (
        {place: f"{one.operator} began it." for place, one in places.items() if one.state is IngestionState.WAITING},
        {place: one.problem for place, one in places.items() if one.state in stopped},
    )


def _place(name: str) -> tuple[str, str]:
    """Tenant and resource name of what `Libraries.damaged` calls "tenant/collection"."""
    tenant, _, collection = name.partition("/")
    return tenant, f"collections/{collection}"
