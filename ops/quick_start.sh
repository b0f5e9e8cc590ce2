#!/usr/bin/env bash
# Installs and starts Atelier with Docker on this machine: a language model, the chat page, the gateway and the actors.
# Checks docker, compose and the GPU, makes .env, fetches images and models, starts everything, waits until it is healthy and verifies it.
# Usage: ops/quick_start.sh [--cpu] [--images] [--model org/name|s3://…|gs://…|folder] [--wait SECONDS] [--check]
#   --cpu     no GPU, even when there is one: the text actor runs a small language model itself, unless .env sets VLLM_SERVER_URL
#   --images  also the image and vision actors, which need a GPU; --model fetches a model for them, and implies it
#   --wait    seconds until all have to be healthy, default 1800: a first start fetches the model     --check  only check, change nothing
# Example: ops/quick_start.sh --model stable-diffusion-v1-5/stable-diffusion-v1-5
set -euo pipefail
cd "$(dirname "$0")/.."

passwords="RABBITMQ_PASSWORD RABBITMQ_PUBLISHER_PASSWORD RABBITMQ_ACTOR_PASSWORD RABBITMQ_GATEWAY_PASSWORD RABBITMQ_OPERATOR_PASSWORD \
  POSTGRES_PASSWORD S3_ROOT_PASSWORD S3_PASSWORD ATELIER_SECRET GRAFANA_PASSWORD"
gpu=auto images=no model="" wait_seconds=1800 check=no
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) gpu=no ;;
    --images) images=yes ;;
    --check) check=yes ;;
    --model) model=${2:?--model needs a source} images=yes; shift ;;
    --wait) wait_seconds=${2:?--wait needs seconds}; shift ;;
    -h | --help) sed -n '2,8s/^# //p' "$0"; exit 0 ;;
    *) echo "quick_start: unknown argument $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
[[ $wait_seconds =~ ^(0|[1-9][0-9]{0,8})$ ]] || { echo "quick_start: --wait needs a number of seconds, not $wait_seconds; see --help" >&2; exit 2; }

pass() { printf '  ok  %s\n' "$*"; }
fail() { printf '  --  %s\n      %s\n' "$1" "$2" >&2; exit 1; }
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
setting() { if [ -n "${!1:-}" ]; then echo "${!1}"; elif [ -f .env ]; then sed -n "s/^$1=//p" .env | tail -n 1 | tr -d "\"'"; fi; }

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
if [ "$gpu" = yes ]; then pass "GPU: $(nvidia-smi -L | head -n 1)"; else pass "no GPU"; fi
[ "$images" = no ] || [ "$gpu" = yes ] || fail "the image and vision actors need a GPU" "Leave out --images and --model."

# Compose reads these two names from .env: later commands, such as `docker compose logs`, then mean the same services.
# What an earlier run added for another choice is removed first; the rest stays, also --images while there is a GPU.
embedded=:ops/deploy/embedded-text.yml
profiles=,$(setting COMPOSE_PROFILES), files=$(setting COMPOSE_FILE) server=$(setting VLLM_SERVER_URL)
unset COMPOSE_PROFILES COMPOSE_FILE # the shell's would hide those of .env
if [ "$gpu" = yes ] && [[ $profiles = *,gpu,* ]]; then images=yes; fi
profiles=${profiles//,vllm,/,} profiles=${profiles//,gpu,/,} profiles=${profiles#,} profiles=${profiles%,}
[ "$files" != "docker-compose.yml$embedded" ] || files=""
files=${files//$embedded/}
add_profile() { profiles=${profiles:+$profiles,}$1; }
if [ -n "$server" ]; then
  pass "language model: the server $server"
elif [ "$gpu" = yes ]; then
  add_profile vllm
  pass "language model: vllm-server, with $(setting VLLM_MODEL | grep . || echo 'the default model of docker-compose.yml')"
else
  files=${files:-docker-compose.yml}$embedded
  pass "language model: a small one inside the text actor, $(setting VLLM_MODEL | grep . || echo 'its default')"
fi
[ "$images" = no ] || add_profile gpu

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
keep() {
  [ "$(setting "$1")" != "$2" ] || return 0
  umask 077
  { grep -v "^$1=" .env || true; [ -z "$2" ] || echo "$1=$2"; } > .env.new
  mv .env.new .env
}
keep COMPOSE_PROFILES "$profiles"
keep COMPOSE_FILE "$files"

docker compose pull --ignore-buildable --quiet || fail "the images could not be fetched" "The output above has the reason, often the network or a full disk."
docker compose build || fail "the images could not be built" "The output above has the reason, often the network or a full disk."
if [ -n "$model" ]; then
  docker compose run --rm --no-deps -T image models pull "$model" --folder /models ||
    fail "the model $model could not be fetched" "Is the name right? A gated model needs HF_TOKEN in .env. Run the same command again to resume."
fi
docker compose up -d || fail "the services could not be started" "See docker compose ps and docker compose logs."

healthy=no waiting=""
for ((waited = 0; waited <= wait_seconds; waited += 5)); do
  states=$(docker compose ps --all --format '{{.Service}} {{.State}} {{.Health}}')
  waiting=$(echo "$states" | grep -Ev ' healthy$|^(prepare|s3-user) ' || true)
  if [ -n "$states" ] && [ -z "$waiting" ]; then healthy=yes; break; fi
  [ $((waited % 30)) != 0 ] || printf '  ..  %s s, waiting for %s\n' "$waited" "$(echo "$waiting" | sed 's/ .*//' | tr '\n' ' ')"
  sleep "${QUICK_START_PAUSE:-5}"
done
if [ "$healthy" = no ]; then
  echo "$waiting" >&2
  fail "not everything became healthy within $wait_seconds seconds" "See docker compose logs of the services above; --wait gives more time."
fi
pass "healthy after $waited seconds"
ops/verify_system.sh || fail "the services run, and a check failed" "The lines above have the cure."

page=$(setting GRADIO_PORT) port=$(setting GATEWAY_PUBLISHED_PORT)
printf '\nChat page:  http://127.0.0.1:%s/ (log in with a key of GATEWAY_API_KEYS in .env)\n' "${page:-7860}"
printf 'Gateway:    http://127.0.0.1:%s (documentation: /docs, messages: /asyncapi; OpenAI clients: /v1)\n' "${port:-8080}"
