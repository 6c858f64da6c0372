"""What comes of a step's numbers: a token for each row, how likely it was, or a text's vector."""
