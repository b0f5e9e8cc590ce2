"""The HTTP APIs of the source systems (skin-consult, ad validation, CloudLLM), with their paths, fields, statuses and texts."""
