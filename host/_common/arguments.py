"""Check what a user passes to `attach`: every mistake is a ConfigurationError that names the argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError

from tamiyo.host._common.settings import HostSettings
from tamiyo.schemas.errors import ConfigurationError


class AttachArguments(BaseModel):
    """Those arguments of `attach` that are plain values; see there."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    num_seeds: Annotated[int, Field(ge=0, le=1024)]
    planned_steps: Annotated[int, Field(ge=0, lt=1 << 53)] | None
    task: Annotated[str, Field(max_length=2000)]
    twin_budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    distributed: bool | None
    settings: InstanceOf[HostSettings] | None
    held_out: tuple[Any, Any] | None

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Return the arguments. Raises ConfigurationError for those that are of a wrong type or out of range."""
        try:
            return cls(**values)
        except ValidationError as error:
            problems = [
                f"{each['loc'][0]}: {each['msg'][0].lower()}{each['msg'][1:]}, got {str(each['input'])[:80]!r}"
                for each in error.errors(include_url=False)
            ]
            raise ConfigurationError(f"attach: {'; '.join(dict.fromkeys(problems))}") from None


def names(given: str | Iterable[str], argument: str) -> list[str]:
    """Return the names in `given`; a string is one name. Raises ConfigurationError for anything else."""
    if isinstance(given, str):
        return [given]
    try:
        found = list(given)
    except TypeError:
        raise ConfigurationError(f"{argument}: expected names of layers, got {given!r}") from None
    wrong = [each for each in found if not isinstance(each, str)]
    if wrong:
        raise ConfigurationError(f"{argument}: expected names of layers, got {wrong[0]!r} among them")
    return found
