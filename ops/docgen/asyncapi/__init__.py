"""The AsyncAPI document."""
