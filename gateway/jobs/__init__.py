"""The jobs API: submit, read, list, cancel, stream events, read files."""
