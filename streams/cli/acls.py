"""`tamiyo topics acls`: lists the permissions to grant on Kafka, for people, `kafka-acls.sh`, Strimzi or programs."""

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from tamiyo.schemas.display import narrow, write_json
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, examples

if TYPE_CHECKING:
    from tamiyo.streams.admin.acls import Grant

EPILOG = examples(
    "tamiyo topics acls",
    "tamiyo topics acls --role learner --check",
    "tamiyo topics acls --role intake --format commands | while read -r acl; do "
    'eval kafka-acls.sh --bootstrap-server kafka:9092 "$acl"; done',
    "tamiyo topics acls --format strimzi --principal 'User:tamiyo-{role}' --cluster kafka | kubectl apply -f -",
)


class Format(StrEnum):
    """Output format of the list."""

    TABLE = "table"
    COMMANDS = "commands"
    STRIMZI = "strimzi"
    JSON = "json"


def acls(
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE",
            autocompletion=options.complete_roles,
            help="A stage, learner, host, operator or reader; repeat for several. [default: all]",
        ),
    ] = None,
    format: Annotated[
        Format,
        typer.Option(
            help="Output format; commands are arguments of kafka-acls.sh, strimzi are its KafkaUser resources."
        ),
    ] = Format.TABLE,
    principal: Annotated[
        str, typer.Option(help="Principal to grant them to; {role} stands for the role.")
    ] = "User:{role}",
    cluster: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the Kafka resource, for --format strimzi.")
    ] = "kafka",
    as_json: AsJson = False,
    check: Annotated[bool, typer.Option("--check", help="List only those that this user lacks.")] = False,
    bootstrap: Annotated[
        str | None,
        typer.Option(
            "--bootstrap-servers",
            "-b",
            metavar="HOST:PORT",
            help="Kafka broker for --check. [env: TAMIYO_KAFKA_BOOTSTRAP_SERVERS]",
        ),
    ] = None,
) -> None:
    """List the permissions that each process needs on Kafka, and no others.

    Needs a broker only for --check, which exits with status 1 if some are missing.
    """
    from tamiyo.streams.admin.acls import ROLES, grants, kafka_user, missing

    if any(character in principal for character in "'\n\\") or not principal.partition(":")[2]:
        raise ConfigurationError(f"--principal {principal!r} must be like User:{{role}}, without quotes")
    names, console = options.names(), Console()
    format = Format.JSON if as_json else format
    wanted = {each: grants(each, names) for each in dict.fromkeys(role or ROLES)}
    if check:
        kafka = options.connected_kafka(bootstrap)
        wanted = {each: missing(listed, kafka) for each, listed in wanted.items()}
    rows = [(each, principal.replace("{role}", each), grant) for each, listed in wanted.items() for grant in listed]
    if format is Format.JSON:
        write_json([{"role": each, "principal": who, **asdict(grant)} for each, who, grant in rows])
    elif format is Format.STRIMZI:
        import yaml

        users = [
            kafka_user(principal.partition(":")[2].replace("{role}", each), cluster, listed)
            for each, listed in wanted.items()
            if listed
        ]
        print(yaml.safe_dump_all(users, sort_keys=False, width=160), end="")
    elif format is Format.COMMANDS:
        for _, who, grant in rows:
            print(grant.command(who))
    elif rows:
        console.print(_table([(each, grant) for each, _, grant in rows]))
    if check and rows:
        raise typer.Exit(1)
    if check and format is Format.TABLE:
        console.print("no permission is missing")


def _table(rows: "list[tuple[str, Grant]]") -> Table:
    table = Table("role", "operation", "on")
    table.add_column("name", overflow="fold")
    for role, grant in rows:
        table.add_row(role, grant.operation, grant.kind, grant.name)
    return narrow(table)
