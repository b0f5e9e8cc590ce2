#!/usr/bin/env bash
# Runs docker-compose.yml with podman: builds both images, starts services, actors, an actor with a model and Prometheus, runs two orders
# and stops everything. Images of Debian's packages (tests/compose/Containerfile) replace the official ones, so that no registry is
# needed; the actor with a model runs on the CPU (tests/compose/without-gpu.yml).
# Needs root, podman, buildah, runc, netavark, aardvark-dns, iptables, catatonit, debootstrap. MIRROR: Debian's, default as apt has it.
# WHEELS: a folder of wheels that the builds prefer, such as a torch for CPUs, a tenth of the size of the one with CUDA.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/tests/compose work=$PWD/.local/compose
mkdir -p "$work"
export CONTAINERS_CONF=$here/containers.conf COMPOSE_PROJECT_NAME=atelier-test
log() { printf '\n== %s\n' "$*"; }
for program in podman debootstrap runc iptables; do
  command -v "$program" > /dev/null || { echo "$program is missing: apt-get install podman buildah runc netavark aardvark-dns iptables catatonit debootstrap"; exit 1; }
done

if ! podman image exists localhost/atelier-debian; then
  log "Debian's packages as a base image"
  # shellcheck disable=SC2016 # apt expands the site
  mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Codename: bookworm' | head -1)}
  rm -rf "$work/debian"
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates,rabbitmq-server,postgresql,prometheus \
    bookworm "$work/debian" "$mirror" > "$work/debootstrap.log"
  ln -sf python3 "$work/debian/usr/bin/python"
  cp /etc/ssl/certs/ca-certificates.crt "$work/debian/etc/ssl/certs/ca-certificates.crt"
  [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$work/debian/etc/pip.conf"
  tar -C "$work/debian" -c --exclude=./proc/* --exclude=./sys/* . | podman import -q ${WHEELS:+--change "ENV PIP_FIND_LINKS=$WHEELS"} - localhost/atelier-debian
fi

log "images"
substitute() { podman build -q --network host --target "$1" -t "substitute-$1" "$here" > /dev/null; podman tag "substitute-$1" "$2"; }
build() { podman build -q --format docker --network host ${WHEELS:+--volume "$WHEELS:$WHEELS:ro"} "${@:3}" -f "ops/images/$1" -t "$2" . > /dev/null; }
# The requirements of the GPU image with the torch of WHEELS and without CUDA's libraries: the hash of a torch for CPUs is another one.
cpu_torch() {
  awk -v hash="$(sha256sum "$WHEELS"/torch-*.whl | awk '{print $1; exit}')" '
    /^[a-z]/ {skip = /^(nvidia-|cuda-)/ && !/^nvidia-ml-py/; torch = /^torch==/}
    torch && /--hash/ {next}
    torch {print; print "    --hash=sha256:" hash; next}
    !skip' ops/images/gpu.txt
}
image_of() { awk -v service="  $1:" '$0 ~ "^" service {on = 1} on && $1 == "image:" {print $2; exit}' docker-compose.yml; }
podman tag localhost/atelier-debian "docker.io/library/$(awk '/^FROM/ {print $2; exit}' ops/images/cpu.Dockerfile)"
substitute rabbitmq "docker.io/library/$(image_of rabbitmq)"
substitute postgres "docker.io/library/$(image_of postgres)"
substitute s3 "$(awk '$2 == "&s3-image" {print $3}' docker-compose.yml)"
substitute prometheus "docker.io/$(image_of prometheus)"
build cpu.Dockerfile localhost/atelier:latest
if [ -n "${WHEELS:-}" ]; then
  cpu_torch > ops/images/without-cuda.txt && trap 'rm -f ops/images/without-cuda.txt' EXIT
  build gpu.Dockerfile localhost/atelier-gpu:latest --build-arg REQUIREMENTS=ops/images/without-cuda.txt
  rm ops/images/without-cuda.txt
else
  build gpu.Dockerfile localhost/atelier-gpu:latest
fi

[ -x "$work/venv/bin/podman-compose" ] || { python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q podman-compose==1.6.0; }
secret() { python3 -c 'import secrets; print(secrets.token_hex(16))'; }
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
key=$(secret)
{
  for name in RABBITMQ RABBITMQ_PUBLISHER RABBITMQ_ACTOR RABBITMQ_GATEWAY RABBITMQ_OPERATOR POSTGRES S3_ROOT S3 GRAFANA; do
    echo "${name}_PASSWORD=$(secret)"
  done
  echo "IMAGE_MODEL=/models/tiny-sd"; echo "ATELIER_SECRET=$(secret)"; echo "GATEWAY_API_KEYS=shop:$key"
  for name in AMQP RABBITMQ_UI S3 GATEWAY PROMETHEUS; do echo "${name}_PUBLISHED_PORT=$(port)"; done
} > "$work/env"
files="-f docker-compose.yml -f $here/without-gpu.yml --profile gpu --profile watch"
# shellcheck disable=SC2086 # several arguments
compose() { "$work/venv/bin/podman-compose" --env-file "$work/env" -p "$COMPOSE_PROJECT_NAME" $files "$@" 2>&1 | grep -v systemd || true; }
trap 'log "down"; compose down -v > /dev/null' EXIT

# podman 4.3 neither runs health checks by itself nor waits for them: this runs them in the order of the dependencies.
healthy() {
  for _ in $(seq 60); do
    podman healthcheck run "${COMPOSE_PROJECT_NAME}_$1_1" > /dev/null 2>&1 && { echo "$1: healthy"; return; }
    sleep 1
  done
  podman logs --tail 30 "${COMPOSE_PROJECT_NAME}_$1_1"; echo "$1 did not become healthy"; exit 1
}
log "services"
compose up -d --no-deps rabbitmq postgres s3 > "$work/up.log"
for service in rabbitmq postgres s3; do healthy "$service"; done
log "prepare"
compose run --rm --no-deps s3-user
compose run --rm --no-deps prepare
log "actors"
compose run --rm --no-deps image models tiny --folder /models
actors="gateway image_generation image watermark overlay upload webhook conversations variants job_variants ledger dead-letters prometheus"
# shellcheck disable=SC2086 # several arguments
compose up -d --no-deps $actors >> "$work/up.log"
for actor in $actors; do healthy "$actor"; done
log "orders"
podman exec -i "${COMPOSE_PROJECT_NAME}_gateway_1" python - "$key" < "$here/orders.py"
for actor in gateway image; do [ "$(podman exec "${COMPOSE_PROJECT_NAME}_${actor}_1" id -u)" = 10001 ]; done
log "Prometheus scrapes them"
podman exec -i "${COMPOSE_PROJECT_NAME}_gateway_1" python - < "$here/targets.py"
log "all passed"
