"""The operators' API: dead letters."""
