# Actors with models. The wheels of torch include CUDA; the host needs the driver and NVIDIA's container runtime.
# Build from the root of the checkout: docker build -f ops/images/gpu.Dockerfile -t atelier-gpu .
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/atelier
WORKDIR /src
# The tests replace the requirements by those of a torch for CPUs.
ARG REQUIREMENTS=ops/images/gpu.txt
COPY ${REQUIREMENTS} requirements.txt
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
LABEL org.opencontainers.image.title="atelier-gpu" org.opencontainers.image.description="Actors with models"
# Pillow loads FriBiDi at run time: without it names in Arabic, Hebrew or Hindi could not be drawn.
RUN apt-get update -q && apt-get install -y -q --no-install-recommends libfribidi0 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin atelier && install -d -o 10001 /models
COPY --from=build /opt/atelier /opt/atelier
ENV PATH=/opt/atelier/bin:$PATH PYTHONUNBUFFERED=1 HEALTH_HOST=0.0.0.0 HEALTH_PORT=9464 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility MODEL_DIR=/models HF_HOME=/models/hub
USER 10001
WORKDIR /home/atelier
VOLUME /models
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/health/live', timeout=3)"]
ENTRYPOINT ["atelier"]
CMD ["run", "image"]
