"""The agent that measures in a browser: a page with ONNX Runtime Web, and where that runtime's files come from."""
