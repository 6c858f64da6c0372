"""What every public surface stands on: bodies read within limits, answers sent, clients that have gone."""
