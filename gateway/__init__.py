"""The front door: HTTP in, message out, reply in, HTTP out. Knows neither actors nor models nor the database: it asks over the bus."""
