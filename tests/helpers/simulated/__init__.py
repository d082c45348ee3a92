"""A CUDA device that is not there: tensors say that they are on it, and live on the CPU.

Within `simulated_cuda()` torch finds one or several GPUs. What runs on them runs on the CPU, the Triton kernels in
Triton's interpreter (TRITON_INTERPRET=1, float32), but a mistake that shows on CUDA only is an error: operands on
different devices, a host that waits or copies in a capture, a result that is read before its copy has arrived, a launch
beside another stream that uses the same memory, a stream that a capture does not join, memory of a pool that another
graph has overwritten. A capture does not run what it records: after it, what it would have written is as before, and
its results hold nonsense.

What it cannot show: whether a compiler or a driver accepts a kernel, what it computes in other dtypes, and how long it
takes.
"""

from helpers.simulated.simulation import Simulation
from helpers.simulated.streams import SimulatedCudaError
from helpers.simulated.torch_cuda import simulated_cuda

__all__ = ["SimulatedCudaError", "Simulation", "simulated_cuda"]
