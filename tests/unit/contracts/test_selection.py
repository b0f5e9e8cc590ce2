"""Which dead letters are meant."""

import pytest
from pydantic import ValidationError

from contracts.dead_letter import Selection


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_timestamp_out_of_database_range_is_rejected(moment: str) -> None:
    """Over HTTP that is a 422; in Postgres it would be an error of ours."""
    with pytest.raises(ValidationError):
        Selection.model_validate({"since": moment})
