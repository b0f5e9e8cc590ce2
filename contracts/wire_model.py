"""The base class of all contracts."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """Immutable message data. Unknown fields are kept, so that an older reader does not lose the fields of a newer writer.

    A process builds the validator of a contract when it first uses it: most processes use few of them.
    """

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)
