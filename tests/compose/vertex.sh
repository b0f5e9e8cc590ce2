#!/usr/bin/env bash
# Builds the Dockerfile at the root with podman, starts one container as Vertex AI does (AIP_HTTP_PORT, AIP_PREDICT_ROUTE, AIP_HEALTH_ROUTE,
# AIP_STORAGE_URI) and calls /predict and /health. Debian's packages replace the base image, as in run.sh, which makes it.
# WHEELS: a folder with a torch for CPUs, which the image gets instead of the one with CUDA. STORAGE_URI: of a model; else the toy is used.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CONTAINERS_CONF=$PWD/tests/compose/containers.conf
name=atelier-consult-test port=${PORT:-18085}
podman image exists localhost/atelier-debian || { echo "run tests/compose/run.sh first: it makes the base image"; exit 1; }
podman tag localhost/atelier-debian "docker.io/library/$(awk '/^FROM/ {print $2; exit}' Dockerfile)"
arguments=()
if [ -n "${WHEELS:-}" ]; then
  hash=$(sha256sum "$WHEELS"/torch-*.whl | awk '{print $1; exit}')
  trap 'rm -f ops/images/without-cuda-vertex.txt' EXIT
  awk -v hash="$hash" '
    /^[a-z]/ {skip = /^(nvidia-|cuda-)/ && !/^nvidia-ml-py/; torch = /^torch==/}
    torch && /--hash/ {next}
    torch {print; print "    --hash=sha256:" hash; next}
    !skip' ops/images/vertex.txt > ops/images/without-cuda-vertex.txt
  arguments+=(--volume "$WHEELS:$WHEELS:ro" --build-arg REQUIREMENTS=ops/images/without-cuda-vertex.txt)
fi
podman build -q --format docker --network host "${arguments[@]}" -t localhost/atelier-consult . > /dev/null
podman rm -f "$name" > /dev/null 2>&1 || true
if [ -n "${STORAGE_URI:-}" ]; then model="AIP_STORAGE_URI=$STORAGE_URI"
else model="VLM_MODEL=$(podman run --rm --entrypoint python localhost/atelier-consult -c 'from pathlib import Path; from ops.local import tiny_models as models; print(Path(models.__file__).parent / "checkpoints" / models.TINY_VLM)')"; fi
podman run -d --name "$name" --network host -e "AIP_HTTP_PORT=$port" -e AIP_MODE=PREDICTION -e AIP_HEALTH_ROUTE=/ping -e "$model" localhost/atelier-consult > /dev/null
trap 'rm -f ops/images/without-cuda-vertex.txt; podman rm -f "$name" > /dev/null' EXIT
started=$SECONDS
for _ in $(seq 240); do
  status=$(curl -s -o /tmp/ping.json -w '%{http_code}' "http://127.0.0.1:$port/ping" || true)
  [ "$status" = 200 ] && break
  [ "$status" != 503 ] || grep -q loading /tmp/ping.json
  sleep 1
done
[ "$status" = 200 ] || { podman logs --tail 60 "$name"; exit 1; }
echo "healthy after $((SECONDS - started)) s"
python3 - "$port" <<'PY'
import base64, json, sys, urllib.error, urllib.request, zlib, struct, os
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = b"".join(b"\0" + os.urandom(3 * 764) for _ in range(764))
png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 764, 764, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")
assert len(png) >= 1_750_000, len(png)
def call(path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.read()[:300]
status, answer = call("/predict", {"instances": [{"prompt": "What is it?", "image": base64.b64encode(png).decode()}, {"prompt": "?"}]})
assert status == 200 and len(answer["predictions"]) == 2, (status, answer)
assert call("/jobs", {})[0] in (401, 404)
print("predicted", [len(text) for text in answer["predictions"]])
PY
[ "$(podman exec "$name" id -u)" = 10001 ]
podman stop -t 40 "$name" > /dev/null
[ "$(podman inspect "$name" --format '{{.State.ExitCode}}')" = 0 ] || { podman logs --tail 20 "$name"; exit 1; }
echo "all passed"
