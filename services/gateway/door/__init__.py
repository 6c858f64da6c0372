"""The way in: the server and its routes, and who may come in. It knows every surface; none knows it."""
