#!/bin/bash
# The stand-in for the official image: Debian's Prometheus with the official one's folders.
exec prometheus --config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/prometheus
