"""What goes into a step: sequences and whose turn it is, prefixes that are kept, what a grammar allows."""
