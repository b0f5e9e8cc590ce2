"""The documents that the gateway serves: OpenAPI and AsyncAPI."""
