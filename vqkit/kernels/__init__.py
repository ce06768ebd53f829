"""The operators on a GPU: Triton kernels, one module a stem. Importing this package does not import Triton."""
