#!/usr/bin/env bash
# Verifies an installation: exit 0 when all is well, 1 when a check fails, each with its cure. Arguments go to `atelier doctor`.
# With the containers of docker-compose.yml: their health, the chat page, and `atelier doctor --services` inside, which asks the services
# and the model servers. Without them: `atelier doctor` on this machine.
# Usage: ops/verify_system.sh [--json] [STEP …]
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;; esac

if ! docker compose ps --services 2> /dev/null | grep -q .; then
  atelier=$(command -v atelier || echo .venv/bin/atelier)
  [ -x "$atelier" ] || { echo "neither containers run here nor is atelier installed: run ops/quick_start.sh, or make venv" >&2; exit 1; }
  exec "$atelier" doctor "$@"
fi

failed=0
check() { # NAME CURE COMMAND…: quietly, on standard error, so that --json stays one document
  if "${@:3}" > /dev/null 2>&1; then echo "  ok  $1" >&2; else printf '  --  %s\n      %s\n' "$1" "$2" >&2; failed=1; fi
}
# shellcheck disable=SC2016 # expanded by the shell that check starts
check "containers" "See docker compose ps --all, and docker compose logs of those that are not healthy." \
  bash -c 'states=$(docker compose ps --all --format "{{.Service}} {{.State}} {{.Health}}") && [ -n "$states" ] && ! echo "$states" | grep -Ev " healthy$|^(prepare|s3-user) "'
check "chat page" "See docker compose logs gateway." docker compose exec -T gateway \
  python -c "import urllib.request as r; assert b'<html' in r.urlopen('http://127.0.0.1:8080/', timeout=10).read()"
docker compose run --rm --no-deps -T operator doctor --services "$@" || failed=1
exit "$failed"
