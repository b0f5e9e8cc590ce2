#!/usr/bin/env bash
# Writes ops/images/cpu.txt and gpu.txt: the versions of constraints.txt with the hashes of all their files. Needs uv and the network.
# The GPU image takes the CUDA libraries that its torch asks for: constraints.txt was made with a torch for CPUs.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
echo 'setuptools>=77' > "$folder/build.in"
grep -v '^#' constraints.txt > "$folder/cpu"
grep -Ev '^(triton|nvidia-)' "$folder/cpu" > "$folder/gpu"
options=(--universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet)
for image in cpu gpu; do
  extras=(--extra s3)
  [ "$image" = cpu ] || extras+=(--extra models)
  uv pip compile pyproject.toml "$folder/build.in" "${extras[@]}" --constraint "$folder/$image" "${options[@]}" -o "$folder/$image.txt"
  {
    # shellcheck disable=SC2016 # the backquotes are text
    echo '# What the image installs, with the hashes of all its files; `ops/images/lock.sh` writes it from pyproject.toml and constraints.txt.'
    cat "$folder/$image.txt"
  } > "ops/images/$image.txt"
done
