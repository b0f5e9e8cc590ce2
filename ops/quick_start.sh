#!/usr/bin/env bash
# Installs and starts Atelier with Docker on this machine: checks docker, compose and the GPU, makes .env, fetches a model, starts, waits.
# Usage: ops/quick_start.sh [--cpu] [--model org/name|s3://…|gs://…|folder] [--wait SECONDS] [--check]
#   --cpu    no actors that need a GPU, even when there is one     --check  only check, change nothing
# Example: ops/quick_start.sh --model stable-diffusion-v1-5/stable-diffusion-v1-5
set -euo pipefail
cd "$(dirname "$0")/.."

passwords="RABBITMQ_PASSWORD RABBITMQ_PUBLISHER_PASSWORD RABBITMQ_ACTOR_PASSWORD RABBITMQ_GATEWAY_PASSWORD RABBITMQ_OPERATOR_PASSWORD \
  POSTGRES_PASSWORD S3_ROOT_PASSWORD S3_PASSWORD ATELIER_SECRET GRAFANA_PASSWORD"
gpu=auto model="" wait_seconds=300 check=no
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) gpu=no ;;
    --check) check=yes ;;
    --model) model=${2:?--model needs a source}; shift ;;
    --wait) wait_seconds=${2:?--wait needs seconds}; shift ;;
    -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
    *) echo "quick_start: unknown argument $1; see --help" >&2; exit 2 ;;
  esac
  shift
done

pass() { printf '  ok  %s\n' "$*"; }
fail() { printf '  --  %s\n      %s\n' "$1" "$2" >&2; exit 1; }
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

command -v docker > /dev/null || fail "docker is not installed" "Install Docker Engine: docs.docker.com has the steps for your system."
docker info > /dev/null 2>&1 || fail "docker does not answer" "Start it (systemctl start docker), or add yourself to its group: usermod -aG docker \$USER."
pass "docker"
docker compose version > /dev/null 2>&1 || fail "docker has no compose plugin" "Install it (docker-compose-plugin), version 2.24 or newer."
pass "compose"

if [ "$gpu" = auto ]; then
  gpu=no
  if command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
    docker info --format '{{json .Runtimes}}' | grep -q nvidia ||
      fail "there is a GPU, but docker has no NVIDIA runtime" "Install nvidia-container-toolkit and restart docker, or pass --cpu."
    gpu=yes
  fi
fi
if [ "$gpu" = yes ]; then pass "GPU: $(nvidia-smi -L | head -n 1)"; else pass "no GPU: CPU actors only"; fi

if [ -f .env ]; then
  for name in $passwords GATEWAY_API_KEYS; do
    grep -Eq "^$name=.+" .env || fail ".env does not set $name" "Add a line $name=… to .env; see .env.example."
  done
  pass ".env exists"
elif [ "$check" = yes ]; then
  pass ".env would be created, with generated passwords"
else
  umask 077
  {
    for name in $passwords; do echo "$name=$(secret)"; done
    echo "GATEWAY_API_KEYS=me:$(secret)"
    cat .env.example
  } > .env.new
  mv .env.new .env
  pass ".env is created, with generated passwords"
fi
[ "$check" = no ] || exit 0

profiles=()
[ "$gpu" = no ] || profiles=(--profile gpu)
docker compose "${profiles[@]}" build || fail "the images could not be built" "The output above has the reason, often the network or a full disk."
if [ -n "$model" ]; then
  docker compose --profile gpu run --rm --no-deps -T image models pull "$model" --folder /models ||
    fail "the model $model could not be fetched" "Is the name right? A gated model needs HF_TOKEN in .env. Run the same command again to resume."
fi
docker compose "${profiles[@]}" up -d || fail "the services could not be started" "See docker compose ps and docker compose logs."

for ((waited = 0; waited < wait_seconds; waited += 2)); do
  states=$(docker compose "${profiles[@]}" ps --format '{{.Service}} {{.State}} {{.Health}}')
  waiting=$(echo "$states" | grep -Ecv ' healthy$|^(prepare|s3-user) ' || true)
  if [ -n "$states" ] && [ "$waiting" = 0 ]; then
    address=$(docker compose port gateway 8080)
    pass "healthy after $waited seconds"
    printf '\nAtelier listens at http://%s (key: GATEWAY_API_KEYS in .env); documentation of the messages: http://%s/asyncapi\n' "$address" "$address"
    exit 0
  fi
  sleep "${QUICK_START_PAUSE:-2}"
done
echo "$states" | grep -Ev ' healthy$|^(prepare|s3-user) ' >&2 || true
fail "not everything became healthy within $wait_seconds seconds" "See docker compose logs of the services above; --wait gives more time."
