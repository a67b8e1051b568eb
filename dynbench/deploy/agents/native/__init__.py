"""The native agent: one C++ program on ONNX Runtime's C API, for devices without Python."""
