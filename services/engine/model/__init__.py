"""What computes a step: a model by ONNX Runtime, a guest or a simulated one, and the memory it lies in."""
