"""The AsyncAPI document of the bus."""
