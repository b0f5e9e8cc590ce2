#!/bin/bash
# Replaces the official image: one user and one database from the environment.
set -eu
bin=$(echo /usr/lib/postgresql/*/bin) data=/var/lib/postgresql/data
install -d -o postgres /var/run/postgresql && install -d -m 0700 -o postgres "$data"
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
if [ ! -e "$data/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" > /tmp/password && chmod 644 /tmp/password
  as "$bin/initdb" -D "$data" -U "$POSTGRES_USER" --auth-host=scram-sha-256 --pwfile=/tmp/password > /dev/null
  echo 'host all all all scram-sha-256' >> "$data/pg_hba.conf"
  as "$bin/postgres" --single -D "$data" postgres <<< "CREATE DATABASE \"$POSTGRES_DB\"" > /dev/null
fi
exec setpriv --reuid postgres --regid postgres --clear-groups "$bin/postgres" -D "$data" -c listen_addresses='*'
