"""Attachments of a text request: pictures and documents, recognised by their content, never by their name."""
