"""The contracts: Pydantic models of every message on the bus. Data only; this package imports no other package of ours."""
