"""Tokens that are guessed ahead, for the model to verify in one step: they change no answer, but its pace."""
