#!/usr/bin/env bash
# From nothing to a healthy Atelier on this machine: looks at docker, compose and the GPU, makes .env, fetches a model, starts, waits.
# Usage: ops/quick_start.sh [--cpu] [--model org/name|s3://…|gs://…|folder] [--wait SECONDS] [--check]
#   --cpu    no actors that need a device, even when there is one     --check  only look, change nothing
# Example: ops/quick_start.sh --model stable-diffusion-v1-5/stable-diffusion-v1-5
set -euo pipefail
cd "$(dirname "$0")/.."

gpu=auto model="" patience=300 check=no
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) gpu=no ;;
    --check) check=yes ;;
    --model) model=${2:?--model needs a source}; shift ;;
    --wait) patience=${2:?--wait needs seconds}; shift ;;
    -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
    *) echo "quick_start: unknown word $1; see --help" >&2; exit 2 ;;
  esac
  shift
done

good() { printf '  ok  %s\n' "$*"; }
bad() { printf '  --  %s\n      %s\n' "$1" "$2" >&2; exit 1; }
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

command -v docker > /dev/null || bad "docker is not here" "Install Docker Engine: its own page for your system tells how."
docker info > /dev/null 2>&1 || bad "docker does not answer" "Start it (systemctl start docker), or join its group: usermod -aG docker \$USER."
good "docker"
docker compose version > /dev/null 2>&1 || bad "docker has no compose" "Install the compose plugin (docker-compose-plugin), version 2.24 or newer."
good "compose"

if [ "$gpu" = auto ]; then
  gpu=no
  if command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
    docker info --format '{{json .Runtimes}}' | grep -q nvidia ||
      bad "a GPU is here, but docker has no NVIDIA runtime" "Install nvidia-container-toolkit and restart docker, or say --cpu."
    gpu=yes
  fi
fi
if [ "$gpu" = yes ]; then good "GPU: $(nvidia-smi -L | head -n 1)"; else good "no GPU: the CPU actors alone"; fi

if [ -f .env ]; then
  for name in RABBITMQ_PASSWORD POSTGRES_PASSWORD S3_PASSWORD GATEWAY_API_KEYS; do
    grep -Eq "^$name=.+" .env || bad ".env does not set $name" "Add a line $name=… to .env; see .env.example."
  done
  good ".env is here"
elif [ "$check" = yes ]; then
  good ".env would be made, with passwords of its own"
else
  umask 077
  {
    echo "RABBITMQ_PASSWORD=$(secret)"
    echo "POSTGRES_PASSWORD=$(secret)"
    echo "S3_PASSWORD=$(secret)"
    echo "GATEWAY_API_KEYS=me:$(secret)"
    cat .env.example
  } > .env.new
  mv .env.new .env
  good ".env is made, with passwords of its own"
fi
[ "$check" = no ] || exit 0

profiles=()
[ "$gpu" = no ] || profiles=(--profile gpu)
docker compose "${profiles[@]}" build || bad "the images could not be built" "The lines above say why; often it is the network or a full disk."
if [ -n "$model" ]; then
  docker compose --profile gpu run --rm --no-deps -T image models pull "$model" --folder /models ||
    bad "the model $model could not be fetched" "Is the name right? A gated model needs HF_TOKEN in .env. Say the same again to go on."
fi
docker compose "${profiles[@]}" up -d || bad "it could not be started" "See docker compose ps and docker compose logs."

for ((waited = 0; waited < patience; waited += 2)); do
  states=$(docker compose "${profiles[@]}" ps --format '{{.Service}} {{.State}} {{.Health}}')
  waiting=$(echo "$states" | grep -Ecv ' healthy$|^prepare ' || true)
  if [ -n "$states" ] && [ "$waiting" = 0 ]; then
    address=$(docker compose port gateway 8080)
    good "healthy after $waited seconds"
    printf '\nAtelier listens at http://%s (key: GATEWAY_API_KEYS in .env); the bus is described at http://%s/asyncapi\n' "$address" "$address"
    exit 0
  fi
  sleep "${QUICK_START_PAUSE:-2}"
done
echo "$states" | grep -Ev ' healthy$|^prepare ' >&2 || true
bad "not everything became healthy within $patience seconds" "Look at docker compose logs of the services named above; --wait gives more time."
