"""`appliance health`: what an administrator may have to know."""

from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import Session, command

if TYPE_CHECKING:
    from appliance.types import HealthReport, Walls

STYLES = {"OK": "green", "WARNING": "yellow", "CRITICAL": "bold red"}


def add_to(app: typer.Typer) -> None:
    command(app)(health)


def health(
    session: Session,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, with a report at each change.")] = False,
) -> None:
    """Show findings and what to do about them. Exit code 1 where one is critical."""
    from appliance.types import Severity

    with session.connect() as client:
        if not watch:
            report = client.health()
            _show(report, session.json, indent=2)
            if not session.json:
                _show_walls(client.status().walls)
            if report.severity is Severity.CRITICAL:
                raise typer.Exit(1)
            return
        with client.watch_health() as reports:
            for report in reports:
                _show(report, session.json, indent=None)


def _show(report: "HealthReport", as_json: bool, indent: int | None) -> None:
    from appliance.cli import output

    if as_json:
        return output.show_json(report, indent=indent)
    output.show(report.severity.name.lower(), STYLES[report.severity.name])
    for finding in report.findings:
        output.show(f"{finding.severity.name.lower()}: {finding.title}", STYLES[finding.severity.name])
        pairs = [("code", finding.code), ("subject", finding.subject), ("detail", finding.detail)]
        pairs += [("remedy", finding.remedy), ("since", output.time_text(finding.since))]
        output.show_fields([(f"  {name}", value) for name, value in pairs if value])
    return None


def _show_walls(walls: "Walls | None") -> None:
    from appliance.cli import output

    if walls is None:
        return output.show("around parsers: nothing is proven, so nothing is parsed", STYLES["CRITICAL"])
    output.show(f"around parsers, proven {output.time_text(walls.proof_time)}:")
    output.show_fields(
        [(f"  {wall.name}", wall.detail if wall.stands else f"MISSING: {wall.detail}") for wall in walls.layers]
    )
    return None
