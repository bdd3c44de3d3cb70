# syntax=docker/dockerfile:1
# The server with the default embedding model's weights. Built in two steps: the second one has no compiler, no uv and no root.
FROM python:3.11.13-slim-bookworm AS build

WORKDIR /build
COPY bin/uv.txt bin/
RUN pip install --no-cache-dir --require-hashes -r bin/uv.txt
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/millrace

# the dependencies alone: this layer stays while only our own code changes
COPY pyproject.toml uv.lock README.md ./
RUN uv sync --locked --no-cache --no-default-groups --group model --no-install-project
COPY api api
COPY rag rag
COPY db db
RUN uv sync --locked --no-cache --no-default-groups --group model --no-editable


FROM python:3.11.13-slim-bookworm

RUN useradd --uid 10001 --create-home --home-dir /data --shell /usr/sbin/nologin millrace && chmod 700 /data
COPY --from=build /opt/millrace /opt/millrace

USER millrace
WORKDIR /data
VOLUME /data
EXPOSE 9380
ENV PATH=/opt/millrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MILLRACE_HOST=0.0.0.0 \
    MILLRACE_DATA_DIR=/data \
    MILLRACE_LOG_FORMAT=json

# a `millrace worker` answers at another port, if at any: give it a health check of its own, as docker-compose.yml does
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('MILLRACE_PORT', '9380')}/healthz\", timeout=4)"]

# exec form: SIGTERM reaches the server, which drains; give it MILLRACE_DRAIN_SECONDS and ten more
STOPSIGNAL SIGTERM
ENTRYPOINT ["millrace"]
CMD ["serve"]
