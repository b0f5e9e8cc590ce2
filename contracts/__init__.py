"""The language: what may be said on the bus. Pydantic data only; this room imports nothing of ours."""
