"""The jobs API: submit a job, read, list and cancel jobs, stream events, download files."""
