"""The filter for dead letters."""

import pytest
from pydantic import ValidationError

from contracts.dead_letter import Selection


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_timestamp_out_of_database_range_is_rejected(time: str) -> None:
    """Over HTTP it is then a 422 instead of an error of the database."""
    with pytest.raises(ValidationError):
        Selection.model_validate({"since": time})
