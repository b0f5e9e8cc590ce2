#!/bin/bash
# Replaces the official image: moto's S3 server on the same port.
exec moto_server -H 0.0.0.0 -p 9000
