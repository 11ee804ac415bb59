"""The base of every configuration: frozen, strict, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A configuration node. YAML gives strings and numbers, so dates and paths are parsed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
