"""`tamiyo evaluate`: a policy judged from logged experiences.

A plug-in of the `tamiyo` command, which loads it through the entry points `tamiyo.commands`.
"""

from dataclasses import replace
from typing import Annotated

import typer

from tamiyo.evaluation.lab.cli import examples
from tamiyo.evaluation.lab.cli.arguments import JsonOption
from tamiyo.schemas.errors import ConfigurationError

TOO_LITTLE_SUPPORT = 3
"""Exit status without a verdict; 1 and 2 are those of every command."""

INCOMPLETE = (
    "{:,} decisions with incomplete rewards are left out. Adaptations complete later than no_op, so the log lacks "
    "adaptations: use finished runs, or --incomplete"
)

app = typer.Typer()

PolicyOption = Annotated[
    str,
    typer.Option("--policy", metavar="FILE|NAME", help="Checkpoint to judge, or `builtin`, `heuristic` or `never`."),
]
AgainstOption = Annotated[
    str,
    typer.Option(
        "--against",
        metavar="FILE|NAME",
        help="Checkpoint to compare with, or `builtin`, `heuristic`, `never`, or `logged`: what made the decisions.",
    ),
]
ExperienceOption = Annotated[
    str,
    typer.Option(
        "--experience", metavar="SOURCE", help="A recording's folder, one of its files, or topic `tamiyo.experience`."
    ),
]
IncompleteOption = Annotated[
    bool, typer.Option("--incomplete", help="Count decisions whose reward may still change, too.")
]
EffectiveOption = Annotated[
    float, typer.Option(min=1, max=1e9, metavar="N", help="Lowest effective sample size for a verdict.")
]
RunsOption = Annotated[
    float, typer.Option(min=2, max=1e9, metavar="N", help="Lowest effective number of runs for a verdict.")
]
CoveredOption = Annotated[
    float,
    typer.Option(min=0, max=1, metavar="SHARE", help="Lowest share of a policy's probability on covered actions."),
]
LimitOption = Annotated[
    float, typer.Option(min=1, max=1e9, metavar="W", help="Importance weight up to which an action counts as covered.")
]
BootstrapOption = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        "-b",
        metavar="HOST:PORT",
        help="Kafka broker; several separated by commas. [env: TAMIYO_KAFKA_BOOTSTRAP_SERVERS]",
    ),
]


@app.command(
    epilog=examples(
        "tamiyo evaluate --policy policy-000012.safetensors --experience recordings/monday",
        "tamiyo evaluate --policy policy-000012.safetensors --against heuristic --experience tamiyo.experience",
        "tamiyo evaluate --policy never --experience recordings/monday --json",
    )
)
def evaluate(
    policy: PolicyOption,
    experience: ExperienceOption,
    against: AgainstOption = "logged",
    incomplete: IncompleteOption = False,
    min_effective: EffectiveOption = 50.0,
    min_runs: RunsOption = 20.0,
    min_covered: CoveredOption = 0.9,
    weight_limit: LimitOption = 50.0,
    as_json: JsonOption = False,
    bootstrap: BootstrapOption = None,
) -> None:
    """Judge a policy offline: what would it have earned in the logged decisions of another?

    Estimates the mean reward per decision by IPS, SNIPS, the direct method and the doubly robust estimator, with 95 %
    bootstrap intervals over runs. The verdict follows the doubly robust one.

    Exit status 0: a verdict (better, worse, or no difference shown). 3: too little support for one. 1: wrong input.
    """
    import torch

    from tamiyo.evaluation.lab.cli.output import progress_bar
    from tamiyo.evaluation.offline import output
    from tamiyo.evaluation.offline.decisions import logged_decisions
    from tamiyo.evaluation.offline.experiences import current, encoded_experiences
    from tamiyo.evaluation.offline.policies import target_policy
    from tamiyo.evaluation.offline.support import Thresholds
    from tamiyo.evaluation.offline.verdict import Status
    from tamiyo.evaluation.offline.verdict import evaluate as evaluated
    from tamiyo.streams.cli import options

    torch.set_num_threads(1)
    policies = [target_policy(policy), target_policy(against)]
    values = encoded_experiences(experience, lambda: options.connected_kafka(bootstrap), options.names())
    found, left_out = current(values, incomplete=incomplete)
    with progress_bar("evaluating", len(found)) as advance:
        decisions, rejected = logged_decisions(found, policies, advance)
    left_out += rejected
    if not decisions:
        hint = "; --incomplete counts those whose reward may still change" if left_out["incomplete"] else ""
        reasons = f"; left out: {output.counts(left_out)}{hint}" if left_out else ""
        raise ConfigurationError(f"{experience} has no experience to judge a policy by{reasons}")
    thresholds = Thresholds(min_effective, min_runs, min_covered, weight_limit)
    names = (policies[0].name, policies[1].name)
    result = evaluated(decisions, names if names[0] != names[1] else (policy, against), thresholds)
    if left_out["incomplete"]:
        result = replace(result, warnings=(*result.warnings, INCOMPLETE.format(left_out["incomplete"])))
    if as_json:
        output.print_as_json(result, left_out, thresholds)
    else:
        output.print_tables(result, left_out)
    if result.status == Status.TOO_LITTLE_SUPPORT:
        raise typer.Exit(TOO_LITTLE_SUPPORT)
