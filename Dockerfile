# clseg in a container; how to build and run it: docs/docker.md
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/clseg && /opt/clseg/bin/pip install --no-cache-dir "torch==${TORCH}" --index-url "${TORCH_INDEX}"
WORKDIR /src
COPY . .
RUN /opt/clseg/bin/pip install --no-cache-dir ".[dicom,mesh,cluster]"

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="clseg" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/clseg /opt/clseg
ENV PATH=/opt/clseg/bin:$PATH CLSEG_HOME=/weights HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN mkdir /weights && chown 1000:1000 /weights && clseg --version
USER 1000
WORKDIR /tmp
ENTRYPOINT ["clseg"]
CMD ["--help"]
