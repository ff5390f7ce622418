"""Students for ONNX Runtime: the graph, its check against torch, smaller forms, and what runs it without torch."""
