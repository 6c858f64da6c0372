"""What the commands of `millrace` do, beside running a service, and the flags of all."""
