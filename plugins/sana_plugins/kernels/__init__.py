"""The Triton kernels, one family a module, and what they share; the only place that speaks Triton.

Kernels take flat scalars because their signature is also the binary interface of the compiled PTX, and leave their
parameters untyped because Triton reads annotations as part of that interface.
"""
