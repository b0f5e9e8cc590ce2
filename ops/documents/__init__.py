"""Documents that are written from the code: the configuration reference, `.env.example`, the AsyncAPI document, the schemas.

`make documents` writes all of them; a unit test holds what is committed against what the code says.
"""
