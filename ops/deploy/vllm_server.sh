#!/usr/bin/env bash
# Runs in the container vllm-server: vLLM's server, with an argument for each variable that docker-compose.yml passes. Empty: vLLM's default.
# The variables are those of VllmSettings (actors/llm/settings.py).
set -euo pipefail

arguments=()
for name in GPU_MEMORY_UTILIZATION MAX_MODEL_LEN MAX_NUM_SEQS TENSOR_PARALLEL_SIZE DTYPE BLOCK_SIZE QUANTIZATION KV_CACHE_DTYPE; do
  variable=VLLM_$name flag=${name,,}
  [ -z "${!variable:-}" ] || arguments+=("--${flag//_/-}=${!variable}")
done
for name in ENFORCE_EAGER TRUST_REMOTE_CODE; do
  variable=VLLM_$name flag=${name,,} value=${!variable:-}
  case ${value,,} in
    true | yes | on | 1) arguments+=("--${flag//_/-}") ;;
    "" | false | no | off | 0) ;;
    *) echo "vllm-server: $variable=$value is neither true nor false" >&2; exit 2 ;;
  esac
done
read -ra extra <<< "${VLLM_EXTRA_ARGUMENTS:-}"
exec vllm serve "${VLLM_MODEL:?names no model}" --host 0.0.0.0 --port 8000 --enable-prefix-caching --no-enable-log-requests \
  "${arguments[@]}" "${extra[@]}"
