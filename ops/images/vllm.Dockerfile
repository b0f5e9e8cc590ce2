# The text actor with vLLM in its own process (TEXT_ENGINE=vllm). vLLM asks for other versions than our own models do, so it has an image
# and a lock of its own. For x86-64; the host needs the driver and NVIDIA's container runtime.
# Build from the root of the checkout: docker build -f ops/images/vllm.Dockerfile -t atelier-vllm .
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/atelier
WORKDIR /src
COPY ops/images/vllm.txt requirements.txt
RUN /opt/atelier/bin/pip install --require-hashes --requirement requirements.txt
COPY pyproject.toml README.md ./
COPY contracts contracts
COPY bus bus
COPY actors actors
COPY gateway gateway
COPY ops ops
# gateway/docs/asyncapi.yaml is a link into docs
COPY docs docs
RUN /opt/atelier/bin/pip install --no-deps --no-index --no-build-isolation .

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="atelier-vllm" org.opencontainers.image.description="The text actor with vLLM"
# vLLM compiles kernels for the device at run time.
RUN apt-get update -q && apt-get install -y -q --no-install-recommends gcc g++ libfribidi0 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin atelier && install -d -o 10001 /models
COPY --from=build /opt/atelier /opt/atelier
ENV PATH=/opt/atelier/bin:$PATH PYTHONUNBUFFERED=1 HEALTH_HOST=0.0.0.0 HEALTH_PORT=9464 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility MODEL_DIR=/models HF_HOME=/models/hub TEXT_ENGINE=vllm
USER 10001
WORKDIR /home/atelier
VOLUME /models
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/health/live', timeout=3)"]
ENTRYPOINT ["atelier"]
CMD ["run", "text"]
