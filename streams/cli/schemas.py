"""`tamiyo schemas`: the wire contracts in a schema registry."""

from typing import Annotated, Any

import typer
from rich.console import Console

from tamiyo.schemas.display import write_json
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, examples

app = typer.Typer(
    no_args_is_help=True,
    help="Register the schemas in a schema registry, and check them.",
    epilog=examples("tamiyo schemas register", "tamiyo schemas check"),
)
console = Console()

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The registry's Confluent API. [env: TAMIYO_REGISTRY_URL]"),
]


def _registry(url: str | None) -> Any:
    from tamiyo.schemas.client.registry import Registry, RegistrySettings

    return Registry(RegistrySettings() if url is None else RegistrySettings(url=url))


@app.command(
    epilog=examples("tamiyo schemas register", "tamiyo schemas register --url http://registry:8080/apis/ccompat/v7")
)
def register(url: Url = None, as_json: AsJson = False) -> None:
    """Register every topic's schema as `<topic>-value` under BACKWARD_TRANSITIVE.

    Registered schemas stay as they are. Exit status 1 if the registry refuses one.
    """
    from tamiyo.schemas.kafka import TopicNames
    from tamiyo.streams.admin import schema_registry

    rows = []
    with options.resumable("give the command again: what is registered stays as it is"):
        for subject, number in schema_registry.register(_registry(url), TopicNames()):
            rows.append({"subject": subject, "schema": number})
            if not as_json:
                console.print(f"{subject}: schema {number}", highlight=False, soft_wrap=True)
    if as_json:
        write_json(rows)


@app.command(epilog=examples("tamiyo schemas check && echo fine", "tamiyo schemas check --json"))
def check(url: Url = None, as_json: AsJson = False) -> None:
    """Compare the registry's subjects with the catalogue, without changes. Exit status 1 if they differ."""
    from tamiyo.schemas.kafka import TopicNames
    from tamiyo.streams.admin import schema_registry

    found = list(schema_registry.problems(_registry(url), TopicNames()))
    if as_json:
        write_json({"problems": found})
    else:
        for problem in found:
            console.print(problem, highlight=False, soft_wrap=True)
        console.print("all schemas match the catalogue" if not found else f"{len(found)} problems")
    if found:
        raise typer.Exit(1)
