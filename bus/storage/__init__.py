"""Storage of claims, and download of assets and models: filesystem, S3, HTTP."""
