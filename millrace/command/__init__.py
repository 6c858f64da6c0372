"""What the commands of `millrace` do, beside running a service; cli.py has their flags."""
