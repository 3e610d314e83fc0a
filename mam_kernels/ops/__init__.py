"""The operations, a folder each: schema, reference, Triton, C++ and CUDA."""
