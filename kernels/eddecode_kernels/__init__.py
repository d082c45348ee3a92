"""Kernels: C++ for CPUs, compiled on first use, and Triton for GPUs. torch only; nothing of eddecode."""
