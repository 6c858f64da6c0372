# One image for each role, with what that role imports and nothing else:
#   docker build --build-arg ROLE=engine -t millrace-engine .
# LOCK=engine-gpu makes the engine's for NVIDIA GPUs: CUDA's libraries come with it, the driver is the machine's.
FROM python:3.11-slim-bookworm AS build
ARG ROLE
ARG LOCK=${ROLE}
COPY deploy/locks/${LOCK}.lock /tmp/role.lock
RUN python -m venv --without-pip /opt/millrace \
 && python -m pip --python /opt/millrace/bin/python install --no-cache-dir --no-deps --require-hashes -r /tmp/role.lock

FROM python:3.11-slim-bookworm
ARG ROLE
ENV ROLE=${ROLE} PATH=/opt/millrace/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 MILLRACE_ALIVE=/tmp/alive XDG_CACHE_HOME=/var/cache
COPY --from=build /opt/millrace /opt/millrace
COPY models /app/models
COPY millrace /app/millrace
COPY services/${ROLE} /app/services/${ROLE}
# Volumes take their owner from the folder that they are first mounted on.
RUN python -m compileall -q /app \
 && install -d -o 10001 -g 10001 /var/cache/millrace /run/millrace /keys \
 && for role in nats gateway tokenizer engine detokenizer operator data; do install -d -o 10001 -g 10001 -m 700 /keys/$role; done
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD ["python", "-P", "-m", "millrace", "healthy"]
# With no command it is the role that the image was built for.
ENTRYPOINT ["/bin/sh", "-c", "exec python -P -m millrace \"${@:-$ROLE}\"", "millrace"]
