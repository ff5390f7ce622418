"""Students for ONNX Runtime: the graph, its check against torch, smaller forms of it, and what runs it without torch."""
