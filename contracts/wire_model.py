"""The root of all data that travels."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """Data that travels. Fields that we do not know are kept, so that an older reader never loses what a newer writer said."""

    model_config = ConfigDict(extra="allow", frozen=True)
