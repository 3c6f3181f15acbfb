"""`tamiyo schemas`: the wire contracts in a schema registry."""

from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Register the schemas with a registry, and check them.")
console = Console()

Url = Annotated[str | None, typer.Option("--url", help="Of the registry's Confluent API [env: TAMIYO_REGISTRY_URL]")]


def _registry(url: str | None) -> Any:
    from tamiyo.schemas.registry import Registry, RegistrySettings

    return Registry(RegistrySettings() if url is None else RegistrySettings(url=url))


@app.command(
    epilog="Examples: `tamiyo schemas register` · `tamiyo schemas register --url http://registry:8080/apis/ccompat/v7`"
)
def register(url: Url = None) -> None:
    """Register what is new of every topic's schema, as `<topic>-value` under BACKWARD_TRANSITIVE; exit 1 if refused."""
    from tamiyo.schemas.kafka import TopicNames
    from tamiyo.streams.admin import schema_registry as registry

    for subject, number in registry.register(_registry(url), TopicNames()):
        console.print(f"{subject}: schema {number}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: `tamiyo schemas check && echo fine`")
def check(url: Url = None) -> None:
    """Compare the registry's subjects with the catalogue, changing nothing; exit 1 where they differ."""
    from tamiyo.schemas.kafka import TopicNames
    from tamiyo.streams.admin import schema_registry as registry

    found = list(registry.problems(_registry(url), TopicNames()))
    for problem in found:
        console.print(problem, highlight=False, soft_wrap=True)
    console.print("schemas are registered as the catalogue says" if not found else f"{len(found)} problems")
    if found:
        raise typer.Exit(1)
