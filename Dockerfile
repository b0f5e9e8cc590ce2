# The skin-consult server in one container, as Vertex AI runs it: the gateway, the consult actor with its model, and the broker and the
# database that they need. It answers /predict and /health at the port and the routes that the variables AIP_… name; see docs/cloud.md.
# Build from the root of the checkout: docker build -t atelier-consult .
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/atelier
WORKDIR /src
# The tests replace the requirements by those of a torch for CPUs.
ARG REQUIREMENTS=ops/images/vertex.txt
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
LABEL org.opencontainers.image.title="atelier-consult" org.opencontainers.image.description="The skin-consult server for Vertex AI"
RUN apt-get update -q && apt-get install -y -q --no-install-recommends libfribidi0 rabbitmq-server tini && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin atelier && install -d -o 10001 /models
COPY --from=build /opt/atelier /opt/atelier
# The model is AIP_STORAGE_URI, which Vertex AI sets, or VLM_MODEL; else the source system's. Half precision, as it had it; `-e USE_QUANTIZATION=true` for a device with less memory.
ENV PATH=/opt/atelier/bin:$PATH PYTHONUNBUFFERED=1 HEALTH_HOST=127.0.0.1 HEALTH_PORT=9464 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility MODEL_DIR=/models HF_HOME=/models/hub \
    ATELIER_LOCAL_FOLDER=/home/atelier/local ATELIER_MAY_INSTALL=false ATELIER_READY_SECONDS=3600 \
    LLAVA_MODEL_NAME=llava-hf/llava-1.5-7b-hf USE_QUANTIZATION=false GATEWAY_APIS=vertex AIP_HTTP_PORT=8080 AIP_PREDICT_ROUTE=/predict AIP_HEALTH_ROUTE=/health
USER 10001
WORKDIR /home/atelier
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=8s --start-period=900s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['AIP_HTTP_PORT'] + os.environ['AIP_HEALTH_ROUTE'], timeout=6)"]
ENTRYPOINT ["tini", "--", "atelier"]
CMD ["up", "consult", "gateway"]
