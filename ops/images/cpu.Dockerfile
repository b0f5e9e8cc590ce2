# Gateway and CPU actors, without torch. Build from the root of the checkout: docker build -f ops/images/cpu.Dockerfile -t atelier .
# The package contains its fonts (actors/fonts), with Latin, Korean, Chinese, Japanese and many other letters; nothing is downloaded at run time.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/atelier
WORKDIR /src
COPY ops/images/cpu.txt requirements.txt
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
LABEL org.opencontainers.image.title="atelier" org.opencontainers.image.description="Gateway and CPU actors"
# Pillow loads FriBiDi at run time: without it names in Arabic, Hebrew or Hindi could not be drawn.
RUN apt-get update -q && apt-get install -y -q --no-install-recommends libfribidi0 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin atelier
COPY --from=build /opt/atelier /opt/atelier
ENV PATH=/opt/atelier/bin:$PATH PYTHONUNBUFFERED=1 HEALTH_HOST=0.0.0.0 HEALTH_PORT=9464
USER 10001
WORKDIR /home/atelier
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/health/live', timeout=3)"]
ENTRYPOINT ["atelier"]
CMD ["run", "watermark"]
