"""`appliance models top`: a table of the engines that changes as they do."""

from collections.abc import Mapping
from contextlib import suppress
from time import monotonic

from rich.live import Live
from rich.table import Table
from rich.text import Text

from appliance.cli import output
from appliance.cli.session import Session
from appliance.types import EngineStats

HEADINGS = ("model", "running", "waiting", "pages", "cached", "hits", "tokens/s", "requests", "attention")
Engines = Mapping[str, EngineStats]


def watch(session: Session) -> None:
    """Until Ctrl-C: a table that is redrawn, or one line of JSON an update where --json was given."""
    with session.connect() as client, client.watch_engines() as updates, suppress(KeyboardInterrupt):
        if session.json:
            for engines in updates:
                output.show_json({"engines": dict(engines)}, indent=None)
            return
        before, since = dict[str, EngineStats](), monotonic()
        with Live(console=output.console(), auto_refresh=False) as live:
            for engines in updates:
                now = monotonic()
                live.update(table(engines, before, now - since), refresh=True)
                before, since = dict(engines), now


def table(engines: Engines, before: Engines, seconds: float) -> Table:
    """One line a model; rates against what was `seconds` before."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        made.add_column(heading, justify="left" if heading in ("model", "attention") else "right")
    for name, now in sorted(engines.items()):
        old = before.get(name, now)
        tokens = max(0, now.generated_tokens_total - old.generated_tokens_total) / max(seconds, 1e-3)
        hits = now.cached_tokens_total / now.prompt_tokens_total if now.prompt_tokens_total else 0.0
        cells = (
            name,
            str(now.running),
            str(now.waiting),
            f"{now.pages_used}/{now.pages_total}",
            str(now.pages_cached),
            f"{hits:.0%}",
            f"{tokens:.1f}",
            str(now.requests_total),
            now.attention,
        )
        made.add_row(*(Text(output.printable(cell)) for cell in cells))
    return made
