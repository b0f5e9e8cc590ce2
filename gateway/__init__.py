"""The HTTP gateway: it publishes commands and returns their replies. It knows neither actors nor models nor the database.

The core (admission, services, commands, problems, sse) serves the APIs that `apis` lists.
"""
