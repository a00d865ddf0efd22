"""ONNX programs in float32, float16, int8 and int4."""
