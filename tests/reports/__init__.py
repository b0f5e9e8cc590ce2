"""What people reported publicly of systems like this one, as inputs: one file per kind of report.

The docstring of each test names the report by repository and number. The code is ours.
"""
