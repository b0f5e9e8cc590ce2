"""The base class of all contracts."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """Immutable message data. Unknown fields are kept, so that an older reader does not lose the fields of a newer writer."""

    model_config = ConfigDict(extra="allow", frozen=True)
