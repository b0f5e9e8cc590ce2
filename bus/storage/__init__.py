"""Claim stores, assets and model files: filesystem, S3, HTTP."""
