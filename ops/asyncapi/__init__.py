"""The AsyncAPI 3 document, written from the actors, the contracts and the names on the broker: a new step is in it by itself."""
