#!/bin/bash
# Replaces the official image: Debian's Prometheus with the folders of the official one.
exec prometheus --config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/prometheus
