"""`millrace up`: a whole service on one machine, its processes and its nats-server."""
